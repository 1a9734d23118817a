"""A watch's connection: read in a thread of its own, followed on the event loop, broken off at any time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import urllib3

from matrixinfer.cluster import apiserver_calls as calls
from matrixinfer.cluster import statuses

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from concurrent.futures import Future, ThreadPoolExecutor

    import requests

    from matrixinfer.cluster.apiserver_calls import Call
    from matrixinfer.cluster.protocol import WatchEvent

    Exchange = Callable[[Call, float], contextlib.AbstractContextManager[requests.Response]]

_READ_AT_ONCE: Final = 256 * 1024


class Stream:
    """One watch's connection, read in a thread; `stop` may come at any time.

    The server has `answer_s` to begin. After `silence_s` without a word the stream ends and is `silent`: servers send a bookmark each
    minute, but for kinds of which they have not seen a change since they started.
    """

    def __init__(
        self, exchange: Exchange, call: Call, *, answer_s: float, silence_s: float, threads: ThreadPoolExecutor
    ) -> None:
        self._batches = self._read(exchange, call, answer_s, silence_s)
        self._threads = threads
        self._reading: Future[list[WatchEvent] | None] | None = None
        self._response: requests.Response | None = None
        self._stopped = False
        self.silent = False

    async def events(self) -> AsyncGenerator[WatchEvent, None]:
        """Yield what comes until the server ends it."""
        while True:
            self._reading = self._threads.submit(next, self._batches, None)
            batch = await asyncio.wrap_future(self._reading)
            if batch is None:
                return
            for event in batch:
                yield event

    def stop(self) -> None:
        """Break off; who waits for events is told Unavailable."""
        self._stopped = True
        if self._reading is None or self._reading.done():
            self._batches.close()
        elif self._response is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                self._response.raw.shutdown()

    def _next(self, response: requests.Response) -> bytes:
        """Return what comes next; nothing at the end, or after a silence in which the server may be gone or have nothing to say."""
        try:
            chunk: bytes = response.raw.read1(_READ_AT_ONCE, decode_content=True)
        except urllib3.exceptions.ReadTimeoutError:
            self.silent = True
            return b""
        return chunk

    def _read(
        self, exchange: Exchange, call: Call, answer_s: float, silence_s: float
    ) -> Generator[list[WatchEvent], None, None]:
        """Yield the events that come together; runs in a thread."""
        with exchange(call, answer_s) as response:
            self._response = response
            if self._stopped:
                return
            if not response.ok:
                raise statuses.refusal(response.status_code, response.content)
            response.raw.connection.sock.settimeout(silence_s)
            yield [calls.bookmark(call.kind, call.query["resourceVersion"])]
            rest = b""
            while chunk := self._next(response):
                *lines, rest = (rest + chunk).split(b"\n")
                if batch := [calls.event(line) for line in lines if line]:
                    yield batch
