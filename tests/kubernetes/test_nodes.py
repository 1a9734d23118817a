"""The nodes of tests on a real API server: pods become processes, or only say that they run."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest
import yaml
from kubernetes import client as official

from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, Settings
from matrixinfer.local.hollow import HollowNode
from matrixinfer.local.node import Node
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import access, official_client, own_control_plane

QUICKSTART = control_plane.ROOT / "examples" / "quickstart"


@pytest.fixture(scope="module")
def own_plane():
    """A control plane whose pods are all for the nodes of this module, one node after the other."""
    with own_control_plane() as plane:
        yield plane


@contextlib.asynccontextmanager
async def running(work):
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_simulators_pod_becomes_a_process_that_answers(own_plane, tmp_path):
    [pod, *_] = [
        document
        for file in sorted(QUICKSTART.glob("*.yaml"))
        for document in yaml.safe_load_all(file.read_text())
        if document["kind"] == "Pod"
    ]
    core = official.CoreV1Api(official_client(own_plane))
    addresses = Addresses()
    async with ApiServer(access(own_plane)) as server:
        node = Node(server, addresses=addresses, settings=Settings(tmp_path, Backoff(0.1, 1)), shutdown_grace_s=5)
        async with running(node.run()):
            await asyncio.to_thread(core.create_namespaced_pod, "default", pod)
            name = pod["metadata"]["name"]

            async def ready() -> bool:
                seen = await asyncio.to_thread(core.read_namespaced_pod, name, "default")
                return any(item.type == "Ready" and item.status == "True" for item in seen.status.conditions or ())

            await eventually(ready)
            seen = await asyncio.to_thread(core.read_namespaced_pod, name, "default")
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"http://{seen.status.pod_ip}:8000/v1/models") as answer,
            ):
                assert (await answer.json())["data"][0]["id"] == "demo"
            assert seen.spec.node_name == "local"
            [condition] = (await asyncio.to_thread(core.read_node, "local")).status.conditions
            assert (condition.type, condition.status) == ("Ready", "True")

            await asyncio.to_thread(core.delete_namespaced_pod, name, "default")

            async def gone() -> bool:
                return not (await asyncio.to_thread(core.list_namespaced_pod, "default")).items

            await eventually(gone)
            assert node.pids() == {}
    addresses.close()


@pytest.mark.timeout(180)
async def test_a_hollow_node_makes_many_pods_ready_and_lets_them_go(own_plane):
    apps = official.AppsV1Api(official_client(own_plane))
    core = official.CoreV1Api(official_client(own_plane))
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"replicas": 100, "selector": {"matchLabels": {"app": "x"}}, "template": template}
    async with ApiServer(access(own_plane)) as server, running(HollowNode(server).run()):
        await asyncio.to_thread(apps.create_namespaced_deployment, "default", {"metadata": {"name": "d"}, "spec": spec})

        async def ready() -> bool:
            seen = await asyncio.to_thread(apps.read_namespaced_deployment, "d", "default")
            return seen.status.ready_replicas == 100

        await eventually(ready)
        pods = (await asyncio.to_thread(core.list_namespaced_pod, "default")).items
        assert len({pod.status.pod_ip for pod in pods}) == 100

        await asyncio.to_thread(apps.delete_namespaced_deployment, "d", "default")

        async def gone() -> bool:
            return not (await asyncio.to_thread(core.list_namespaced_pod, "default")).items

        await eventually(gone)
