"""The peers' black-box cases about ModelInfer (their ModelServing), on a real API server: each test is named after its case.

What is there is looked at with the official client. One case, LWSAPIBasic, is in test_leader_worker_sets.py.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from kubernetes import client as official

from matrixinfer.api import workload
from tests.cluster.conformance import eventually
from tests.kubernetes.stage import NAMESPACE, controlling, gated
from tests.modelinfer.village import a_role, rolling

BY_ROLE = {"type": "RoleRollingUpdate"}


def entries(*ordinals, image="sim:1"):
    return {f"{ordinal}-decode-0-0": image for ordinal in ordinals}


def instances(*indexes, image="sim:1"):
    return {f"0-decode-{index}-0": image for index in indexes}


async def test_model_serving_lifecycle(customer, controller):
    await customer.create()
    await customer.settled()
    await customer.image("sim:2")
    await customer.rolled("sim:2")
    await customer.delete()

    await customer.has({})


async def test_scale_up(customer, controller):
    await customer.create()
    await customer.settled()
    await customer.patch(replicas=3)
    await customer.settled()

    assert await customer.images() == entries(0, 1, 2)


async def test_scale_down(customer, controller):
    await customer.create(replicas=3)
    await customer.settled()
    await customer.patch(replicas=1)
    await customer.settled()

    assert await customer.images() == entries(0)


async def test_role_scale_up(customer, controller):
    await customer.create(a_role(replicas=1))
    await customer.settled()
    [before] = (await customer.uids()).values()
    await customer.patch(template={"roles": [a_role(replicas=3)]})
    await customer.has(instances(0, 1, 2))

    assert (await customer.uids())["0-decode-0-0"] == before


async def test_role_scale_down(customer, controller):
    await customer.create(a_role(replicas=3))
    await customer.settled()
    await customer.patch(template={"roles": [a_role(replicas=1)]})

    await customer.has(instances(0))


async def test_serving_group_recreate(customer, controller):
    await customer.create(a_role(), a_role("prefill"), recoveryPolicy="InferGroupRecreate")
    await customer.settled()
    before = await customer.uids()
    await customer.delete_pod("0-decode-0-0")

    async def renewed():
        after = await customer.uids()
        return before.keys() == after.keys() and not set(before.values()) & set(after.values())

    await eventually(renewed)
    await customer.settled()


async def test_headless_service_delete_on_serving_group_delete(customer, controller):
    await customer.create(a_role(workers=1), replicas=3)
    await customer.settled()
    three = await customer.services()
    await customer.patch(replicas=1)

    async def one():
        return await customer.services() == [f"{customer.name}-0-decode-0-0"]

    assert len(three) == 3
    await eventually(one)


async def test_pod_recovery(customer, controller):
    await customer.create(recoveryPolicy="RoleRecreate")
    await customer.settled()
    [before] = (await customer.pods()).values()
    await customer.delete_pod("0-decode-0-0")

    async def back():
        pods = await customer.pods()
        return len(pods) == 1 and pods["0-decode-0-0"].metadata.uid != before.metadata.uid

    await eventually(back)
    assert (await customer.pods())["0-decode-0-0"].metadata.labels == before.metadata.labels


async def test_service_recovery(customer, controller):
    await customer.create(a_role(workers=1))
    await customer.settled()
    [name] = await customer.services()
    before = await customer.call(customer.core.read_namespaced_service, name, NAMESPACE)
    await customer.call(customer.core.delete_namespaced_service, name, NAMESPACE)

    async def back():
        with contextlib.suppress(official.ApiException):
            service = await customer.call(customer.core.read_namespaced_service, name, NAMESPACE)
            return service.metadata.uid != before.metadata.uid
        return False

    await eventually(back)
    after = await customer.call(customer.core.read_namespaced_service, name, NAMESPACE)
    assert after.spec.selector == before.spec.selector
    assert after.spec.cluster_ip == "None"


async def test_duplicate_host_aliases(customer, controller):
    role = a_role()
    role["entryTemplate"]["spec"]["hostAliases"] = [
        {"ip": "10.0.0.1", "hostnames": ["a"]},
        {"ip": "10.0.0.1", "hostnames": ["b"]},
    ]
    await customer.create(role)
    await customer.settled()

    [pod] = (await customer.pods()).values()
    assert [name for alias in pod.spec.host_aliases for name in alias.hostnames] == ["a", "b"]


async def test_rolling_update(customer, controller):
    await customer.create(replicas=3)
    await customer.settled()
    first = (await customer.status())["currentRevision"]
    await customer.image("sim:2")
    await customer.rolled("sim:2")

    status = await customer.status()
    assert status["currentRevision"] == status["updateRevision"] != first
    assert (status["updatedReplicas"], status["currentReplicas"]) == (3, 3)


async def test_rolling_update_max_unavailable(customer, controller):
    await customer.create(replicas=4, rolloutStrategy=rolling(maxUnavailable=2))
    await customer.settled()
    await customer.image("sim:2")
    counts = []

    async def look():
        counts.append(await customer.ready_pods())

    await customer.rolled("sim:2", look)

    assert min(counts) >= 2


async def test_rolling_update_max_unavailable_with_bad_image(customer, controller):
    await customer.create(replicas=6, rolloutStrategy=rolling(maxUnavailable=2))
    await customer.settled()
    await customer.image("bad")
    await customer.has(entries(0, 1, 2, 3) | entries(4, 5, image="bad"))

    async def told():
        return "ImagePullBackOff" in (await customer.condition("Available"))["message"]

    async def idle():
        return not controller.waiting

    await eventually(told)
    await eventually(idle)
    assert await customer.images() == entries(0, 1, 2, 3) | entries(4, 5, image="bad")
    assert await customer.ready_pods() == 4


async def test_role_status_events(customer, controller):
    await customer.create()
    await customer.settled()

    async def told():
        events = await customer.call(customer.core.list_namespaced_event, NAMESPACE)
        reasons = {event.reason for event in events.items if event.involved_object.name == customer.name}
        return {"RoleCreating", "RoleRunning"} <= reasons

    await eventually(told)


async def test_lws_standard_labels(customer, controller):
    await customer.create(a_role("default", workers=1), plugins=[{"name": "lws-standard-labels"}])
    await customer.settled()

    labels = {name: pod.metadata.labels for name, pod in (await customer.pods()).items()}
    prefix = "leaderworkerset.sigs.k8s.io/"
    found = {
        name: (one[f"{prefix}name"], one[f"{prefix}group-index"], one[f"{prefix}worker-index"])
        for name, one in labels.items()
    }
    assert found == {"0-default-0-0": (customer.name, "0", "0"), "0-default-0-1": (customer.name, "0", "1")}
    assert len({one[f"{prefix}group-key"] for one in labels.values()}) == 1
    for pod in (await customer.pods()).values():
        [owner] = pod.metadata.owner_references
        assert (owner.kind, owner.controller, owner.block_owner_deletion) == ("ModelInfer", True, True)


@pytest.fixture
async def partitioned(customer, controller):
    """Five groups, of which the first three are kept at their revision; gives that revision."""
    await customer.create(replicas=5)
    await customer.settled()
    first = (await customer.status())["currentRevision"]
    await customer.patch(rolloutStrategy=rolling(partition=3), template={"roles": [a_role(image="sim:2")]})
    await customer.has(entries(0, 1, 2) | entries(3, 4, image="sim:2"))
    await customer.settled()
    return first


async def test_partition_boundary_protection(customer, partitioned):
    status = await customer.status()

    assert (status["currentRevision"], status["updatedReplicas"]) == (partitioned, 2)
    assert (await customer.condition("UpdateInProgress"))["reason"] == "Partitioned"


async def test_partition_deleted_group_historical_revision(customer, partitioned):
    before = await customer.uids()
    await customer.delete_pod("1-decode-0-0")

    async def back():
        uid = (await customer.uids()).get("1-decode-0-0", before["1-decode-0-0"])
        return uid != before["1-decode-0-0"] and await customer.is_settled()

    await eventually(back)
    pod = (await customer.pods())["1-decode-0-0"]
    assert pod.spec.containers[0].image == "sim:1"
    assert pod.metadata.labels[workload.REVISION_LABEL] == partitioned


async def test_partition_scale_up(customer, partitioned):
    await customer.patch(replicas=7)
    await customer.has(entries(0, 1, 2) | entries(3, 4, 5, 6, image="sim:2"))

    assert (await customer.status())["currentRevision"] == partitioned


async def test_partition_scale_down(customer, partitioned):
    await customer.patch(replicas=3)
    await customer.has(entries(0, 1, 2))
    await customer.settled()

    status = await customer.status()
    assert (status["updatedReplicas"], status["currentReplicas"]) == (0, 3)


async def test_controller_manager_restart(customer, staged, node):
    await customer.create(a_role(workers=2), a_role("prefill", workers=1), replicas=5)
    for pause in (0.05, 0.1, 0.2):
        async with controlling(staged):
            await asyncio.sleep(pause)
    async with controlling(staged):
        await customer.settled()

        assert len(await customer.pods()) == 25


async def test_role_based_rolling_update(customer, controller):
    await customer.create(a_role(), a_role("prefill"), rolloutStrategy=BY_ROLE)
    await customer.settled()
    before = await customer.uids()
    await customer.image("", a_role(), a_role("prefill", image="sim:2"))
    await customer.has({"0-decode-0-0": "sim:1", "0-prefill-0-0": "sim:2"})
    await customer.settled()
    after = await customer.uids()

    assert after["0-decode-0-0"] == before["0-decode-0-0"]
    assert after["0-prefill-0-0"] != before["0-prefill-0-0"]


async def test_role_rolling_update_max_unavailable(customer, controller):
    await customer.create(a_role(replicas=4, maxUnavailable=2), rolloutStrategy=BY_ROLE)
    await customer.settled()
    await customer.image("", a_role(replicas=4, maxUnavailable=2, image="bad"))
    await customer.has(instances(0, 1) | instances(2, 3, image="bad"))

    async def idle():
        return not controller.waiting

    await eventually(idle)
    assert await customer.images() == instances(0, 1) | instances(2, 3, image="bad")
    assert await customer.ready_pods() == 2


@pytest.fixture
async def role_partitioned(customer, controller):
    """One group with four instances of a role, of which the first two are kept at their revision."""
    await customer.create(a_role(replicas=4), rolloutStrategy=BY_ROLE)
    await customer.settled()
    await customer.image("", a_role(replicas=4, partition=2, image="sim:2"))
    await customer.has(instances(0, 1) | instances(2, 3, image="sim:2"))
    await customer.settled()


async def test_role_rolling_update_partition(customer, role_partitioned):
    assert (await customer.condition("UpdateInProgress"))["reason"] == "Partitioned"


async def test_role_partition_scale_up(customer, role_partitioned):
    before = await customer.uids()
    await customer.delete_pod("0-decode-0-0")

    async def back():
        return (await customer.uids()).get("0-decode-0-0", before["0-decode-0-0"]) != before["0-decode-0-0"]

    await eventually(back)
    await customer.image("", a_role(replicas=6, partition=2, image="sim:2"))

    await customer.has(instances(0, 1) | instances(2, 3, 4, 5, image="sim:2"))


async def test_role_partition_scale_down(customer, controller):
    await customer.create(a_role(replicas=5), rolloutStrategy=BY_ROLE)
    await customer.settled()
    for index in range(5):
        await customer.cost(f"0-decode-{index}-0", 10 * index)  # by cost alone, the protected ones would go first
    await customer.image("", a_role(replicas=3, partition=3))

    await customer.has(instances(0, 1, 2))


async def test_bin_pack_scale_down_serving_group(customer, controller):
    await customer.create(replicas=4)
    await customer.settled()
    for ordinal, cost in enumerate((0, 50, 100, 10)):
        await customer.cost(f"{ordinal}-decode-0-0", cost)
    await customer.patch(replicas=1)

    await customer.has(entries(2))


async def test_bin_pack_scale_down_role(customer, controller):
    await customer.create(a_role(replicas=4))
    await customer.settled()
    for index, cost in enumerate((0, 100, 50, 10)):
        await customer.cost(f"0-decode-{index}-0", cost)
    await customer.patch(template={"roles": [a_role(replicas=1)]})

    await customer.has(instances(1))


async def test_bin_pack_scale_down_combined(customer, controller):
    await customer.create(a_role("prefill", replicas=2), a_role(), replicas=2)
    await customer.settled()
    await customer.cost("0-prefill-1-0", 10)
    await customer.cost("0-decode-0-0", 100)
    await customer.patch(replicas=1, template={"roles": [a_role("prefill", replicas=1), a_role()]})

    await customer.has({"0-decode-0-0": "sim:1", "0-prefill-1-0": "sim:1"})


async def test_status_aware_priority_scale_down_serving_group(customer, controller):
    await customer.create(gated(a_role()), replicas=4)
    await customer.settled()
    for ordinal in range(4):
        await customer.cost(f"{ordinal}-decode-0-0", 100 if ordinal == 1 else 0)
    await customer.close_gate("1-decode-0-0")
    await customer.patch(replicas=3)

    await customer.has(entries(0, 2, 3))


async def test_status_aware_priority_scale_down_role(customer, controller):
    await customer.create(gated(a_role(replicas=4)))
    await customer.settled()
    await customer.cost("0-decode-1-0", 100)
    await customer.close_gate("0-decode-1-0")
    await customer.patch(template={"roles": [gated(a_role(replicas=3))]})

    await customer.has(instances(0, 2, 3))


async def test_webhook_negative_replicas(customer):
    """Both doors: the object itself, and its scale subresource, whose words the peers' case looks for."""
    with pytest.raises(official.ApiException) as refused:
        await customer.create(replicas=-1)
    assert "spec.replicas" in refused.value.body
    await customer.create()
    with pytest.raises(official.ApiException) as scaled:
        await customer.scale(-1)

    assert "greater than or equal to 0" in scaled.value.body or "non-negative" in scaled.value.body
