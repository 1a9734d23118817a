"""Flow control, measured: what it adds to a request that need not wait, what a thousand that wait cost, and what a
tenant sees of another that floods.

    python -m bench flow

The flood is a closed loop of clients that send long prompts; the other tenant sends at a rate, one prompt in ten of them a
document. It is measured alone, beside the flood with shares by tokens, and beside the flood in the order of arrival.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp

from bench import limits, load, processes, table
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

OK: Final = 200
PARKED: Final = 1000
_AT_ONCE: Final = 50
WORD: Final = "word "  # a token in the simulator's tokenizer
RULES: Final = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {{type: concurrency-detector, parameters: {{maxConcurrency: {places}}}}}
- {{type: {policy}, name: shares}}
flowControl:
  saturationDetector: {{pluginRef: concurrency-detector}}
  defaultPriorityBand: {{fairnessPolicyRef: shares}}
"""
FAIR: Final = "virtual-token-counter-fairness-policy"
BY_ARRIVAL: Final = "global-strict-fairness-policy"
THREE: Final = f"  rateLimit: {{unit: minute, {limits.THREE}}}\n"
VARIANTS: Final = (
    limits.Variant("plain", "neither"),
    limits.Variant("three", "three limits", THREE),
    limits.Variant("fair", "flow control", scheduling=RULES.format(places=1000, policy=FAIR)),
    limits.Variant("both", "three limits, flow control", THREE, scheduling=RULES.format(places=1000, policy=FAIR)),
)
ENGINES: Final = 4
TENANTS: Final = """\
apiVersion: v1
kind: Secret
metadata: {name: api-keys}
stringData: {calm: sk-calm-0123456789, flood: sk-flood-0123456789}
---
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: AccessPolicy
metadata: {name: tenants}
spec:
  targetRefs: [{kind: Gateway}]
  apiKeys: {secretRefs: [{name: api-keys}]}
---
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelRoute
metadata: {name: demo}
spec:
  modelName: demo
  rules: [{targetModels: [{modelServerName: demo}]}]
---
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {name: demo}
spec:
  inferenceEngine: vLLM
  workloadSelector: {matchLabels: {app: demo}}
  workloadPort: {port: 8000}
"""
ENGINE: Final = """\
---
apiVersion: v1
kind: Pod
metadata: {{name: demo-{number}, labels: {{app: demo}}}}
spec:
  containers:
  - name: engine
    command: [python, -m, engine.simulator, --model, demo, --host, $(POD_IP), --port, "8000", --prefill-tokens-per-second, "20000"]
    env:
    - {{name: POD_IP, valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}}}
    readinessProbe: {{httpGet: {{path: /health, port: 8000}}, periodSeconds: 1}}
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What the two tenants send."""

    flood_clients: int = 100
    flood_tokens: int = 2000
    rate: float = 6.0  # requests a second of the other one
    tokens: int = 1000
    document_tokens: int = 16_000  # of each tenth of them


@dataclass(frozen=True, slots=True)
class Seen:
    """What the calm tenant saw: seconds to the first token, and how many tokens of prompts the flood had served meanwhile."""

    first_s: tuple[float, ...]
    flood_served: int

    def at(self, share: float) -> float:
        """Return a percentile."""
        return load.percentile(list(self.first_s), share)


async def run(folder: Path, *, rounds: int) -> None:
    """Print all figures."""
    await limits.run(folder, rounds=rounds, variants=VARIANTS)
    async with stack(folder / "flow-parked", "virtual-token-counter-fairness-policy", engines=1) as one:
        await one.ready()
        for size in (2_000, 40_000):
            await _show_parked(one, size)
    seen = {}
    for name, policy, flooded in (("alone", FAIR, False), ("flooded", FAIR, True), ("by arrival", BY_ARRIVAL, True)):
        async with stack(folder / f"flow-{name.replace(' ', '-')}", policy) as one:
            await one.ready()
            seen[name] = await tenants(one.url, seconds=40.0, flooded=flooded)
    rows = [
        (name, f"{one.at(0.5):.3f}", f"{one.at(0.99):.3f}", f"{one.at(0.99) / seen['alone'].at(0.99):.2f}")
        for name, one in seen.items()
    ]
    table.show(
        "Time to the first token of one tenant beside another that floods",
        ("", "p50 s", "p99 s", "p99, of alone"),
        rows,
    )


