"""The whole control plane over a memory cluster: manifests in, a real Envoy that serves, conditions that say so."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from controllers.__main__ import gateway_loop
from matrixinfer.api import kinds
from matrixinfer.cluster.memory import MemoryCluster
from tests.gateway.test_reconcile import a_pod, a_route, a_server
from tests.xds.stack import running

pytestmark = pytest.mark.envoy


async def programmed(cluster, kind, name="demo"):
    """Wait until Envoy has taken the object as it stands."""
    async with asyncio.timeout(10):
        while True:
            manifest = await cluster.get(kind, name, "default")
            for condition in manifest.get("status", {}).get("conditions", ()):
                if condition["type"] == "Programmed" and condition["status"] == "True":
                    return manifest["status"]
            await asyncio.sleep(0.02)


async def test_manifests_become_a_gateway_that_serves_and_edits_reach_it():
    async with running(served=False) as stack:
        stack.pick(0)
        cluster = MemoryCluster()
        async with gateway_loop(cluster, stack.config.gateway, f"unix:{stack.envoy.folder}/xds.sock") as loop:
            running_loop = asyncio.create_task(loop.run())
            pod = a_pod(ip="127.0.0.1", annotations={"networking.matrixinfer.ai/port": str(stack.engines[0].port)})
            status = pod.pop("status")
            created = await cluster.create(kinds.POD, pod)
            await cluster.update_status(kinds.POD, created | {"status": status})
            await cluster.create(kinds.MODEL_SERVER, a_server())
            await cluster.create(kinds.MODEL_ROUTE, a_route())
            await stack.envoy.start(None)

            server = await programmed(cluster, kinds.MODEL_SERVER)
            await programmed(cluster, kinds.MODEL_ROUTE)
            picked = await stack.envoy.request()
            await stack.picker.stop()
            unpicked = await stack.envoy.request()
            await cluster.create(kinds.MODEL_ROUTE, a_route("second", "demo"))
            await programmed(cluster, kinds.MODEL_ROUTE, "second")
            second = await stack.envoy.request(body=b'{"model":"second"}')

            running_loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running_loop

    assert server["readyEndpoints"] == 1
    assert [answer.status for answer in (picked, unpicked, second)] == [200, 200, 200]
