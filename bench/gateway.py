"""What the gateway costs: Envoy alone, Envoy with a processor that lets all pass, and Envoy with the picker, alternating in one run.

CPU per request is that of the whole process over the round, idle work included. Figures of the rounds are medians.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench import bare_ext_proc, load, plain_envoy, processes, table
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

PATH = "/v1/chat/completions"
PORT, OK = 8000, 200
SHORT_CHARS, LONG_CHARS, SHARED_CHARS = 800, 40_000, 38_000  # 200 tokens; 10k tokens of which 9.5k are shared


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load."""

    name: str
    source: load.RequestSource
    rate: float | None = None  # requests a second, open loop; None: 16 clients in closed loop
    seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of one case showed."""

    samples: list[load.Sample]
    envoy_us: float  # CPU per request
    picker_us: float
    served: list[int]  # requests by engine

    def first_ms(self, share: float) -> float:
        """Time to the first byte of the body that `share` of the answers took at most."""
        return load.percentile([sample.first_s for sample in self.samples], share) * 1e3


def body(number: int, *, chars: int, shared: int = 0, stream: bool = False) -> bytes:
    """Return a chat request of `chars` characters, the first `shared` the same for one of eight groups."""
    head = f"group {number % 8} " + "shared words of a long document " * (shared // 32)
    text = (head[:shared] if shared else "") + f"request {number} " + "words of its own " * (chars // 17 + 1)
    streamed = '"stream":true,' if stream else ""
    content = f'{{"model":"demo",{streamed}"messages":[{{"role":"user","content":"{text[:chars]}"}}]}}'
    return load.post("gateway", PATH, content.encode())


CASES = (
    Case("200 tokens, 16 clients", lambda n: body(n, chars=SHORT_CHARS)),
    Case("200 tokens, 300/s", lambda n: body(n, chars=SHORT_CHARS), rate=300),
    Case("100 chunks, 100/s", lambda n: body(n, chars=SHORT_CHARS, stream=True), rate=100),
    Case("10k tokens, 50/s", lambda n: body(n, chars=LONG_CHARS, shared=SHARED_CHARS), rate=50),
)


def stub_engines(hosts: list[str]) -> AbstractContextManager[int]:
    """Run stub engines on `hosts`; gives their process id."""
    return processes.serving("bench.stub", "--port", str(PORT), *(word for host in hosts for word in ("--host", host)))


@asynccontextmanager
async def gateway(hosts: list[str]) -> AsyncIterator[Stack]:
    """Run the stack before engines on `hosts`."""
    engines = tuple(f"http://{host}:{PORT}" for host in hosts)
    config = Config(engines=engines, port=0, admin_port=0, metrics_port=0, envoy_workers=1, log_level="warning")
    async with Stack(config) as stack:
        await stack.ready()
        yield stack


async def run_round(url: str, case: Case, envoy: int, picker: int | None, hosts: list[str]) -> Round:
    """Measure one round of `case`."""

    def cpu() -> tuple[float, float]:
        return processes.cpu_s(envoy), processes.cpu_s(picker) if picker else 0.0

    before, served = cpu(), await _served(hosts)
    if case.rate is None:
        samples = await load.closed(url, case.source, clients=16, seconds=case.seconds)
    else:
        samples = await load.open_loop(url, case.source, rate=case.rate, seconds=case.seconds)
    after = cpu()
    each = 1e6 / max(1, len(samples))
    counts = [b - a for a, b in zip(served, await _served(hosts), strict=True)]
    return Round(samples, (after[0] - before[0]) * each, (after[1] - before[1]) * each, counts)


async def _served(hosts: list[str]) -> list[int]:
    """Requests that each stub engine has had."""
    client = await load.connect(f"http://{hosts[0]}:{PORT}", keep_body=True)
    answer = await client.send(0, b"GET /served HTTP/1.1\r\nhost: stub\r\n\r\n")
    client.close()
    counts = json.loads(answer.body)
    return [counts.get(host, 0) for host in hosts]


async def requests(folder: Path, *, rounds: int) -> None:
    """Print the table of CPU and latency per case."""
    hosts = [f"127.9.0.{n}" for n in range(1, 5)]
    engines, asked = [(host, PORT) for host in hosts], folder / "bare.sock"
    with (
        stub_engines(hosts),
        bare_ext_proc.running(asked) as bare,
        plain_envoy.running(18089, engines, folder) as plain,
        plain_envoy.running(18088, engines, folder, asked=asked) as asking,
    ):
        async with gateway(hosts) as stack:
            rows = []
            for case in CASES:
                alone, passed, ours = [], [], []
                for _ in range(rounds):
                    alone.append(await run_round("http://127.0.0.1:18089", case, plain, None, hosts))
                    passed.append(await run_round("http://127.0.0.1:18088", case, asking, bare, hosts))
                    pids = stack.pids()
                    ours.append(await run_round(stack.url, case, pids["envoy"], pids["picker"], hosts))
                rows += [
                    _row(case, "Envoy alone", alone),
                    _row(case, "Envoy + one that lets all pass", passed),
                    _row(case, "Envoy + picker", ours),
                    _added(alone, ours),
                ]
            head = ("case", "", "req/s", "Envoy us", "picker us", "p50 ms", "p99 ms", "per engine", "not 200")
            table.show("CPU per request and latency (first byte of the body)", head, rows)


def _middle(rounds: list[Round], value: Callable[[Round], float]) -> float:
    return statistics.median(value(each) for each in rounds)


def _row(case: Case, what: str, rounds: list[Round]) -> tuple[str, ...]:
    failed = Counter(sample.status for each in rounds for sample in each.samples if sample.status != OK)
    served = [sum(counts) for counts in zip(*(each.served for each in rounds), strict=True)]
    return (
        case.name,
        what,
        f"{_middle(rounds, lambda each: len(each.samples) / case.seconds):.0f}",
        f"{_middle(rounds, lambda each: each.envoy_us):.0f}",
        f"{_middle(rounds, lambda each: each.picker_us):.0f}",
        f"{_middle(rounds, lambda each: each.first_ms(0.5)):.2f}",
        f"{_middle(rounds, lambda each: each.first_ms(0.99)):.2f}",
        f"{min(served)}..{max(served)}",
        str(dict(failed)) if failed else "0",
    )


def _added(alone: list[Round], ours: list[Round]) -> tuple[str, ...]:
    """What the picker adds to Envoy alone."""
    envoy = _middle(ours, lambda each: each.envoy_us) - _middle(alone, lambda each: each.envoy_us)
    first = [
        statistics.median(each.first_ms(share) for each in ours)
        - statistics.median(each.first_ms(share) for each in alone)
        for share in (0.5, 0.99)
    ]
    return ("", "added", "", f"{envoy:+.0f}", "", f"{first[0]:+.2f}", f"{first[1]:+.2f}", "", "")


async def idle(*, seconds: float) -> None:
    """Print what the picker and Envoy burn with nothing to do."""
    rows = []
    for count in (4, 100):
        hosts = [f"127.9.1.{n}" for n in range(1, count + 1)]
        with stub_engines(hosts):
            async with gateway(hosts) as stack:
                await asyncio.sleep(5)  # the first scrapes and health checks are over
                start, before = time.perf_counter(), _both(stack)
                await asyncio.sleep(seconds)
                wall, after = time.perf_counter() - start, _both(stack)
                cores = [(b - a) / wall for a, b in zip(before, after, strict=True)]
                memory = f"{processes.rss_mib(stack.pids()['picker']):.0f}"
                rows.append((str(count), f"{cores[1]:.3f}", f"{cores[0]:.3f}", memory))
    table.show("Idle", ("endpoints", "picker cores", "Envoy cores", "picker MiB"), rows)


def _both(stack: Stack) -> tuple[float, float]:
    pids = stack.pids()
    return processes.cpu_s(pids["envoy"]), processes.cpu_s(pids["picker"])