def stack(folder: Path, policy: str, *, engines: int = ENGINES, places: int = 1, more: str = "") -> Stack:
    """Return a gateway before simulated engines that take `places` requests each; `more` lines of its flow control."""
    folder.mkdir()
    (folder / "all.yaml").write_text(TENANTS + "".join(ENGINE.format(number=number) for number in range(engines)))
    scheduling = folder.with_suffix(".scheduling")
    scheduling.write_text(RULES.format(policy=policy, places=places) + more)
    return Stack(
        Config(
            directory=folder,
            port=0,
            admin_port=0,
            metrics_port=0,
            log_level="warning",
            scheduling=scheduling,
        )
    )


async def tenants(url: str, *, seconds: float, flooded: bool, sent: Load | None = None) -> Seen:
    """Let the two tenants send, and return what the calm one saw."""
    sent = sent or Load()
    began = time.monotonic_ns()  # in every prompt, so that none is in a cache already
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as http:
        served = _Served()
        flood = [
            asyncio.create_task(_flood(http, url, sent.flood_tokens, client + began, served))
            for client in range(sent.flood_clients if flooded else 0)
        ]
        if flooded:
            await served.begun.wait()
        before = served.requests
        asked = []
        for number in range(int(seconds * sent.rate)):
            long = number % 10 == 5
            asked.append(
                asyncio.create_task(
                    _first(http, url, sent.document_tokens if long else sent.tokens, f"calm {began} {number}")
                )
            )
            await asyncio.sleep(1 / sent.rate)
        first_s = await asyncio.gather(*asked)
        during = (served.requests - before) * sent.flood_tokens
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    return Seen(tuple(first_s), during)


def _body(who: str, tokens: int) -> bytes:
    document = {"model": "demo", "max_tokens": 2, "stream": True, "prompt": f"{who} " + WORD * tokens}
    return json.dumps(document).encode()


def _headers(tenant: str) -> dict[str, str]:
    return {"content-type": "application/json", "x-api-key": f"sk-{tenant}-0123456789"}


class _Served:
    """How many requests of the flood were served; `begun` once all have been sent that can be at once."""

    def __init__(self) -> None:
        self.requests = 0
        self.begun = asyncio.Event()

    def one(self) -> None:
        self.requests += 1
        if self.requests > ENGINES:
            self.begun.set()


