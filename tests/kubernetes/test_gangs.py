"""Gangs on a real API server: Volcano's PodGroups, which nobody heeds here, and the API server's own with the real scheduler."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import yaml
from kubernetes import client as official

from controllers.__main__ import gangs_served
from controllers.modelinfer.gangs import Served
from matrixinfer.api import kinds
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local.hollow import HollowNode
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import official_client, own_control_plane
from tests.kubernetes.stage import NAMESPACE, User, controlling, noded
from tests.kubernetes.volcano import pod_group_crd
from tests.modelinfer.village import a_role

GANG = {"gangPolicy": {}}
GATES = (
    "--scheduler",
    "--apiserver=--feature-gates=GenericWorkload=true,GangScheduling=true",
    "--apiserver=--runtime-config=scheduling.k8s.io/v1alpha2=true",
)


class Planner(User):
    """Somebody who looks at PodGroups, too."""

    kind = kinds.VOLCANO_POD_GROUP

    async def pod_groups(self):
        where = (self.kind.group, self.kind.version, NAMESPACE, self.kind.plural)
        found = await self.call(self.custom.list_namespaced_custom_object, *where)
        prefix = f"{self.name}-"
        return {
            one["metadata"]["name"].removeprefix(prefix): one
            for one in found["items"]
            if one["metadata"]["name"].startswith(prefix)
        }


class Schedulers(Planner):
    """The API server's own PodGroups."""

    kind = kinds.IN_TREE_POD_GROUP


def asking(role, cpu="1"):
    for template in ("entryTemplate", "workerTemplate"):
        for container in role.get(template, {"spec": {"containers": []}})["spec"]["containers"]:
            container["resources"] = {"requests": {"cpu": cpu}}
    return role


# Volcano


@pytest.fixture(scope="module")
def volcano(tmp_path_factory):
    crd = tmp_path_factory.mktemp("volcano") / "podgroups.yaml"
    crd.write_text(yaml.safe_dump(pod_group_crd(sub_groups=True)))
    with own_control_plane(crds=[*control_plane.OUR_CRDS, crd]) as plane:
        yield plane


async def served(plane):
    async with ApiServer(credentials.kubeconfig(str(plane.kubeconfig))) as server:
        return await gangs_served(server)


async def test_volcano_is_told_of_each_group_and_its_instances(volcano):
    planner = Planner(official_client(volcano), "demo")
    topology = {"groupPolicy": {"mode": "hard", "highestTierAllowed": 2}, "rolePolicy": {"mode": "soft"}}
    requests = []
    async with noded(volcano), controlling(volcano, requests) as loop:
        await planner.create(
            asking(a_role("prefill")),
            asking(a_role("decode", workers=2, replicas=2)),
            replicas=2,
            template={"gangPolicy": {"minRoleReplicas": {"decode": 1}}, "networkTopology": topology},
        )
        await planner.settled()
        groups, pod = await planner.pod_groups(), (await planner.pods())["1-decode-1-2"]
        infer = await planner.infer()
        before = await planner.uids()
        await planner.patch(template={"gangPolicy": {"minRoleReplicas": {"decode": 2}}})

        async def follows():
            return (await planner.pod_groups())["0"]["spec"]["minMember"] == 7

        await eventually(follows)
        await planner.settled()
        await eventually(lambda: _idle(loop))
        requests.clear()
        loop.refresh()
        await eventually(lambda: _idle(loop))
        after, written = await planner.uids(), [verb for verb, _ in requests if verb not in ("list", "watch")]
        await planner.scale(1)

        async def one():
            return list(await planner.pod_groups()) == ["0"]

        await eventually(one)
        await planner.delete()

        async def none():
            return not await planner.pod_groups()

        await eventually(none)

    assert await served(volcano) is Served.VOLCANO
    assert list(groups) == ["0", "1"]
    spec = groups["0"]["spec"]
    assert (spec["minMember"], spec["minResources"]) == (1 + 3, {"cpu": "4"})
    assert spec["networkTopology"] == {"mode": "hard", "highestTierAllowed": 2}
    assert [
        (one["name"], one["subGroupSize"], one["minSubGroups"], one["networkTopology"]["mode"])
        for one in spec["subGroupPolicy"]
    ] == [("prefill", 1, 1, "soft"), ("decode", 3, 1, "soft")]
    assert groups["0"]["metadata"]["ownerReferences"][0]["uid"] == infer["metadata"]["uid"]
    assert pod.spec.scheduler_name == "volcano"
    assert pod.metadata.annotations["scheduling.k8s.io/group-name"] == "demo-1"
    assert after == before
    assert written == []


