"""LeaderWorkerSets on a real API server: the peers' black-box case LWSAPIBasic, and what comes of changing one."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import yaml

from controllers.leaderworkersets import reconcile
from matrixinfer.api import kinds
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.cluster.loop import Loop
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import official_client, own_control_plane
from tests.kubernetes.stage import NAMESPACE, User, controlling, is_ready, noded
from tests.leaderworkersets.builders import a_set, a_template, the_crd

WHERE = (kinds.LEADER_WORKER_SET.group, kinds.LEADER_WORKER_SET.version, NAMESPACE, kinds.LEADER_WORKER_SET.plural)
PREFIX = "leaderworkerset.sigs.k8s.io/"


@pytest.fixture(scope="module")
def lws_plane(tmp_path_factory):
    crd = tmp_path_factory.mktemp("lws") / "crd.yaml"
    crd.write_text(yaml.safe_dump(the_crd()))
    with own_control_plane(crds=[*control_plane.OUR_CRDS, crd]) as plane:
        yield plane


@contextlib.asynccontextmanager
async def adapted(plane, writes):
    """Run both controllers and a node."""

    def report(verb, resource, *_):
        if verb not in ("list", "watch"):
            writes.append((verb, resource))

    async with (
        noded(plane),
        controlling(plane),
        ApiServer(credentials.kubeconfig(str(plane.kubeconfig)), report=report) as server,
    ):
        loop = Loop(server, reconcile.controller())
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_lws_api_basic(lws_plane):
    user = User(official_client(lws_plane), "demo")
    custom = user.custom
    writes: list[tuple[str, str]] = []

    async def the_set():
        return await user.call(custom.get_namespaced_custom_object, *WHERE, "demo")

    async def ready(groups):
        status = (await the_set()).get("status", {})
        return status.get("readyReplicas") == groups == status.get("replicas")

    async with adapted(lws_plane, writes) as loop:
        made = await user.call(custom.create_namespaced_custom_object, *WHERE, a_set(size=2))
        await eventually(lambda: ready(1))
        infer, pods = await user.infer(), await user.pods()

        await user.call(custom.patch_namespaced_custom_object_scale, *WHERE, "demo", {"spec": {"replicas": 2}})
        await eventually(lambda: ready(2))
        scale = await user.call(custom.get_namespaced_custom_object_scale, *WHERE, "demo")
        image = {"spec": {"leaderWorkerTemplate": {"workerTemplate": a_template("sim:2")}}}
        await user.call(custom.patch_namespaced_custom_object, *WHERE, "demo", image)

        async def updated():
            status = (await the_set())["status"]
            return status["updatedReplicas"] == 2 == status["readyReplicas"]

        await eventually(updated)
        await user.rolled("sim:2")
        await eventually(updated)
        loop.refresh()
        await asyncio.wait_for(_at_rest(loop), 10)
        writes.clear()
        loop.refresh()
        await asyncio.wait_for(_at_rest(loop), 10)
        idle = list(writes)
        await user.call(custom.delete_namespaced_custom_object, *WHERE, "demo")
        await user.has({})

    [owner] = infer["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("LeaderWorkerSet", made["metadata"]["uid"])
    assert (owner["controller"], owner["blockOwnerDeletion"]) == (True, True)
    assert sorted(pods) == ["0-default-0-0", "0-default-0-1"]
    assert all(is_ready(pod) for pod in pods.values())
    assert {
        (pod.metadata.labels[f"{PREFIX}name"], pod.metadata.labels[f"{PREFIX}worker-index"]) for pod in pods.values()
    } == {("demo", "0"), ("demo", "1")}
    env = {entry.name: entry.value for entry in pods["0-default-0-1"].spec.containers[0].env}
    assert env["LWS_LEADER_ADDRESS"] == "$(ENTRY_ADDRESS)"
    assert list(env).index("ENTRY_ADDRESS") < list(env).index("LWS_LEADER_ADDRESS")
    assert scale["status"]["selector"]
    assert idle == []


async def _at_rest(loop):
    while loop.waiting:  # noqa: ASYNC110 - the loop announces nothing
        await asyncio.sleep(0.02)
