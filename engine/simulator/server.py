"""HTTP connections: bytes to requests, answers to bytes, as uvicorn would frame them.

One protocol object a connection and one `Reply` a request; no task and no coroutine for either, since all an engine's
answer waits for is the batch. Handlers are plain functions that answer now or keep the reply and answer later.
"""

import asyncio
import socket
import struct
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import cast

from engine.simulator import http1

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"
TEXT = b"text/plain; charset=utf-8"

_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}

_SWEEP_S = 0.5

Handler = Callable[[http1.Request, "Reply"], None]


class _Date:
    """The `date` header, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._line = time.strftime("date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now)).encode()
        return self._line


class Reply:
    """The answer to one request.

    Of `gone` (the client left before the answer was complete) and `complete` (it is out, or was broken off) one is called, once.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_out",
        "began",
        "complete",
        "ended",
        "gone",
        "request",
        "started",
        "status",
        "written",
    )

    def __init__(self, connection: "Connection", request: http1.Request) -> None:
        self._connection = connection
        self.request = request
        self._chunked = not request.http_1_0
        self._out: list[bytes] = []
        self.gone: Callable[[], None] | None = None
        self.complete: Callable[[], None] | None = None
        self.began = time.monotonic()
        self.started = False
        self.ended = False
        self.status = 0
        self.written = 0

    def send(self, status: int, body: bytes, content_type: bytes | None = JSON, headers: bytes = b"") -> None:
        """Answer at once with a body of known length."""
        kind = b"content-type: %b\r\n" % content_type if content_type else b""
        head = b"content-length: %d\r\n%b%b" % (len(body), headers, kind)
        self._out += (self._head(status, head), body if self.request.method != "HEAD" else b"")
        self.written += len(body)
        self.end_message()

    def start(self, content_type: bytes, headers: bytes = b"") -> None:
        """Begin an answer that comes in parts."""
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        if not self._chunked:
            self.request.keep_alive = False
        self._out.append(self._head(200, b"%bcontent-type: %b\r\n%b" % (headers, content_type, framing)))

    def part(self, data: bytes) -> None:
        """Add one part; it is its own chunk, and leaves with the next `flush`."""
        if self._chunked:
            self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._out.append(data)
        self.written += len(data)

    def raw(self, data: bytes) -> None:
        """Put bytes on the wire as they are: for answers that are broken on purpose."""
        self._out.append(data)

    def flush(self) -> None:
        """Write what has been added, in one piece."""
        if self._out:
            self._connection.transmit(self._out)
            self._out = []

    def end(self) -> None:
        """Complete an answer that came in parts."""
        if self._chunked:
            self._out.append(b"0\r\n\r\n")
        self.end_message()

    def send_half(self, body: bytes) -> None:
        """Promise a whole body, send half of it and reset."""
        self._out += (
            self._head(200, b"content-length: %d\r\ncontent-type: %b\r\n" % (len(body), JSON)),
            body[: len(body) // 2],
        )
        self.cut(reset=True)

    def cut(self, *, reset: bool) -> None:
        """Break off: by a reset, or by an orderly close in the wrong place."""
        self.ended = True
        self._connection.cut(self._out, reset=reset)
        if self.complete is not None:
            self.complete()

    def end_message(self) -> None:
        """All is written; the connection may go on to the next request."""
        self.flush()
        self.ended = True
        if self.complete is not None:
            self.complete()
        self._connection.answered(self)

    def _head(self, status: int, headers: bytes) -> bytes:
        self.status = status
        self.started = True
        close = b"" if self.request.keep_alive else b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\n%bserver: uvicorn\r\n%b%bvary: Origin\r\n\r\n" % (
            status,
            _REASONS.get(status, b""),
            self._connection.server.date.line(),
            close,
            headers,
        )


