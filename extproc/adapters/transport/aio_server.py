"""gRPC by grpc.aio: the transport for TLS and for the network, and the second opinion beside nghttp2.

Raw bytes by generic handlers, no generated stubs. A call runs in two tasks: the handler's own writes what the listener
queues, a second one reads. What it does less well than nghttp2: memory over all calls is bounded only by `max_streams`
times the message limit, and a stop cancels calls that arrived in its last moment.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import grpc.aio  # type: ignore[import-untyped]

from extproc.adapters.transport import listening
from extproc.adapters.transport.calls import Limits, Listener, Service, Status, Tls

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOG = logging.getLogger(__name__)
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class AioCall:
    """One call: messages and the end that wait to be written."""

    __slots__ = ("_end", "_queue", "_wake", "done", "listener")

    def __init__(self) -> None:
        self._queue: list[bytes] = []
        self._end: tuple[int, str] | None = None
        self._wake = asyncio.Event()
        self.listener: Listener | None = None
        self.done = False  # finished by us, or lost

    def send(self, message: bytes) -> None:
        """Queue one message."""
        if not self.done:
            self._queue.append(message)
            self._wake.set()

    def finish(self, status: int = Status.OK, message: str = "") -> None:
        """End the call after what is queued."""
        if not self.done:
            self.done = True
            self._end = (status, message)
            self._wake.set()

    async def pump(self, context: Any) -> None:
        """Write until the end."""
        while True:
            while self._queue:
                waiting, self._queue = self._queue, []
                for message in waiting:
                    await context.write(message)
            if self._end is not None:
                status, details = self._end
                context.set_code(_CODES[status])
                context.set_details(details)
                return
            self._wake.clear()
            await self._wake.wait()

    async def read(self, context: Any) -> None:
        """Tell the listener what comes."""
        while not self.done:
            message = await context.read()
            self._deliver(message)
            if message is grpc.aio.EOF:
                return

    def _deliver(self, message: Any) -> None:
        listener = self.listener
        if self.done or listener is None:
            return
        try:
            if message is grpc.aio.EOF:
                listener.on_end()
            else:
                listener.on_message(message)
        except Exception:  # noqa: BLE001 - one call's bug is not the server's
            self.failed()

    def guarded(self, tell: Any) -> None:
        """Tell a listener; its bug ends its call only."""
        try:
            tell()
        except Exception:  # noqa: BLE001 - as above
            self.failed()

    def failed(self) -> None:
        """End the call for a bug of its service."""
        _LOG.exception("a service failed")
        self.finish(Status.UNKNOWN, "the service failed; its log says why")

    def lost(self) -> None:
        """Tell the listener, once, that nobody is there any more."""
        if not self.done:
            self.done = True
            if self.listener is not None:
                self.guarded(self.listener.on_cancel)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Every method of ours as a stream of raw messages in both directions."""

    def __init__(self, services: Mapping[str, Service], calls: set[AioCall]) -> None:
        self._calls = calls
        self._handlers = {
            path: grpc.stream_stream_rpc_method_handler(self._behaviour(service)) for path, service in services.items()
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method, None for an unknown one."""
        return self._handlers.get(handler_call_details.method)

    def _behaviour(self, service: Service) -> Any:
        async def handle(_requests: Any, context: Any) -> None:
            call = AioCall()
            reader: asyncio.Task[None] | None = None
            self._calls.add(call)
            try:
                try:
                    call.listener = service.open(call)
                except Exception:  # noqa: BLE001 - as above
                    call.failed()
                reader = asyncio.ensure_future(call.read(context))
                await call.pump(context)
            finally:
                if reader is not None:
                    reader.cancel()
                self._calls.discard(call)
                call.lost()

        return handle


class AioServer:
    """A grpc.aio server behind our interface."""

    def __init__(self, services: Mapping[str, Service], limits: Limits) -> None:
        self._calls: set[AioCall] = set()
        self._server: Any = grpc.aio.server(
            handlers=[_Methods(services, self._calls)],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", limits.max_streams),
                ("grpc.max_metadata_size", limits.max_header_bytes),
                ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
                ("grpc.keepalive_timeout_ms", int(limits.keepalive_s * 1000)),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._owned: listening.OwnedPath | None = None
        self._address: listening.UnixAddress | listening.TcpAddress | None = None

    async def start(
        self, address: listening.UnixAddress | listening.TcpAddress, socket_mode: int, tls: Tls | None
    ) -> None:
        """Listen."""
        if isinstance(address, listening.UnixAddress):
            self._owned = listening.OwnedPath(address.path)
            target = f"unix:{self._owned.draft}"
        else:
            target = str(address)
        if tls is None:
            port = self._server.add_insecure_port(target)
        else:
            credentials = grpc.ssl_server_credentials(
                [(tls.key, tls.certificate)], tls.client_ca, require_client_auth=tls.client_ca is not None
            )
            port = self._server.add_secure_port(target, credentials)
        if isinstance(address, listening.TcpAddress):
            address = listening.TcpAddress(address.host, port)
        self._address = address
        await self._server.start()
        if self._owned is not None:
            self._owned.publish(socket_mode)

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self._address)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, drain those there are, cancel what is left after `grace_s`."""
        if self._owned is not None:
            self._owned.withdraw()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        for call in list(self._calls):
            if call.listener is not None and not call.done:
                call.guarded(call.listener.on_drain)
        await stopping
