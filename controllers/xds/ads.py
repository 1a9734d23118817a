"""The aggregated discovery service: streams of Envoys, each with a `Session`, over one published snapshot.

gRPC carries raw bytes; the two envelope messages are C-coded protobuf, since an Envoy's first request lists every
extension it has.
"""

from __future__ import annotations

import asyncio
import logging
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

log = logging.getLogger(__name__)


class Ads:
    """Hands snapshots to every Envoy that connects. All calls are made on one event loop."""

    def __init__(self, on_nack: Callable[[Nack], None], on_ack: Callable[[Ack], None] | None = None) -> None:
        """`on_nack` hears of every refused update; `on_ack` of every one that was taken."""
        self._on_nack = on_nack
        self._on_ack = on_ack
        self._snapshot: Snapshot | None = None
        self._streams: set[_Stream] = set()
        self._server: grpc.aio.Server | None = None

    @property
    def envoys(self) -> int:
        """How many are connected."""
        return len(self._streams)

    def publish(self, snapshot: Snapshot) -> None:
        """Make `snapshot` what every Envoy gets."""
        self._snapshot = snapshot
        for stream in self._streams:
            stream.wake()

    async def start(self, *addresses: str) -> tuple[int, ...]:
        """Listen on `unix:PATH` or `HOST:PORT` addresses; returns the ports (1 for a socket)."""
        server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 * 1024 * 1024),))
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
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        stream = _Stream()
        self._streams.add(stream)
        log.info("envoy connected: %s", context.peer())
        reading = asyncio.create_task(stream.read(requests))
        session = Session()
        try:
            while (event := await stream.events.get()) is not None or not reading.done():
                if isinstance(event, Request):
                    self._tell(session.receive(event))
                if self._snapshot is not None:
                    for response in session.send(self._snapshot):
                        yield encode(response)
        finally:
            reading.cancel()
            self._streams.discard(stream)
            log.info("envoy gone: %s", context.peer())

    def _tell(self, answer: Ack | Nack | None) -> None:
        if isinstance(answer, Nack):
            log.warning("envoy refused %s: %s", answer.type_url.rsplit(".", 1)[-1], answer.message)
            self._on_nack(answer)
        elif answer is not None and self._on_ack is not None:
            self._on_ack(answer)


class _Stream:
    """What happens to one stream, in order: requests, `True` for a new snapshot, None at its end."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Request | bool | None] = asyncio.Queue()

    def wake(self) -> None:
        self.events.put_nowait(True)

    async def read(self, requests: AsyncIterator[bytes]) -> None:
        try:
            async for raw in requests:
                self.events.put_nowait(decode(raw))
        finally:
            self.events.put_nowait(None)


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
