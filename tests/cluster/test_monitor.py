"""What the control plane's process shows of itself."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import aiohttp

from controllers.__main__ import _parser
from controllers.webhooks.server import Webhooks
from matrixinfer.cluster.loop import Controller, Loop, itself
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.monitor import Monitor, serve
from matrixinfer.cluster.plan import Plan
from tests.cluster.conformance import WIDGET, a_widget, eventually

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()


async def get(port: int, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{port}{path}") as answer:
        return answer.status, await answer.text()


async def test_a_process_is_ready_when_it_knows_the_world_and_counts_what_it_does():
    cluster, monitor = MemoryCluster(), Monitor()
    controller = Controller("tester", lambda _key, _world, _now: Plan(), {WIDGET: itself(WIDGET)})
    loop = Loop(cluster, controller, report=monitor.reconciled("tester"))
    monitor.watch("tester", loop)
    monitor.request("apply", "widgets", 200, 0.01)
    await cluster.create(WIDGET, a_widget("default"))
    async with serve(monitor, "127.0.0.1", 0) as port:
        assert await get(port, "/healthz") == (200, "ok\n")
        assert await get(port, "/readyz") == (503, "tester: not everything has been listed yet\n")

        running = asyncio.create_task(loop.run())

        async def ready() -> bool:
            return await get(port, "/readyz") == (200, "ok\n")

        async def counted() -> bool:
            _, page = await get(port, "/metrics")
            return 'matrixinfer_reconciles_total{controller="tester",outcome="done"} 1.0' in page

        await eventually(ready)
        await eventually(counted)
        _, page = await get(port, "/metrics")
        assert 'matrixinfer_cluster_requests_total{code="200",resource="widgets",verb="apply"} 1.0' in page
        loop.stop()
        await running


def test_the_page_has_every_metric_and_flag():
    registry = Monitor().registry
    Webhooks(registry)
    metrics = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    flags = {option for action in _parser()._actions for option in action.option_strings if option.startswith("--")}

    assert set(re.findall(r"^\| `(matrixinfer_\w+)`", PAGE, re.MULTILINE)) == metrics
    rows = [line.split(" | ")[0] for line in PAGE.splitlines() if line.startswith("| `--")]
    assert {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)`", row)} == flags - {"--help"}
