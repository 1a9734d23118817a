"""A watch's connection: read in a thread of its own, followed on the event loop, broken off at any time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

import urllib3

from matrixinfer.cluster import apiserver_calls as calls
from matrixinfer.cluster import statuses

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from concurrent.futures import ThreadPoolExecutor

    from matrixinfer.cluster.apiserver_calls import Call
    from matrixinfer.cluster.protocol import WatchEvent

    Exchange = Callable[[Call, float], contextlib.AbstractContextManager[urllib3.BaseHTTPResponse]]

_READ_AT_ONCE: Final = 256 * 1024
_WAITING_AT_MOST: Final = 256  # chunks: events, mostly


class Stream:
    """One watch's connection, read in a thread; `stop` may come at any time.

    The server has `answer_s` to begin. After `silence_s` without a word the stream ends and is `silent`: servers send a bookmark each
    minute, but for kinds of which they have not seen a change since they started. What comes while the loop is busy waits for it, up to
    a bound, and is taken at once.
    """

    def __init__(
        self, exchange: Exchange, call: Call, *, answer_s: float, silence_s: float, threads: ThreadPoolExecutor
    ) -> None:
        self._exchange = exchange
        self._call = call
        self._answer_s = answer_s
        self._silence_s = silence_s
        self._threads = threads
        self._come: deque[list[WatchEvent] | Exception | None] = deque()  # None: the end
        self._room = threading.Semaphore(_WAITING_AT_MOST)
        self._response: urllib3.BaseHTTPResponse | None = None
        self._stopped = False
        self.silent = False

    async def events(self) -> AsyncGenerator[WatchEvent, None]:
        """Yield what comes until the server ends it."""
        news = asyncio.Event()
        self._threads.submit(self._follow, asyncio.get_running_loop(), news)
        while True:
            await news.wait()
            news.clear()
            while self._come:
                come = self._come.popleft()
                self._room.release()
                if come is None:
                    return
                if isinstance(come, Exception):
                    raise come
                for event in come:
                    yield event

    def stop(self) -> None:
        """Break off."""
        self._stopped = True
        self._room.release()  # who waits for room to hand over ends by that
        if self._response is not None:
            with contextlib.suppress(OSError, ValueError, RuntimeError):  # it has just ended by itself
                self._response.shutdown()

    def _follow(self, loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
        """Read until the end; runs in a thread."""

        def hand(come: list[WatchEvent] | Exception | None) -> None:
            self._come.append(come)
            if len(self._come) == 1:  # otherwise the loop has not come to the end of what was there
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(news.set)

        try:
            for batch in self._read():
                self._room.acquire()
                hand(batch)
        except Exception as error:  # noqa: BLE001 - whoever follows is told
            hand(error)
        else:
            hand(None)

    def _next(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """Return what comes next; nothing at the end, or after a silence in which the server may be gone or have nothing to say."""
        try:
            chunk: bytes = response.read1(_READ_AT_ONCE, decode_content=True)
        except urllib3.exceptions.ReadTimeoutError:
            self.silent = True
            return b""
        return chunk

    def _read(self) -> Generator[list[WatchEvent], None, None]:
        """Yield the events that come together."""
        with self._exchange(self._call, self._answer_s) as response:
            self._response = response
            if self._stopped:
                return
            if not calls.good(response.status):
                raise statuses.refusal(response.status, response.data)
            response.connection.sock.settimeout(self._silence_s)  # type: ignore[union-attr]  # it is open
            yield [calls.bookmark(self._call.kind, self._call.query["resourceVersion"])]
            rest = b""
            while not self._stopped and (chunk := self._next(response)):
                *lines, rest = (rest + chunk).split(b"\n")
                if batch := [calls.event(line) for line in lines if line]:
                    yield batch
