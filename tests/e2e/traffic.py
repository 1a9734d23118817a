"""Load for tests that hurt something under it: streams and plain answers, sent at a rate whatever comes back."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson

from bench import load
from tests.e2e.stack import COMPLETIONS, total

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.e2e.stack import World


class Traffic:
    """Requests on their way."""

    def __init__(self, world: World, *, tokens: int, model: str) -> None:
        self._host = f"127.0.0.1:{world.stack.port}"
        self._body = {"model": model, "max_tokens": tokens}
        self.samples: list[load.Sample] = []

    def request(self, number: int) -> bytes:
        """The n-th request."""
        body = self._body | {"prompt": f"request number {number} of this load", "stream": is_stream(number)}
        return load.post(self._host, COMPLETIONS, orjson.dumps(body))

    def broken(self) -> list[load.Sample]:
        """Those that did not end as they should have."""
        return [sample for sample in self.samples if not is_whole(sample)]

    def failed(self) -> list[tuple[int, int, bytes, bytes]]:
        """Those that failed before their stream had begun, which no fault of one engine may cause."""
        return [
            (sample.number, sample.status, sample.head, sample.body)
            for sample in self.broken()
            if not (is_stream(sample.number) and abs(sample.status) == 200)
        ]


def is_stream(number: int) -> bool:
    """Whether the n-th request of a load asks for a stream. Five has no factor in common with the number of engines."""
    return number % 5 < 2


def is_whole(sample: load.Sample) -> bool:
    """Whether all of the answer came."""
    end = b"data: [DONE]\n\n" in sample.body if is_stream(sample.number) else b'"usage"' in sample.body
    return sample.status == 200 and end


async def counted(world: World) -> dict[str, float]:
    """What the ledger has counted, once all is settled."""
    found = await world.settled()
    return {
        "requests": total(found, "matrixinfer_requests_total"),
        **{
            end: total(found, "matrixinfer_ledger_total", end) for end in ("opened", "settled", "duplicate", "stranger")
        },
    }


async def added(world: World, before: dict[str, float]) -> dict[str, float]:
    """What it has counted since `before`."""
    after = await counted(world)
    return {key: after[key] - before[key] for key in after}


def once_each(count: int) -> dict[str, float]:
    """What it has counted if each of so many requests was settled once."""
    return {"requests": count, "opened": count, "settled": count, "duplicate": 0, "stranger": 0}


@asynccontextmanager
async def under_load(
    world: World, *, rate: float = 60, seconds: float = 60, tokens: int = 30, model: str = "demo"
) -> AsyncIterator[Traffic]:
    """Send while the body runs (`seconds` at most), then wait for the last answer."""
    traffic = Traffic(world, tokens=tokens, model=model)
    over = asyncio.Event()
    sending = asyncio.create_task(
        load.open_loop(world.url, traffic.request, rate=rate, seconds=seconds, keep_body=True, until=over)
    )
    try:
        yield traffic
    finally:
        over.set()
        traffic.samples = await sending
