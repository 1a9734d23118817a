"""ModelInfer on a real API server beyond the peers' cases: what people, nodes and other controllers do to it.

The peers' cases are in test_black_box_cases.py. Looked at with the official client.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from kubernetes import client as official

from controllers.__main__ import gangs_served, modelinfer_loop
from controllers.modelinfer.gangs import Served
from matrixinfer.api import workload
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.cluster.clock import ServerClock
from tests.cluster.conformance import eventually
from tests.kubernetes.stage import KIND, NAMESPACE, controlling
from tests.modelinfer.village import a_role, an_infer, rolling


async def revisions(customer):
    listed = await customer.call(customer.apps.list_namespaced_controller_revision, NAMESPACE, _preload_content=False)
    return json.loads(listed.data)["items"]


async def test_scale_subresource_and_its_selector(customer, controller):
    await customer.create()
    await customer.settled()
    await customer.scale(2)
    await customer.settled()
    scale = (await customer.scale(2))["status"]
    found = await customer.call(customer.core.list_namespaced_pod, NAMESPACE, label_selector=scale["selector"])

    assert scale["replicas"] == len(found.items) == 2


async def test_a_share_that_scale_has_brought_to_nothing_does_not_stop_a_rollout(customer, controller):
    await customer.create(replicas=4, rolloutStrategy=rolling(maxUnavailable="25%"))
    await customer.settled()
    await customer.scale(2)  # 25 % of 2 is less than one group, and /scale asks no webhook
    await customer.settled()
    await customer.image("sim:2")

    await customer.rolled("sim:2")


async def test_surge(customer, controller):
    await customer.create(replicas=3, rolloutStrategy=rolling(maxUnavailable=0, maxSurge=1))
    await customer.settled()
    await customer.image("sim:2")
    counts = []

    async def look():
        counts.append(await customer.ready_pods())

    await customer.rolled("sim:2", look)

    assert min(counts) == 3
    assert len(await customer.pods()) == 3


async def test_a_steady_world_is_left_alone(customer, staged, node):
    requests = []
    async with controlling(staged, requests) as loop:
        await customer.create(a_role(workers=1), replicas=3)
        await customer.settled()

        async def idle():
            """Nothing waits, and what was begun has been written, Events too."""
            before = len(requests)
            await asyncio.sleep(1)
            return not loop.waiting and len(requests) == before

        await eventually(idle)
        requests.clear()
        loop.refresh()
        await eventually(idle)

        assert not [one for one in requests if one[0] not in ("watch", "list")]


# Pods that somebody lays hands on


@pytest.mark.parametrize("label", [workload.ROLE_LABEL, workload.NAME_LABEL, workload.ENTRY_LABEL])
async def test_labels_that_were_taken_away_come_back(label, customer, controller):
    await customer.create()
    await customer.settled()
    before = await customer.uids()
    await customer.patch_pod("0-decode-0-0", {"metadata": {"labels": {label: None}}})

    async def back():
        pods = await customer.pods()
        return len(pods) == 1 and label in pods["0-decode-0-0"].metadata.labels

    await eventually(back)
    assert await customer.uids() == before


async def test_an_evicted_pod_is_made_anew(customer, controller):
    await customer.create(replicas=2)
    await customer.settled()
    before = await customer.uids()
    name = f"{customer.name}-1-decode-0-0"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
    await customer.call(customer.core.create_namespaced_pod_eviction, name, NAMESPACE, eviction)

    async def renewed():
        after = await customer.uids()
        return after.keys() == before.keys() and after["1-decode-0-0"] != before["1-decode-0-0"]

    await eventually(renewed)
    await customer.settled()
    assert (await customer.uids())["0-decode-0-0"] == before["0-decode-0-0"]


async def test_a_pod_that_was_taken_from_its_owner_is_left_alone_and_said_until_its_name_is_free(customer, controller):
    await customer.create()
    await customer.settled()
    before = await customer.uids()
    await customer.patch_pod("0-decode-0-0", [{"op": "remove", "path": "/metadata/ownerReferences"}])

    async def said():
        return (await customer.condition("Degraded")).get("reason") == "NameTaken"

    await eventually(said)
    message = (await customer.condition("Degraded"))["message"]
    taken = await customer.uids()
    await customer.delete_pod("0-decode-0-0")
    await customer.settled()

    assert f"{customer.name}-0-decode-0-0" in message
    assert "delete it" in message
    assert taken == before
    assert await customer.uids() != before


async def test_a_pod_with_our_labels_and_another_owner_is_neither_counted_nor_touched(customer, controller):
    await customer.create()
    await customer.settled()
    [ours] = (await customer.pods()).values()
    stranger = {
        "metadata": {"name": f"{customer.name}-stranger", "labels": ours.metadata.labels},
        "spec": {"containers": [{"name": "engine", "image": "sim:1"}]},
    }
    made = await customer.call(customer.core.create_namespaced_pod, NAMESPACE, stranger)
    await customer.scale(2)
    await customer.settled()
    await customer.scale(1)
    await customer.settled()

    assert await customer.uids() == {"0-decode-0-0": ours.metadata.uid, "stranger": made.metadata.uid}
    assert (await customer.status())["replicas"] == 1


async def test_a_pod_that_was_given_to_a_model_infer_by_hand_becomes_its_group(customer, controller):
    infer = await customer.create()
    await customer.settled()
    owner = {"apiVersion": infer["apiVersion"], "kind": "ModelInfer", "controller": True}
    owner |= {"name": customer.name, "uid": infer["metadata"]["uid"]}
    pod = {
        "metadata": {"name": f"{customer.name}-1-decode-0-0", "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "engine", "image": "other"}]},
    }
    await customer.call(customer.core.create_namespaced_pod, NAMESPACE, pod)  # one more than is wanted

    async def only_ours():
        found = await customer.call(customer.core.list_namespaced_pod, NAMESPACE)
        names = [one.metadata.name for one in found.items if one.metadata.name.startswith(f"{customer.name}-")]
        return names == [f"{customer.name}-0-decode-0-0"]

    await eventually(only_ours)
    await customer.settled()


# Others who write


async def test_who_fights_over_a_field_is_overruled_now_and_then_and_holds_up_nobody(customer, staged, node):
    writes = []
    async with controlling(staged, writes):
        await customer.create(a_role(workers=1))
        await customer.settled()
        [name] = await customer.services()
        changed = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}}
        changed["spec"] = {"publishNotReadyAddresses": False}
        overruled = asyncio.Event()

        async def fight():
            rounds = 0
            while True:
                service = await customer.call(customer.core.read_namespaced_service, name, NAMESPACE)
                if service.spec.publish_not_ready_addresses:
                    await customer.call(
                        customer.core.patch_namespaced_service,
                        name, NAMESPACE, changed, field_manager="fighter", force=True,
                        _content_type="application/apply-patch+yaml",
                    )  # fmt: skip
                    rounds += 1
                    if rounds == 7:  # five times at once, then after a second
                        overruled.set()

        fighter = asyncio.create_task(fight())
        try:
            writes.clear()
            await asyncio.wait_for(overruled.wait(), 60)
            await customer.scale(2)
            await customer.settled()
            assert not fighter.done()
        finally:
            fighter.cancel()
            await asyncio.gather(fighter, return_exceptions=True)

        async def ours_again():
            service = await customer.call(customer.core.read_namespaced_service, name, NAMESPACE)
            return service.spec.publish_not_ready_addresses is True

        await eventually(ours_again)
        services = [verb for verb, resource in writes if resource == "services" and verb not in ("list", "watch")]

    assert len(services) <= 20


async def test_a_stored_revision_is_numbered_anew_when_it_comes_back(customer, controller):
    await customer.create()
    await customer.settled()
    [first] = await revisions(customer)
    name = first["metadata"]["name"]
    await customer.image("sim:2")
    await customer.rolled("sim:2")
    await customer.image("sim:1")
    await customer.rolled("sim:1")

    again = next(one for one in await revisions(customer) if one["metadata"]["name"] == name)

    assert again["revision"] == 3
    assert again["data"] == first["data"]


async def test_a_stored_revision_that_was_taken_from_its_owner_is_taken_back(customer, controller):
    await customer.create()
    await customer.settled()
    [before] = await revisions(customer)
    orphan = [{"op": "remove", "path": "/metadata/ownerReferences"}]
    name = before["metadata"]["name"]
    await customer.call(customer.apps.patch_namespaced_controller_revision, name, NAMESPACE, orphan)

    async def owned_again():
        [after] = await revisions(customer)
        return after["metadata"].get("ownerReferences") == before["metadata"]["ownerReferences"]

    await eventually(owned_again)
    [after] = await revisions(customer)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["data"] == before["data"]


async def test_a_status_that_somebody_else_wrote_is_put_right(customer, controller):
    await customer.create()
    await customer.settled()
    body = {"status": {"availableReplicas": 7, "conditions": []}}
    await customer.call(customer.custom.patch_namespaced_custom_object_status, *KIND, customer.name, body)

    async def right():
        return (await customer.status())["availableReplicas"] == 1 and await customer.is_settled()

    await eventually(right)


async def test_a_pod_that_the_api_server_refuses_is_said_in_the_status_and_made_once_it_can_be(customer, controller):
    role = a_role()
    role["entryTemplate"]["spec"]["dnsPolicy"] = "Nonsense"
    await customer.create(role)

    async def said():
        degraded = await customer.condition("Degraded")
        return degraded.get("reason") == "Refused" and "dnsPolicy" in degraded["message"]

    await eventually(said)
    await customer.image("sim:1")
    await customer.settled()
    assert (await customer.condition("Degraded"))["status"] == "False"


# A spec that is edited in the middle


async def test_a_spec_that_is_edited_in_the_middle_of_a_rollout_is_where_everything_goes(customer, controller):
    await customer.create(replicas=5)
    await customer.settled()
    await customer.image("sim:2")

    async def begun():
        return "sim:2" in (await customer.images()).values()

    await eventually(begun)
    await customer.image("sim:3")
    least = []

    async def look():
        least.append(await customer.ready_pods())

    await customer.rolled("sim:3", look)

    assert min(least) >= 4
    status = await customer.status()
    assert status["currentRevision"] == status["updateRevision"]


async def test_going_back_in_the_middle_leaves_what_was_not_touched_yet(customer, controller):
    await customer.create(replicas=4, rolloutStrategy=rolling(maxUnavailable=1))
    await customer.settled()
    before = await customer.uids()
    await customer.image("bad")  # which stops after one group
    await customer.has({f"{ordinal}-decode-0-0": "bad" if ordinal == 3 else "sim:1" for ordinal in range(4)})
    await customer.image("sim:1")
    await customer.rolled("sim:1")
    after = await customer.uids()

    assert {name for name in before if before[name] == after[name]} == {f"{n}-decode-0-0" for n in range(3)}


async def test_replicas_roles_and_template_edited_at_once_in_a_rollout(customer, controller):
    await customer.create(a_role(), a_role("prefill"), replicas=3)
    await customer.settled()
    await customer.image("", a_role(image="sim:2"), a_role("prefill"))
    await customer.patch(replicas=2, template={"roles": [a_role(image="sim:3", replicas=2), a_role("extra")]})
    await customer.has(
        {f"{group}-decode-{index}-0": "sim:3" for group in range(2) for index in range(2)}
        | {f"{group}-extra-0-0": "sim:1" for group in range(2)}
    )
    await customer.settled()


# Clocks


async def test_a_controller_whose_clock_is_an_hour_slow_makes_anew_what_a_node_has_evicted(customer, staged, node):
    async with ApiServer(credentials.kubeconfig(str(staged.kubeconfig))) as server:
        server.clock = ServerClock(lambda: time.time() - 3600)
        loop = modelinfer_loop(server, clock=server.clock)
        task = asyncio.create_task(loop.run())
        try:
            await customer.create(replicas=2)
            await customer.settled()
            before = await customer.uids()
            name = f"{customer.name}-0-decode-0-0"
            said = {"status": {"phase": "Failed", "reason": "Evicted"}}
            await customer.call(customer.core.patch_namespaced_pod_status, name, NAMESPACE, said)

            async def renewed():
                after = await customer.uids()
                return after.keys() == before.keys() and after != before

            await eventually(renewed)
            await customer.settled()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_what_the_schema_refuses(customer):
    for wrong, expected in (
        ({"recoveryPolicy": "Never"}, "recoveryPolicy"),
        ({"rolloutStrategy": rolling(maxUnavailable="120%")}, "percentage"),
        ({"template": {"roles": [a_role("a"), a_role("a")]}}, "two roles have the same name"),
        ({"template": {"roles": [{**a_role("a"), "workerReplicas": 1}]}}, "workerTemplate"),
        ({"recoveryPolicy": "InferGroupRecreate", "rolloutStrategy": {"type": "RoleRollingUpdate"}}, "RoleRecreate"),
        ({"template": {"roles": [a_role("r" * 12)]}, "replicas": 1_000_000}, ""),
    ):
        manifest = an_infer(name="n" * 40)
        manifest["spec"] |= wrong
        with pytest.raises(official.ApiException) as refused:
            await customer.submit(manifest)
        assert expected in refused.value.body, refused.value.body


async def test_an_api_server_without_volcano_says_so(staged):
    async with ApiServer(credentials.kubeconfig(str(staged.kubeconfig))) as server:
        assert await gangs_served(server) in (Served.NOTHING, Served.IN_TREE)
