"""A lean client of Redis for the data path: one connection, commands one behind the other, answers in their order.

Commands of one turn of the loop leave in one write, and an answer costs a few microseconds to read: a request with global
limits costs a third of what it does with the official client, which gives each command a connection of its own. That client
still finds masters for Sentinel and speaks to Clusters (`redis_limits`).

A caller that gives up leaves its answer to be skipped. A connection whose oldest answer is long overdue, or that brings
something that is no answer, is given up, and the next command opens another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

_CONNECT_S: Final = 2.0
_STALLED_S: Final = 2.0
_MOST_BYTES: Final = 1 << 20  # of answers that cannot be read yet
_GONE: Final = ("READONLY", "LOADING", "MASTERDOWN")  # another server is to be asked, or this one anew
_PLUS, _MINUS, _COLON, _DOLLAR, _STAR = b"+-:$*"


class Incomplete(Exception):
    """The answer is not there to its end: more bytes are to come."""


class Client:
    """One server. `execute_command` and `aclose` are those of the official client."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[tuple[str, int]]],
        *,
        greeting: Sequence[Sequence[str]] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`locate` tells where the server is, whenever a connection is opened; `greeting` is sent first on each."""
        self._locate = locate
        self._greeting = greeting
        self._tls = tls
        self._connection: _Connection | None = None
        self._opening = asyncio.Lock()

    async def execute_command(self, *parts: Any) -> Any:
        """Return the answer. Raises ResponseError, OSError, TimeoutError."""
        connection = self._connection
        if connection is None or connection.unusable():
            connection = await self._open()
        answer = await connection.call(parts)
        if isinstance(answer, ResponseError):
            if str(answer).startswith(_GONE):
                connection.give_up("the server cannot be written to")
            raise answer
        return answer

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.give_up("closed")

    async def _open(self) -> _Connection:
        async with self._opening:
            if self._connection is not None and not self._connection.unusable():
                return self._connection  # somebody else has opened it meanwhile
            if self._connection is not None:
                self._connection.give_up("it does not answer")
            async with asyncio.timeout(_CONNECT_S):
                host, port = await self._locate()
                _, connection = await asyncio.get_running_loop().create_connection(
                    _Connection, host, port, ssl=self._tls, server_hostname=host if self._tls is not None else None
                )
                for answer in await asyncio.gather(*(connection.call(command) for command in self._greeting)):
                    if isinstance(answer, ResponseError):
                        connection.give_up(str(answer))
                        raise answer
            self._connection = connection
            return connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # in the order of their answers
        self._unsent: list[bytes] = []
        self._read = b""
        self._loop = asyncio.get_running_loop()

    def unusable(self) -> bool:
        """Tell whether no answer is to be hoped for."""
        if self._transport is None:
            return True
        return bool(self._waiting) and self._loop.time() - self._waiting[0][1] > _STALLED_S

    def call(self, parts: Sequence[Any]) -> asyncio.Future[Any]:
        """Send a command; the future gives its answer, a ResponseError where that is one."""
        answer = self._loop.create_future()
        if self._transport is None:
            answer.set_exception(ConnectionResetError("the connection is closed"))
            return answer
        self._waiting.append((answer, self._loop.time()))
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(packed(parts))
        return answer

    def give_up(self, why: str) -> None:
        """Close, and tell whoever waits."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        while self._waiting:
            answer, _ = self._waiting.popleft()
            if not answer.done():
                answer.set_exception(ConnectionResetError(why))

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self.give_up(str(exc) if exc is not None else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        """Hand out the answers that are complete."""
        read = self._read + data if self._read else data
        at = 0
        try:
            while at < len(read):
                answer, at = parsed(read, at)
                future, _ = self._waiting.popleft()
                if not future.done():
                    future.set_result(answer)
        except Incomplete:
            pass
        except (ValueError, RecursionError, IndexError) as error:  # the last: nobody asked for it
            self.give_up(f"the server does not speak Redis' protocol: {error}")
            return
        self._read = read[at:]
        if len(self._read) > _MOST_BYTES:
            self.give_up("an answer without end")


def packed(parts: Sequence[Any]) -> bytes:
    """Return a command as it is sent."""
    out = [b"*%d\r\n" % len(parts)]
    for part in parts:
        data = part if type(part) is bytes else str(part).encode()
        out.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(out)


def parsed(data: bytes, at: int) -> tuple[Any, int]:
    """Return the answer that begins at `at`, and where the next one does. Raises Incomplete, ValueError."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line, at = data[at], data[at + 1 : end], end + 2
    if kind == _DOLLAR:
        size = int(line)
        if size < 0:
            return None, at
        if len(data) < at + size + 2:
            raise Incomplete
        return data[at : at + size], at + size + 2
    if kind == _COLON:
        return int(line), at
    if kind == _STAR:
        items = []
        for _ in range(int(line)):
            item, at = parsed(data, at)
            items.append(item)
        return items, at
    if kind == _PLUS:
        return line.decode(errors="replace"), at
    if kind == _MINUS:
        text = line.decode(errors="replace")
        return (NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)), at
    raise ValueError(f"{data[at - 2 - len(line) - 1 :][:40]!r}")
