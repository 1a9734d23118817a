"""InferenceObjectives with the picker's process: from the cluster's word to a request's priority, while they change."""

import asyncio
import tempfile
from pathlib import Path

from matrixinfer.api import kinds
from matrixinfer.cluster import feed
from matrixinfer.cluster.memory import MemoryCluster
from tests.flow.test_objectives import HEADER, a_manifest
from tests.picker.running import Engine, Running, a_picker, a_pod, a_route, a_server, eventually, put

ONE_AT_A_TIME = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
"""
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}


def reason(answer):
    named = {one.header.key: one.header.raw_value.decode() for one in answer.immediate_response.headers.set_headers}
    return named.get("x-matrixinfer-reason")


async def wait(picker, wanted):
    """Tell whether so many requests wait, by priority."""
    page = await picker.page("/queues")
    found = {at: band["waiting"] for pool in page["queues"].values() for at, band in pool["bands"].items()}
    return {at: count for at, count in found.items() if count} == wanted


async def test_a_request_has_the_priority_of_the_objective_that_it_names_as_it_is_now(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(ONE_AT_A_TIME)
    async with a_picker(engines=1, flags=("--config", str(config))) as picker:
        first = await picker.ask(CHAT)

        async def stated(priority):
            page = await picker.page("/queues")
            return page["objectives"].get("ns/engines") == priority

        await put(picker.cluster, a_manifest("batch", -1))
        await eventually(lambda: stated({"batch": -1}))
        assert reason(await picker.ask(CHAT, **{HEADER: "batch"})) == "shed"

        plain = asyncio.create_task(picker.ask(CHAT))
        await eventually(lambda: wait(picker, {"0": 1}))
        await put(picker.cluster, a_manifest("batch", 7))
        await eventually(lambda: stated({"batch": 7}))
        urgent = asyncio.create_task(picker.ask(CHAT, **{HEADER: "batch"}))
        unknown = asyncio.create_task(picker.ask(CHAT, **{HEADER: "another"}))
        await eventually(lambda: wait(picker, {"7": 1, "0": 2}))

        await picker.settle(first)
        await urgent
        assert await wait(picker, {"0": 2})
        await picker.settle(await urgent)
        await asyncio.wait({plain, unknown}, return_when=asyncio.FIRST_COMPLETED)
        assert plain.done()
        await picker.settle(await plain)
        await unknown
        await picker.cluster.delete(kinds.INFERENCE_OBJECTIVE, "batch", "ns")
        await eventually(lambda: stated(None))


async def test_a_picker_begins_where_it_is_not_told_of_objectives():
    """Beside it runs what knows no objectives, or whose account may not read them."""
    engine = await Engine().start()
    cluster = MemoryCluster()
    for manifest in (a_pod(engine, "pod-0"), a_server(), a_route(), a_manifest()):
        await put(cluster, manifest)
    known = [kind for kind in feed.KINDS if kind not in feed.MAY_BE_MISSING]
    with tempfile.TemporaryDirectory(prefix="picker") as folder:
        path = Path(folder)
        async with feed.serve(cluster, path / "c.sock", known):
            picker = Running(path, cluster, [engine])
            try:
                await (await picker.start()).serving()
                answer = await picker.ask(CHAT)
            finally:
                await picker.stop()
                engine.stop()

    assert not answer.HasField("immediate_response")
    assert any("is not served here" in each["message"] for each in picker.logs)
