"""A client that decides about every byte: for requests that no well-behaved client sends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import ngh2

from tests.e2e.stack import PATIENCE_S, Answer

if TYPE_CHECKING:
    from types import TracebackType

_LONGEST_HEAD = 1 << 20


@dataclass(slots=True)
class Wire:
    """One connection. What was answered with 1xx on the way is in `interim`."""

    address: tuple[str, int]
    interim: list[int] = field(default_factory=list)
    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(*self.address, limit=_LONGEST_HEAD)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave at once, whatever is under way."""
        self.leave()

    def leave(self) -> None:
        """Close the connection as a process that dies does."""
        assert self._writer is not None
        self._writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Write these bytes; a peer that does not want them any more is no error here: it has answered."""
        assert self._writer is not None
        self._writer.write(data)
        try:
            await asyncio.wait_for(self._writer.drain(), PATIENCE_S)
        except ConnectionError:
            return

    async def receive(self, *, bodiless: bool = False) -> Answer:
        """Read one answer. Fails if the connection ends before a whole head."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                status, headers = await self._head()
                if status >= 200:
                    break
                self.interim.append(status)
            if bodiless or status in (204, 304):
                return Answer(status, headers, b"")
            try:
                return Answer(status, headers, await self._body(headers))
            except (asyncio.IncompleteReadError, ConnectionError):
                return Answer(status, headers, b"", broken=True)

    async def some(self, count: int) -> bytes:
        """Read that many bytes."""
        assert self._reader is not None
        return await asyncio.wait_for(self._reader.readexactly(count), PATIENCE_S)

    async def exchange(self, data: bytes) -> Answer:
        """Send and receive at the same time, as an early answer may come before all is sent."""
        sending = asyncio.create_task(self.send(data))
        try:
            return await self.receive()
        finally:
            sending.cancel()

    async def _head(self) -> tuple[int, dict[str, str]]:
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status, *_ = lines[0].split(" ")
        assert version in ("HTTP/1.1", "HTTP/1.0"), lines[0]
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(status), {name.lower(): value.strip() for name, _, value in pairs}

    async def _body(self, headers: dict[str, str]) -> bytes:
        assert self._reader is not None
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
            return body
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        return await self._reader.read()


async def exchanged(address: tuple[str, int], data: bytes) -> Answer:
    """What these bytes are answered with, on a connection of their own."""
    async with Wire(address) as wire:
        return await wire.exchange(data)


async def exchanged_h2(address: tuple[str, int], *bodies: bytes, path: str) -> list[Answer]:
    """POST all bodies at once over one HTTP/2 connection, without an upgrade; returns the answers in their order."""
    reader, writer = await asyncio.open_connection(*address)
    connection = ngh2.Connection(ngh2.Role.CLIENT)
    connection.initiate_connection({})
    streams = []
    for body in bodies:
        head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"test")]
        stream = connection.send_request([*head, (b"content-type", b"application/json")])
        connection.send_data(stream, body, end_stream=True)
        streams.append(stream)
    heads: dict[int, dict[str, str]] = {}
    parts: dict[int, bytes] = dict.fromkeys(streams, b"")
    open_streams = set(streams)
    async with asyncio.timeout(PATIENCE_S):
        while open_streams:
            writer.write(connection.data_to_send())
            data = await reader.read(65536)
            assert data, "the connection ended before all answers"
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, ngh2.ResponseReceived):
                    heads[event.stream_id] = {name.decode(): value.decode() for name, value in event.headers}
                elif isinstance(event, ngh2.DataReceived):
                    parts[event.stream_id] += event.data
                elif isinstance(event, ngh2.StreamClosed):
                    open_streams.discard(event.stream_id)
    writer.close()
    return [Answer(int(heads[stream][":status"]), heads[stream], parts[stream]) for stream in streams]
