"""What limits add to the picker's CPU for a short request: the same load with and without them, alternating in one run.

A `Variant` is one way to handle the same requests: what its route says of limits, and how the picker is configured. All
variants run at once, those of one configuration in one stack, and are loaded in turn; figures are medians of the rounds,
and what each adds to the first of them.
"""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from shutil import which
from typing import TYPE_CHECKING, Final

from bench import gateway, load, processes, table
from matrixinfer.local import counter
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SECONDS: Final = 4.0
CLIENTS: Final = 16
BUDGET_US: Final = 150  # what limits and fairness may add

ENGINES: Final = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {name: demo}
spec:
  inferenceEngine: vLLM
  workloadSelector: {matchLabels: {app: demo}}
  workloadPort: {port: 8000}
""" + "".join(
    f"""\
---
apiVersion: v1
kind: Pod
metadata: {{name: demo-{number}, labels: {{app: demo}}}}
spec:
  containers:
  - name: engine
    command: [python, -m, bench.stub, --host, $(POD_IP), --port, "8000"]
    readinessProbe: {{httpGet: {{path: /health, port: 8000}}}}
"""
    for number in range(2)
)
ROUTE: Final = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelRoute
metadata: {{name: {name}}}
spec:
  modelName: {name}
  rules: [{{targetModels: [{{modelServerName: demo}}]}}]
{limits}"""
THREE: Final = "requestsPerUnit: 100000000, inputTokensPerUnit: 4000000000, outputTokensPerUnit: 4000000000"
WORDS: Final = "words of its own " * 50


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to handle the same requests. `name` is what its model is called."""

    name: str
    what: str
    limits: str = ""  # of the route's spec, YAML
    scheduling: str = ""  # an EndpointPickerConfig; "": the picker's own defaults
    redis: bool = False


VARIANTS: Final = (
    Variant("plain", "no limits"),
    Variant("three", "three limits of a picker", f"  rateLimit: {{unit: minute, {THREE}}}\n"),
    Variant(
        "shared",
        "three limits in Redis",
        f"  rateLimit: {{unit: minute, {THREE}, global: {{redis: {{address: 'redis:6379'}}}}}}\n",
        redis=True,
    ),
)


async def run(folder: Path, *, rounds: int, variants: Sequence[Variant] = VARIANTS) -> None:
    """Print CPU per request of each variant, and what it adds to the first."""
    if which("redis-server") is None:
        print("\nno redis-server: without the variants that need it")
        variants = [one for one in variants if not one.redis]
    async with AsyncExitStack() as running:
        stacks: dict[str, Stack] = {}
        for one in variants:
            if one.scheduling not in stacks:
                alike = [other for other in variants if other.scheduling == one.scheduling]
                where = folder / f"limits-{len(stacks)}"
                stacks[one.scheduling] = await running.enter_async_context(_stack(where, alike))
        for stack in stacks.values():
            await stack.ready()
        spent: dict[str, list[tuple[float, float, float]]] = {one.name: [] for one in variants}
        for turn in range(rounds + 1):
            for one in variants:
                figures = await _round(stacks[one.scheduling], one)
                if turn:  # the first is for warming up
                    spent[one.name].append(figures)
    middles = {name: [statistics.median(column) for column in zip(*of, strict=True)] for name, of in spent.items()}
    base = middles[variants[0].name]
    rows = []
    for one in variants:
        picker, envoy, rate = middles[one.name]
        added = (f"{picker - base[0]:+.0f}", f"{envoy - base[1]:+.0f}")
        rows.append((one.what, f"{rate:.0f}", f"{picker:.0f}", added[0], f"{envoy:.0f}", added[1]))
    head = ("200 tokens, 16 clients", "req/s", "picker us", "added", "Envoy us", "added")
    table.show(f"What limits add to a request (at most {BUDGET_US} us of the picker)", head, rows)


def _stack(folder: Path, variants: Sequence[Variant]) -> Stack:
    folder.mkdir()
    routes = "---\n".join(ROUTE.format(name=one.name, limits=one.limits) for one in variants)
    (folder / "all.yaml").write_text(f"{ENGINES}---\n{routes}")
    scheduling = None
    if variants[0].scheduling:
        scheduling = folder.with_suffix(".scheduling")
        scheduling.write_text(variants[0].scheduling)
    return Stack(
        Config(
            directory=folder,
            port=0,
            admin_port=0,
            metrics_port=0,
            envoy_workers=1,
            log_level="warning",
            scheduling=scheduling,
            redis=counter.HERE if any(one.redis for one in variants) else "",
        )
    )


async def _round(stack: Stack, one: Variant) -> tuple[float, float, float]:
    """Load one variant; gives the picker's and Envoy's CPU per request in microseconds, and requests per second."""
    pids = stack.pids()
    names = ("picker", "envoy")
    before = [processes.cpu_s(pids[name]) for name in names]
    source = partial(_request, one.name)
    samples = await load.closed(stack.url, source, clients=CLIENTS, seconds=SECONDS)
    after = [processes.cpu_s(pids[name]) for name in names]
    failed = [sample for sample in samples if sample.status != gateway.OK]
    if failed:
        raise RuntimeError(f"{one.what}: {len(failed)} of {len(samples)} failed: {failed[0].head!r}")
    picker, envoy = ((b - a) * 1e6 / len(samples) for a, b in zip(before, after, strict=True))
    return picker, envoy, len(samples) / SECONDS


def _request(model: str, number: int) -> bytes:
    text = (f"request {number} " + WORDS)[: gateway.SHORT_CHARS]
    body = f'{{"model":"{model}","messages":[{{"role":"user","content":"{text}"}}]}}'
    return load.post("gateway", gateway.PATH, body.encode())
