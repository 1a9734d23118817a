"""That requests wait for an engine, written by the process beside a gateway's picker: with its own account's rights, on a real API server."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from matrixinfer.api import kinds
from matrixinfer.api.dataplane import HELD_ANNOTATION
from matrixinfer.cluster.feed import Feed
from matrixinfer.cluster.protocol import ClusterError
from matrixinfer.cluster.wakeup import MANAGER
from tests.cluster.conformance import eventually
from tests.gateway.test_reconcile import a_server
from tests.kubernetes.conftest import leave_out
from tests.kubernetes.spine import KUBECTL, MANIFESTS, Spine, kubectl


async def test_the_gateways_account_may_say_that_requests_wait_and_changes_nothing_else(plane, cluster, namespace):
    if not KUBECTL.exists():
        leave_out("kubectl is not there: `make kubetest` brings it")
    await asyncio.to_thread(kubectl, plane, "apply", "-f", MANIFESTS / "access.yaml")
    before = await cluster.create(
        kinds.MODEL_SERVER, a_server() | {"metadata": {"namespace": namespace, "name": "demo"}}
    )
    with tempfile.TemporaryDirectory(prefix="news-") as folder:
        path = Path(folder) / "feed"
        config = Spine(plane, Path(folder)).kubeconfig("matrixinfer-gateway")
        log = Path(folder) / "log"
        with log.open("wb") as said:
            news = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "matrixinfer.cluster", "--socket", path, "--kubeconfig", config), stderr=said
            )

        refused = f"ModelServer {namespace}/gone cannot be told that requests wait"

        async def heard():
            try:
                await Feed(path).held(namespace, "gone")  # of which nothing may come
                await Feed(path).held(namespace, "demo")
            except ClusterError:
                return False  # it does not listen yet
            return True

        async def written():
            found = await cluster.get(kinds.MODEL_SERVER, "demo", namespace)
            return HELD_ANNOTATION in found["metadata"].get("annotations", {}) and refused in log.read_text()

        try:
            await eventually(heard)
            await eventually(written)
        finally:
            news.terminate()
            code = await news.wait()
        problems = log.read_text().count("cannot be told")

    after = await cluster.get(kinds.MODEL_SERVER, "demo", namespace)
    listed = await cluster.list(kinds.MODEL_SERVER, namespace=namespace)
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert MANAGER in {each["manager"] for each in after["metadata"]["managedFields"]}
    assert [each["metadata"]["name"] for each in listed.items] == ["demo"]
    assert (code, problems) == (0, 1)