async def test_an_older_volcano_is_told_of_tasks_and_what_it_cannot_do_is_said(volcano):
    look = official_client(volcano)
    definitions = official.ApiextensionsV1Api(look)
    name = "podgroups.scheduling.volcano.sh"
    for older in (True, False):
        stands = await asyncio.to_thread(definitions.read_custom_resource_definition, name)
        crd = pod_group_crd(sub_groups=not older)
        crd["metadata"]["resourceVersion"] = stands.metadata.resource_version
        await asyncio.to_thread(definitions.replace_custom_resource_definition, name, crd)
        if not older:
            break  # as it was, for whoever comes next
        planner = Planner(look, "old")
        async with noded(volcano), controlling(volcano):
            await planner.create(
                a_role("decode", workers=1, replicas=2), template={"networkTopology": {"rolePolicy": {}}}
            )
            await planner.settled()
            found, degraded = await planner.pod_groups(), await planner.condition("Degraded")
            await planner.delete()

        assert found["0"]["spec"]["minTaskMember"] == {"decode-0": 2, "decode-1": 2}
        assert (degraded["reason"], "1.14" in degraded["message"]) == ("GangUnavailable", True)


# The API server's own


@pytest.fixture(scope="module")
def gates():
    with own_control_plane(*GATES, crds=control_plane.OUR_CRDS) as plane:
        yield plane


class ScheduledNode(HollowNode):
    """Runs what the scheduler gives it, and has room for so many CPUs."""

    async def _tend(self, namespace, name):
        pod = self._pods.get(name, namespace)
        if pod is not None and pod["spec"].get("nodeName"):
            await super()._tend(namespace, name)


@contextlib.asynccontextmanager
async def scheduled_node(plane, name, cpus):
    look = official_client(plane)
    core = official.CoreV1Api(look)
    async with ApiServer(credentials.kubeconfig(str(plane.kubeconfig))) as server:
        task = asyncio.create_task(ScheduledNode(server, name=name).run())
        room = {"cpu": cpus, "memory": "64Gi", "pods": "100"}

        async def has_room():
            with contextlib.suppress(official.ApiException):
                body = {"status": {"capacity": room, "allocatable": room}}
                node = await asyncio.to_thread(core.patch_node_status, name, body)
                return any(one.type == "Ready" for one in node.status.conditions or ())
            return False

        await eventually(has_room)
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(core.delete_node, name)


async def test_all_pods_of_a_gang_are_placed_or_none(gates):
    planner = Schedulers(official_client(gates), "gang")
    async with scheduled_node(gates, "small", "1"), controlling(gates):
        await planner.create(asking(a_role(workers=1)), template=GANG)

        async def waits():
            pods = (await planner.pods()).values()
            return len(pods) == 2 and all(
                any(one.type == "PodScheduled" and one.status == "False" for one in pod.status.conditions or ())
                for pod in pods
            )

        await eventually(waits)
        placed = [pod.spec.node_name for pod in (await planner.pods()).values()]

        async def said():
            return "Unschedulable" in (await planner.condition("Available")).get("message", "")

        await eventually(said)
        async with scheduled_node(gates, "another", "1"):
            await planner.settled()
            nodes = {pod.spec.node_name for pod in (await planner.pods()).values()}
            [group] = (await planner.pod_groups()).values()
            await planner.delete()
            await planner.has({})

    assert await served(gates) is Served.IN_TREE
    assert placed == [None, None]
    assert nodes == {"small", "another"}
    assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
    [owner] = group["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("ModelInfer", "gang")


async def test_a_gang_whose_numbers_change_goes_on_and_is_counted_anew_when_it_begins_anew(gates):
    planner = Schedulers(official_client(gates), "counts")
    async with scheduled_node(gates, "large", "32"), controlling(gates):
        await planner.create(asking(a_role(replicas=3)), template=GANG)
        await planner.settled()
        first = (await planner.pod_groups())["0"]
        await planner.patch(template={"roles": [asking(a_role(replicas=2))]})
        await planner.has({f"0-decode-{index}-0": "sim:1" for index in range(2)})
        await planner.settled()
        before = await planner.uids()
        await planner.delete_pod("0-decode-0-0")  # alone it could never be three

        async def back():
            after = await planner.uids()
            return after.keys() == before.keys() and after != before

        await eventually(back)
        await planner.settled()
        kept, degraded = (await planner.pod_groups())["0"], await planner.condition("Degraded")
        await planner.patch(template={"roles": [asking(a_role(replicas=2, image="sim:2"))]})
        await planner.rolled("sim:2")
        anew = (await planner.pod_groups())["0"]
        await planner.delete()
        await planner.has({})

    assert kept["metadata"]["uid"] == first["metadata"]["uid"]
    assert degraded["status"] == "False"
    assert anew["metadata"]["uid"] != first["metadata"]["uid"]
    assert anew["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2


async def _idle(loop):
    return not loop.waiting
