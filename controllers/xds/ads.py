"""The aggregated discovery service: streams of Envoys, each with a `Session`, over one published snapshot.

gRPC carries raw bytes; the two envelope messages are C-coded protobuf, since an Envoy's first request lists every
extension it has.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import grpc.aio  # type: ignore[import-untyped]
from envoy.service.discovery.v3 import discovery_pb2

from controllers.xds.session import Ack, Nack, Request, Response, Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from controllers.xds.snapshot import Snapshot

SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD: Final = "StreamAggregatedResources"

# Envoy pings every 30 s (envoy/bootstrap.yaml) to notice a frozen control plane. gRPC's default allows a ping in five
# minutes on a silent stream, and closes the connection of whoever asks more often.
OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the Envoys are with the last snapshot."""

    envoys: int
    settled: bool  # every one of them has answered all of it
    refused: tuple[Nack, ...]


class Ads:
    """Hands snapshots to every Envoy that connects. All calls are made on one event loop."""

    def __init__(self, on_progress: Callable[[], None]) -> None:
        """`on_progress` is called when an Envoy came, went or answered; `progress` says where things stand."""
        self._on_progress = on_progress
        self._snapshot: Snapshot | None = None
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None

    @property
    def progress(self) -> Progress:
        """Where things stand now."""
        snapshot = self._snapshot
        refused = dict.fromkeys(
            nack for one in self._streams if snapshot is not None for nack in one.session.refused(snapshot)
        )
        settled = bool(self._streams) and all(one.seen is snapshot and one.session.settled for one in self._streams)
        return Progress(len(self._streams), settled, tuple(refused))

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` what every Envoy gets."""
        self._snapshot = snapshot
        for stream in self._streams:
            stream.wake()

    async def start(self, *addresses: str) -> tuple[int, ...]:
        """Listen on `unix:PATH` or `HOST:PORT` addresses; returns the ports (1 for a socket)."""
        server = grpc.aio.server(options=OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        ports = tuple(server.add_insecure_port(address) for address in addresses)
        await server.start()
        self._server = server
        return ports

    async def stop(self, grace_s: float = 0.0) -> None:
        """Close every stream; Envoys keep what they have."""
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _serve(
        self, requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        stream = _Stream()
        self._streams.add(stream)
        log.info("envoy connected")
        reading = asyncio.create_task(stream.read(requests))
        try:
            while (event := await stream.next()) is not None:
                if isinstance(event, Request):
                    _report(stream.session.receive(event))
                snapshot = self._snapshot
                if snapshot is not None:
                    for response in stream.session.send(snapshot, asyncio.get_running_loop().time()):
                        yield encode(response)
                    stream.seen = snapshot
                self._on_progress()
        finally:
            reading.cancel()
            self._streams.discard(stream)
            log.info("envoy gone")
            self._on_progress()


class _Stream:
    """One Envoy, and what happens to it in order: requests, `True` for a new snapshot, None at its end."""

    def __init__(self) -> None:
        self.session = Session()
        self.seen: Snapshot | None = None  # the last snapshot of which it was sent what was due
        self.events: asyncio.Queue[Request | bool | None] = asyncio.Queue()

    async def next(self) -> Request | bool | None:
        """Return the next event; True, too, when a cluster is to go."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self.session.leaves_at):
                return await self.events.get()
        return True

    def wake(self) -> None:
        self.events.put_nowait(True)

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for raw in requests:
                self.events.put_nowait(decode(raw))
        finally:
            self.events.put_nowait(None)


def _report(answer: Ack | Nack | None) -> None:
    if isinstance(answer, Nack):
        log.warning("envoy refused %s: %s", ", ".join(sorted(answer.names)), answer.message)


def decode(raw: bytes) -> Request:
    """Read a DiscoveryRequest."""
    message = discovery_pb2.DiscoveryRequest.FromString(raw)
    return Request(
        type_url=message.type_url,
        names=frozenset(message.resource_names),
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def encode(response: Response) -> bytes:
    """Write a DiscoveryResponse."""
    message = discovery_pb2.DiscoveryResponse(
        version_info=response.version, type_url=response.type_url, nonce=response.nonce
    )
    for resource in response.resources.values():
        message.resources.add().MergeFromString(resource.encoded)
    return bytes(message.SerializeToString())
