"""A load generator lean enough to share two cores with what it measures: asyncio, raw HTTP/1.1, keep-alive.

`closed` keeps n clients busy, `open_loop` sends at a rate whatever comes back (Poisson arrivals, so that queueing is
not hidden). Both are bounded in time and count. Every answer becomes a `Sample`.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

RequestSource = Callable[[int], bytes]  # the n-th request, complete with its head


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer. Times in seconds; `first_s` ends at the first byte of the body, `total_s` at the last."""

    number: int
    started: float
    first_s: float
    total_s: float
    status: int
    size: int
    head: bytes
    body: bytes


def post(host: str, path: str, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return a POST request ready for the wire."""
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers)
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}{extra}\r\n".encode() + body


class Client(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self, *, keep_body: bool) -> None:
        self._keep = keep_body
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[Sample] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Whatever was under way ends here, as status 0 if it had not begun."""
        self.closed = True
        if self._done is not None and not self._done.done():
            self._finish()

    def send(self, number: int, request: bytes) -> asyncio.Future[Sample]:
        """Send one request; the future gives its sample."""
        assert self._transport is not None  # noqa: S101 - connected
        self._number, self._head, self._size = number, b"", 0
        self._parts: list[bytes] = []
        self._left: int | None = None
        self._tail = b""
        self._first = 0.0
        self._started = time.perf_counter()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def data_received(self, data: bytes) -> None:
        """Collect head and body; the body ends by its length or its last chunk."""
        if self._done is None or self._done.done():
            return
        if self._left is None and not self._headed(data):
            return
        data = self._rest if self._rest is not None else data
        self._rest = None
        if data:
            if not self._first:
                self._first = time.perf_counter()
            self._size += len(data)
            if self._keep:
                self._parts.append(data)
        if self._chunked:
            self._tail = (self._tail + data)[-7:]
            if self._tail.endswith(b"\r\n0\r\n\r\n") or self._tail == b"0\r\n\r\n":
                self._finish()
        else:
            assert self._left is not None  # noqa: S101 - set with the head
            self._left -= len(data)
            if self._left <= 0:
                self._finish()

    _rest: bytes | None = None
    _chunked = False

    def _headed(self, data: bytes) -> bool:
        self._head += data
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return False
        rest, self._head = self._head[end + 4 :], self._head[:end]
        lower = self._head.lower()
        self._chunked = b"transfer-encoding: chunked" in lower
        at = lower.find(b"content-length:")
        self._left = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else (0 if not self._chunked else 1 << 62)
        self._rest = rest
        return True

    def _finish(self) -> None:
        now = time.perf_counter()
        status = int(self._head[9:12]) if self._head[9:12].isdigit() else 0
        if self._head and self.closed and not (self._left is not None and self._left <= 0):
            status = -status  # the answer was cut
        done, self._done = self._done, None
        assert done is not None  # noqa: S101 - a request is under way
        body = b"".join(self._parts)
        first = (self._first or now) - self._started
        done.set_result(
            Sample(self._number, self._started, first, now - self._started, status, self._size, self._head, body)
        )

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


async def connect(url: str, *, keep_body: bool = False) -> Client:
    """Open one connection to the server of `url`."""
    parts = urlsplit(url)
    _, client = await asyncio.get_running_loop().create_connection(
        lambda: Client(keep_body=keep_body), parts.hostname or "127.0.0.1", parts.port or 80
    )
    return client


async def closed(
    url: str, source: RequestSource, *, clients: int, seconds: float, keep_body: bool = False
) -> list[Sample]:
    """Keep `clients` connections busy for `seconds`; requests are numbered over all of them."""
    numbers = itertools.count()
    samples: list[Sample] = []
    until = time.perf_counter() + seconds

    async def work() -> None:
        client = await connect(url, keep_body=keep_body)
        while time.perf_counter() < until:
            if client.closed:
                client = await connect(url, keep_body=keep_body)
            number = next(numbers)
            samples.append(await client.send(number, source(number)))
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return samples


class Pool:
    """Connections that wait for their next request."""

    def __init__(self, url: str, *, keep_body: bool) -> None:
        self._url, self._keep = url, keep_body
        self._idle: deque[Client] = deque()

    async def exchange(self, number: int, request: bytes) -> Sample:
        """Send one request over an idle connection, or over a new one."""
        client = None
        while self._idle and client is None:
            candidate = self._idle.pop()
            client = None if candidate.closed else candidate
        if client is None:
            client = await connect(self._url, keep_body=self._keep)
        sample = await client.send(number, request)
        if not client.closed:
            self._idle.append(client)
        return sample

    def close(self) -> None:
        """Close the idle connections."""
        for client in self._idle:
            client.close()


async def open_loop(  # noqa: PLR0913 - the knobs of one load point
    url: str,
    source: RequestSource,
    *,
    rate: float,
    seconds: float,
    seed: int = 1,
    keep_body: bool = False,
    until: asyncio.Event | None = None,
) -> list[Sample]:
    """Send `rate` requests a second for `seconds`, or until `until` is set; waits for the last answer."""
    chance = random.Random(seed)
    pool = Pool(url, keep_body=keep_body)
    running: list[asyncio.Task[Sample]] = []
    start = due = time.perf_counter()
    while (due := due + chance.expovariate(rate)) - start <= seconds and not (until and until.is_set()):
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        number = len(running)
        running.append(asyncio.ensure_future(pool.exchange(number, source(number))))
    samples = await asyncio.gather(*running)
    pool.close()
    return samples


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` (0..1) of the values lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
