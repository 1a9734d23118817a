"""Calls to engines: one HTTP exchange each, over connections that are kept.

What can go wrong comes back as a word in `Called.fault`, so that the core decides what it means. A call that is withdrawn
closes its connection, by which engines learn that nobody waits any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from extproc.errors import Busy
from extproc.types import Called

if TYPE_CHECKING:
    from types import SimpleNamespace

    from extproc.types import Call

_LOG = logging.getLogger(__name__)
_LARGEST: Final = 8 << 20  # bytes of an answer: one token and the blocks' numbers
_IDLE_S: Final = 4.0  # below vLLM's 5 s, after which it closes a connection that is idle
_CONNECT_S: Final = 2.0
_SENT: Final = Called()


class Calls:
    """Performs calls. Built on the loop that it runs on."""

    def __init__(self, *, most: int = 1024) -> None:
        """`most`: calls at once; further ones are refused with Busy."""
        self.open = 0
        self._most = most
        self._sessions: dict[bool, aiohttp.ClientSession] = {}  # by whether it tells when a call is sent
        self._left: set[asyncio.Task[None]] = set()  # calls whose story went on

    async def run(self, call: Call) -> Called:
        """Perform the call; one that has an `ended` comes back when it is sent. Raises Busy."""
        if self.open >= self._most:
            raise Busy
        if call.ended is None:
            return await self._performed(call)
        sent: asyncio.Future[Called] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._background(call, sent))
        self._left.add(task)
        task.add_done_callback(self._left.discard)
        return await asyncio.shield(sent)

    async def close(self) -> None:
        """Give up what is open."""
        for task in list(self._left):
            task.cancel()
        for session in self._sessions.values():
            await session.close()

    async def _background(self, call: Call, sent: asyncio.Future[Called]) -> None:
        """Perform a call whose story goes on once it is sent; failing earlier is the story's business."""

        def on_its_way() -> None:
            if not sent.done():
                sent.set_result(_SENT)

        try:
            called = await self._performed(call, on_its_way)
        except asyncio.CancelledError:
            called = Called(fault="abandoned")
            self._end(call, sent, called)
            raise
        following = self._end(call, sent, called)
        if following is None:
            return
        for pause_s in (0.0, *following.again_s):
            await asyncio.sleep(pause_s)
            answer = await self._performed(following)
            if answer.fault:
                _LOG.warning("a call after a failed one failed, too", extra={"url": following.url, "why": answer.fault})

    def _end(self, call: Call, sent: asyncio.Future[Called], called: Called) -> Call | None:
        if not sent.done():
            sent.set_result(called)
            if called.fault:
                return None
        return call.ended(called) if call.ended is not None else None

    async def _performed(self, call: Call, sent: Any = None) -> Called:
        self.open += 1
        try:
            async with asyncio.timeout(call.timeout_s):
                return await self._exchange(call, sent)
        except TimeoutError:
            return Called(fault="timeout")
        except aiohttp.ClientConnectorError:
            return Called(fault="refused")
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError):
            return Called(fault="broken")
        except ValueError:
            return Called(fault="unreadable")
        finally:
            self.open -= 1

    async def _exchange(self, call: Call, sent: Any) -> Called:
        for last in (False, True):
            try:
                async with self._client(tells=sent is not None).request(
                    call.method,
                    call.url,
                    data=call.body or None,
                    headers=call.headers,
                    allow_redirects=False,
                    trace_request_ctx=sent,
                ) as answer:
                    parts, size = [], 0
                    async for part in answer.content.iter_any():
                        size += len(part)
                        if size > _LARGEST:
                            return Called(answer.status, fault="too-large")
                        parts.append(part)
                    return Called(answer.status, b"".join(parts))
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # A kept connection that the engine closed as we took it: nothing was read, and a new one tells the truth.
                if last or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise RuntimeError("unreachable")

    def _client(self, *, tells: bool) -> aiohttp.ClientSession:
        """Return the session; one that tells when a call is sent does more for each."""
        session = self._sessions.get(tells)
        if session is None:
            session = self._sessions[tells] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ssl=False),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
                trace_configs=[_tell_when_sent()] if tells else None,
            )
        return session


def _tell_when_sent() -> aiohttp.TraceConfig:
    """Call what a request was given as soon as its body is written."""
    config = aiohttp.TraceConfig()

    async def written(
        _session: aiohttp.ClientSession, context: SimpleNamespace, _params: aiohttp.TraceRequestChunkSentParams
    ) -> None:
        sent = context.trace_request_ctx
        if sent is not None:
            with contextlib.suppress(RuntimeError):
                sent()

    config.on_request_chunk_sent.append(written)
    return config