class Connection(asyncio.Protocol):
    """One client connection: parses, hands over one request at a time, keeps what was pipelined."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self._parser = http1.Parser(max_body_bytes=server.max_body_bytes)
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._closing = False
        self._parsing = False
        self.idle_since = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection in."""
        self._transport = cast("asyncio.Transport", transport)
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's signature)
        """Tell the request in flight."""
        self._transport = None
        self.server.connections.discard(self)
        reply, self._reply = self._reply, None
        if reply is not None and not reply.ended:
            reply.ended = True
            if reply.gone is not None:
                reply.gone()
            if reply.started:
                self.server.observe(reply)
        self.server.left()

    def data_received(self, data: bytes) -> None:
        """Take bytes and serve what is complete."""
        self._parser.feed(data)
        if self._reply is None:
            self._serve()
        elif self._transport is not None:
            self._transport.pause_reading()  # pipelined: the rest has time until this answer is out

    def eof_received(self) -> bool:
        """Drop a client that has finished sending, as ASGI servers do, though it might still read."""
        return False

    def transmit(self, parts: Iterable[bytes]) -> None:
        """Write in one piece."""
        if self._transport is not None:
            self._transport.write(b"".join(parts))

    def answered(self, reply: Reply) -> None:
        """Go on after the answer to the request in flight."""
        self.server.observe(reply)
        if self._reply is not reply:
            return
        self._reply = None
        self.idle_since = time.monotonic()
        transport = self._transport
        if transport is None:
            return
        if self._closing or not reply.request.keep_alive or self.server.draining:
            transport.close()
            return
        transport.resume_reading()
        if not self._parsing:
            self._serve()

    def cut(self, parts: Iterable[bytes], *, reset: bool) -> None:
        """Break off."""
        self._reply = None
        if self._transport is not None:
            self._transport.write(b"".join(parts))
            if reset:
                sock = self._transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            else:
                self._transport.close()

    def drain(self) -> None:
        """Close when nothing is in flight, else after the answer."""
        self._closing = True
        if self._reply is None and self._transport is not None:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close a connection on which nothing is in flight."""
        if self._reply is None and self._parser.idle and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def _serve(self) -> None:
        self._parsing = True
        try:
            while self._reply is None and self._transport is not None and not self._closing:
                request = self._parser.next()
                if request is None:
                    if self._parser.expects_continue:
                        self._parser.expects_continue = False
                        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    return
                reply = self._reply = Reply(self, request)
                self.server.handle(request, reply)
        except http1.BadRequest as error:
            self._closing = True
            self._refuse(error)
        finally:
            self._parsing = False

    def _refuse(self, error: http1.BadRequest) -> None:
        request = http1.Request(method="GET", path="", query="", headers={}, keep_alive=False, http_1_0=False)
        reply = self._reply = Reply(self, request)
        reply.send(error.status, b"Invalid HTTP request received.", TEXT)


class Server:
    """Listens, knows its connections, drains."""

    def __init__(
        self, handle: Handler, observe: Callable[[Reply], None], *, max_body_bytes: int, keep_alive_s: float
    ) -> None:
        self.handle = handle
        self.observe = observe
        self.max_body_bytes = max_body_bytes
        self._keep_alive_s = keep_alive_s
        self.connections: set[Connection] = set()
        self.draining = False
        self.date = _Date()
        self._host = ""
        self._port = 0
        self._listener: asyncio.Server | None = None
        self._all_left: asyncio.Event | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use, also where 0 was asked for."""
        return self._port

    async def listen(self, host: str, port: int) -> None:
        """Accept connections."""
        loop = asyncio.get_running_loop()
        self._host = host
        if self._sweeper is None and self._keep_alive_s:
            self._sweeper = loop.call_later(_SWEEP_S, self._sweep)
        self._listener = await loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._port = int(self._listener.sockets[0].getsockname()[1])

    async def reopen(self) -> None:
        """Listen again where connections were refused."""
        await self.listen(self._host, self._port)

    def refuse_connections(self) -> None:
        """Stop accepting and drop what is connected: clients see refused connections."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.connections):
            connection.abort()

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let answers finish within the grace, then cut the rest."""
        self.draining = True
        if self._listener is not None:
            self._listener.close()
        self._all_left = asyncio.Event()
        for connection in list(self.connections):
            connection.drain()
        self.left()
        try:
            async with asyncio.timeout(grace_s):
                await self._all_left.wait()
        except TimeoutError:
            for connection in list(self.connections):
                connection.abort()

    def _sweep(self) -> None:
        before = time.monotonic() - self._keep_alive_s
        for connection in [connection for connection in self.connections if connection.idle_since < before]:
            connection.close_if_idle()
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def left(self) -> None:
        """Note that a connection has gone."""
        if self._all_left is not None and not self.connections:
            self._all_left.set()
