"""What placing is worth behind a real Envoy, beside what the simulation says of the same: one trace, one cluster, all placings.

Engines are simulators with caches that hold a third of the prefixes each; the same prompts of token ids arrive at the same times
for every placing. Where a placing is told prefixes exactly, engines publish KV events and the picker follows them; otherwise it
learns from its decisions. The prediction is `matrixinfer simulate` over the same trace before the same engines.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from bench import load, table
from matrixinfer.cli.simulate import cluster, configurations, oracle, report, simulation, summary, traces
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from matrixinfer.cli.simulate.summary import Summary
    from matrixinfer.cli.simulate.trace import Trace

EXAMPLES: Final = Path(__file__).parents[1] / "examples" / "simulate"
ENGINES: Final = cluster.Cluster(
    engines=(
        cluster.Group(
            count=4,
            kv_blocks=2600,
            max_num_seqs=16,
            prefill_tokens_per_second=6000,
            itl_ms_base=30,
            itl_ms_per_sequence=2,
        ),
    )
)
TRACE: Final = "generate:shared-prefix?groups=32&prefix=4000&question=60&output=32&block=16"
RATE: Final = 12.0  # requests a second over all engines, 60 % of what they could serve; two cores run all of this
WARM: Final = 0.25  # of the requests, until every group has been seen; left out of the figures
WORDS: Final = 20_000  # token ids that prompts are made of
PLACING: Final = (
    ("random", False),
    ("round-robin", False),
    ("least-request", False),
    ("prefix", False),
    ("prefix", True),
    ("lmetric", False),
    ("lmetric", True),
    ("dynamo", True),
    ("default", False),
    ("default", True),
)
_USAGE: Final = re.compile(rb'"usage":\{"prompt_tokens":(\d+).*?"cached_tokens":(\d+)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Measured:
    """One placing behind Envoy."""

    hit_rate: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    failed: int


def manifests(*, events: bool) -> str:
    """Return engines, ModelServer and ModelRoute as YAML."""
    (shape,) = ENGINES.engines
    flags = ["--block-size", shape.block_size, "--kv-blocks", shape.kv_blocks, "--max-num-seqs", shape.max_num_seqs]
    flags += ["--prefill-tokens-per-second", shape.prefill_tokens_per_second]
    flags += ["--itl-ms-base", shape.itl_ms_base, "--itl-ms-per-sequence", shape.itl_ms_per_sequence]
    if events:
        flags += ["--kv-events-endpoint", "tcp://$(POD_IP):5557", "--replay-endpoint", "tcp://$(POD_IP):5558"]
    pods: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"engine-{number}", "labels": {"app": "demo"}},
            "spec": {
                "containers": [
                    {
                        "name": "engine",
                        "image": "matrixinfer/simulator",
                        "command": ["python", "-m", "engine.simulator"],
                        "args": ["--model", "demo", "--host", "$(POD_IP)", "--port", "8000", *map(str, flags)],
                        "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
                    }
                ]
            },
        }
        for number in range(shape.count)
    ]
    group = "networking.matrixinfer.ai/v1alpha1"
    server = {
        "apiVersion": group,
        "kind": "ModelServer",
        "metadata": {"name": "demo"},
        "spec": {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": "demo"}},
            "workloadPort": {"port": 8000},
        },
    }
    route = {
        "apiVersion": group,
        "kind": "ModelRoute",
        "metadata": {"name": "demo"},
        "spec": {"modelName": "demo", "rules": [{"targetModels": [{"modelServerName": "demo"}]}]},
    }
    return yaml.safe_dump_all([*pods, server, route])


def bodies(trace: Trace) -> list[bytes]:
    """Return the requests: a block of the trace is the same token ids wherever it stands."""
    made = []
    for number in range(len(trace)):
        ids = [word for block in trace.chain(number) for word in _words(block, trace.block_tokens)]
        ids += _words(-1 - number, int(trace.prompt[number]) - len(ids))
        output = int(trace.output[number])
        body = (
            f'{{"model":"demo","stream":true,"stream_options":{{"include_usage":true}},"max_tokens":{output},'
            f'"min_tokens":{output},"ignore_eos":true,"prompt":{ids}}}'
        )
        made.append(load.post("gateway", "/v1/completions", body.encode()))
    return made


def _words(seed: int, count: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(1, WORDS) for _ in range(count)]


async def _measure(folder: Path, trace: Trace, workload: list[bytes], *, placing: str, exact: bool) -> Measured:
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "demo.yaml").write_text(manifests(events=exact))
    config = Config(
        directory=site,
        port=0,
        admin_port=0,
        metrics_port=0,
        scheduling=None if placing == configurations.DEFAULT else EXAMPLES / f"{placing}.yaml",
        log_level="warning",
    )
    async with Stack(config) as stack:
        await stack.ready()
        samples = await _played(stack.url, trace, workload)
    counted = samples[int(WARM * len(samples)) :]
    usages = [found for sample in counted if (found := _USAGE.search(sample.body)) is not None]
    first = [sample.first_s * 1e3 for sample in counted]
    return Measured(
        hit_rate=sum(int(one[2]) for one in usages) / max(sum(int(one[1]) for one in usages), 1),
        ttft_p50_ms=load.percentile(first, 0.5),
        ttft_p99_ms=load.percentile(first, 0.99),
        failed=sum(sample.status != 200 for sample in samples),
    )


async def _played(url: str, trace: Trace, workload: list[bytes]) -> list[load.Sample]:
    """Send every request at its time, whatever comes back."""
    pool = load.Pool(url, keep_body=True)
    start = time.perf_counter()
    running = []
    for number, (at, request) in enumerate(zip(trace.at.tolist(), workload, strict=True)):
        await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
        running.append(asyncio.ensure_future(pool.exchange(number, request)))
    samples = await asyncio.gather(*running)
    pool.close()
    return list(samples)


def _predicted(trace: Trace, placing: configurations.Chosen) -> Summary:
    found = oracle.hits(trace, ENGINES)
    record = simulation.run(trace, ENGINES, placing.settings, exact=placing.exact)
    return summary.summary(
        record, trace, configuration=placing.name, load=0.0, slo=ENGINES.slo, found=found, warm_up=WARM
    )


async def run(folder: Path, *, seconds: float) -> None:
    """Print the table; each placing takes `seconds` and a start."""
    trace = traces.Source(TRACE, ENGINES, requests=int(RATE * seconds)).at_rate(RATE)
    workload = bodies(trace)
    files = [
        (name if name == configurations.DEFAULT else str(EXAMPLES / f"{name}.yaml"), exact) for name, exact in PLACING
    ]
    rows, pairs = [], []
    for placing, (name, exact) in zip(configurations.read(files), PLACING, strict=True):
        own = folder / placing.name.replace(", ", "-")
        real = await _measure(own, trace, workload, placing=name, exact=exact)
        said = _predicted(trace, placing)
        pairs.append((real.ttft_p50_ms, said.ttft_p50, real.hit_rate, said.hit_rate))
        rows.append(
            (
                placing.name,
                f"{real.hit_rate:.0%}",
                f"{said.hit_rate:.0%}",
                report.milliseconds(real.ttft_p50_ms),
                report.milliseconds(said.ttft_p50),
                report.milliseconds(real.ttft_p99_ms),
                report.milliseconds(said.ttft_p99),
                str(real.failed),
            )
        )
    best = oracle.rate(trace, ENGINES, oracle.hits(trace, ENGINES))
    title = (
        f"Behind Envoy and as predicted: {TRACE.removeprefix('generate:')}, {RATE:.0f} requests/s, "
        f"{RATE / best:.0%} of what {len(ENGINES.each)} engines could serve at best"
    )
    head = ("placing", "hits", "predicted", "TTFT p50", "predicted", "p99", "predicted", "failed")
    table.show(title, head, rows)
    real_p50, said_p50, real_hits, said_hits = (np.array(column) for column in zip(*pairs, strict=True))
    print(
        f"order of the placings: {_agreement(real_p50, said_p50)} by TTFT p50, {_agreement(real_hits, said_hits)} by hits"
    )


def _agreement(real: np.ndarray[Any, Any], said: np.ndarray[Any, Any]) -> str:
    """Say of how many pairs, of those that the prediction sets a tenth apart, both have the same order."""
    apart = [
        (one, other)
        for one in range(len(said))
        for other in range(one)
        if abs(said[one] - said[other]) > 0.1 * max(said[one], said[other])
    ]
    same = sum((real[one] < real[other]) == (said[one] < said[other]) for one, other in apart)
    return f"{same} of {len(apart)} pairs alike"