async def both(url: str, *, seconds: float, tokens: tuple[int, int], clients: int = 40) -> tuple[int, int]:
    """Let both tenants flood, with prompts of so many tokens; returns the prompt tokens that each was served meanwhile."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        served = (_Served(), _Served())
        floods = [
            asyncio.create_task(_flood(http, url, tokens[at], client, served[at], tenant=tenant))
            for client in range(clients)
            for at, tenant in enumerate(("flood", "calm"))
        ]
        await asyncio.gather(*(one.begun.wait() for one in served))
        before = [one.requests for one in served]
        await asyncio.sleep(seconds)
        first, second = (one.requests - then for one, then in zip(served, before, strict=True))
        for task in floods:
            task.cancel()
        await asyncio.gather(*floods, return_exceptions=True)
    return first * tokens[0], second * tokens[1]


async def _flood(  # noqa: PLR0913 - one client of one tenant
    http: aiohttp.ClientSession, url: str, tokens: int, client: int, served: _Served, *, tenant: str = "flood"
) -> None:
    number = 0
    while True:
        number += 1
        body = _body(f"{tenant} {client} {number}", tokens)
        async with http.post(f"{url}/v1/completions", data=body, headers=_headers(tenant)) as answer:
            await answer.read()
            if answer.status != OK:
                raise RuntimeError(f"the flood was answered {answer.status}")
        served.one()


async def _first(http: aiohttp.ClientSession, url: str, tokens: int, name: str) -> float:
    """Ask, and return the time to the first token."""
    started = time.perf_counter()
    body = _body(name, tokens)
    async with http.post(f"{url}/v1/completions", data=body, headers=_headers("calm")) as answer:
        if answer.status != OK:
            raise RuntimeError(f"the calm tenant was answered {answer.status}: {await answer.text()}")
        await answer.content.readany()
        first_s = time.perf_counter() - started
        await answer.read()
    return first_s


@dataclass(frozen=True, slots=True)
class Parked:
    """What requests cost that wait."""

    waiting: int
    mib: float  # of the picker, for all of them
    cpu: float  # of a core
    left_s: float  # until the queue was empty after all clients had gone


async def parked(one: Stack, *, count: int = PARKED, size: int = 2_000, seconds: float = 5.0) -> Parked:
    """Hold requests behind one that takes long, and let their clients go."""
    picker = one.pids()["picker"]
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        await _ask(http, one.url, "flood", "before " + "x" * size, 1)  # whatever is built by the first request is there
        first = asyncio.create_task(_ask(http, one.url, "flood", "first", 100_000))
        await _queue(http, one, sent=1)
        before = processes.rss_mib(picker)
        asked: list[asyncio.Task[None]] = []
        waiting = 0
        while waiting < count:  # some at a time: a picker that is late for many long prompts is passed by
            asked = [task for task in asked if not task.done()] + [
                asyncio.create_task(_ask(http, one.url, "flood", f"{len(asked) + number} " + "x" * size, 1))
                for number in range(min(_AT_ONCE, count - waiting))
            ]
            waiting = await _queue(http, one, all_of=asked)
        after, spent = processes.rss_mib(picker), processes.cpu_s(picker)
        await asyncio.sleep(seconds)
        spent = processes.cpu_s(picker) - spent
        left = time.perf_counter()
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await _queue(http, one, at_most=0)
        left = time.perf_counter() - left
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
    return Parked(waiting, after - before, spent / seconds, left)


async def _ask(http: aiohttp.ClientSession, url: str, tenant: str, prompt: str, tokens: int) -> None:
    body = json.dumps({"model": "demo", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True})
    async with http.post(f"{url}/v1/completions", data=body, headers=_headers(tenant)) as answer:
        await answer.read()


async def _queue(
    http: aiohttp.ClientSession,
    one: Stack,
    *,
    all_of: Sequence[asyncio.Task[None]] = (),
    at_most: int = 1 << 30,
    sent: int = 0,
) -> int:
    """Wait until these requests wait in the picker, but for those that were answered, and so many are sent."""
    while True:
        async with http.get(f"{one.admin_url}/queues") as answer:
            waiting = int((await answer.json())["waiting"])
        async with http.get(f"{one.admin_url}/endpoints") as answer:
            inflight = sum(each["inflight"] for each in (await answer.json())["endpoints"])
        if sum(not task.done() for task in all_of) <= waiting <= at_most and inflight >= sent:
            return waiting
        await asyncio.sleep(0.02)


async def _show_parked(one: Stack, size: int) -> None:
    found: Sequence[Parked] = [await parked(one, size=size) for _ in range(3)]
    row = (
        f"{found[0].waiting}",
        f"{size / 1000:.0f} kB",
        f"{found[0].mib:.1f}",
        f"{statistics.median(each.cpu for each in found):.4f}",
        f"{statistics.median(each.left_s for each in found) * 1000:.0f}",
    )
    head = ("requests that wait", "body", "MiB, at first", "core", "ms until all have left")
    table.show("What it costs to wait, in the picker", head, [row])
