"""Several pickers that know nothing of each other: in virtual time what it costs, and real processes that must agree."""

import asyncio
import contextlib
import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extproc import plugins
from extproc.scheduling import config
from matrixinfer.cli.simulate import generate, simulation
from matrixinfer.cli.simulate.cluster import Cluster, Group
from matrixinfer.cluster import feed
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.local import ports
from tests.picker.running import Running, a_pod, a_route, a_server, eventually, put
from tests.simulator.running import Simulator

ONE = Cluster(engines=(Group(count=8),))
FOUR = replace(ONE, pickers=4)
FIFTH = replace(FOUR, pickers_join_at=(0.5,))
DEFAULT = config.load({"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}, plugins.BUILTIN)
TRACES = {
    "shared-prefix": "generate:shared-prefix?groups=96&prefix=6000&rate=60&requests=1000",
    "multi-turn": "generate:multi-turn?rate=45&requests=1200",
    "mooncake": "generate:mooncake?rate=6&requests=500",
}


@functools.cache
def run(name, cluster, *, exact=True):
    spec, kind = generate.kind(TRACES[name])
    trace = generate.made(spec, kind)
    return trace, simulation.run(trace, cluster, DEFAULT, exact=exact)


def hit_rate(trace, record, counted=slice(None)):
    return record.cached[counted].sum() / trace.prompt[counted].sum()


@pytest.mark.parametrize("name", TRACES)
def test_four_pickers_that_hear_the_same_events_find_what_one_finds(name):
    one, four = (hit_rate(*run(name, cluster)) for cluster in (ONE, FOUR))

    assert four >= 0.98 * one


def test_four_pickers_that_learn_of_their_own_decisions_alone_find_less():
    exact, learned = (hit_rate(*run("multi-turn", FOUR, exact=exact)) for exact in (True, False))

    assert learned < 0.9 * exact


@pytest.mark.parametrize("name", TRACES)
def test_a_picker_that_starts_later_finds_from_its_first_request_on_what_the_others_find(name):
    trace, record = run(name, FIFTH)
    second = np.arange(len(trace)) >= len(trace) // 2
    fifth = record.picker == 4

    assert not (fifth & ~second).any()
    assert 0.1 < fifth[second].mean() < 0.3  # it gets its share
    _, without = run(name, FOUR)
    assert hit_rate(trace, record, second) >= 0.98 * hit_rate(trace, without, second)
    first_ones = np.flatnonzero(fifth)[:50]
    theirs = np.flatnonzero(second & ~fifth)[:200]
    assert hit_rate(trace, record, first_ones) >= 0.8 * hit_rate(trace, record, theirs)  # few requests, of any length


def test_every_request_comes_to_one_picker_and_all_get_their_share():
    trace, record = run("multi-turn", FOUR)

    assert np.bincount(record.picker, minlength=4).min() > 0.2 * len(trace)
    assert (record.ttft_s > 0).all()


# ---- real processes: engines that publish over ZMQ, pickers that follow them


SHOWING = {  # its score is what an endpoint holds of the prompt
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [{"type": "prefix-cache-scorer", "parameters": {"minTrunkTokens": 0}}],
}


def chain(number, length):
    return [1000 * number + at for at in range(length)]


class Behind:
    """A simulator, as `Running` and `a_pod` name engines."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.address = f"127.0.0.1:{simulator.port}"

    async def serve(self, prompt):
        body = {"model": "demo", "prompt": prompt, "max_tokens": 1}
        answered = await asyncio.to_thread(self.simulator.call, "/v1/completions", body)
        assert answered.status == 200


@contextlib.asynccontextmanager
async def a_picker_of(cluster, engines):
    with tempfile.TemporaryDirectory(prefix="picker") as folder:
        path = Path(folder)
        async with feed.serve(cluster, path / "c.sock", feed.KINDS):
            running = Running(path, cluster, engines)
            (path / "scheduling.yaml").write_text(json.dumps(SHOWING))
            await (await running.start("--config", str(path / "scheduling.yaml"))).serving()
            try:
                yield running
            finally:
                await running.stop()


async def matches(picker, prompt):
    """Blocks that each engine holds, as the picker knows it, by address."""
    answer = await picker.ask({"model": "demo", "prompt": prompt, "max_tokens": 1}, "/v1/completions")
    page = await picker.page(f"/decisions/{answer.dynamic_metadata['matrixinfer']['ticket']}")
    shares = {one["endpoint"]: one["scores"]["prefix-cache-scorer"] for one in page["candidates"]}
    return {address: round(share * page["blocks"]) for address, share in shares.items()}


async def test_a_picker_that_starts_later_knows_what_the_first_one_heard_as_soon_as_it_is_ready():
    cluster = MemoryCluster()
    with contextlib.ExitStack() as stack:
        engines = []
        for _ in range(2):
            events, replay = (ports.choose(0, option="port") for _ in range(2))
            flags = ("--kv-events-endpoint", f"tcp://127.0.0.1:{events}", "--topic", "kv@demo")
            flags += ("--replay-endpoint", f"tcp://127.0.0.1:{replay}")
            engines.append(Behind(stack.enter_context(Simulator(*flags))))
        for number, engine in enumerate(engines):
            await put(cluster, a_pod(engine, f"pod-{number}"))
        await put(cluster, a_server())
        await put(cluster, a_route())
        async with a_picker_of(cluster, engines) as first:
            for number in range(6):
                await engines[number % 2].serve(chain(number, 160))
                await engines[(number + 1) % 2].serve(chain(number, 16 * number + 1))  # the other holds its beginning

            async def heard():
                _, metrics = await first.get("/metrics", what="metrics")
                return 'matrixinfer_kv_blocks_total{event="stored"} 75.0' in metrics  # 6 * 10 + 0 + 1 + .. + 5

            await eventually(heard)
            async with a_picker_of(cluster, engines) as later:
                for number in range(6):
                    prompt = chain(number, 200)
                    told = await matches(first, prompt)

                    assert await matches(later, prompt) == told
                    assert sorted(told.values()) == sorted([10, number])
