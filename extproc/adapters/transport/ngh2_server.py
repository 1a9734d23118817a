"""gRPC over HTTP/2 by nghttp2 (`ngh2`): the default transport, at a small part of grpc.aio's cost.

The server listens, counts connections and drains them; what happens on one is `ngh2_connection`'s. No TLS and no
compression: for a Unix socket or loopback.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from extproc.adapters.transport import listening
from extproc.adapters.transport.ngh2_connection import Connection

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from extproc.adapters.transport.calls import Limits, Service

_LOG = logging.getLogger(__name__)


class NgServer:
    """All connections of one listening socket."""

    def __init__(self, services: Mapping[str, Service], limits: Limits) -> None:
        self.services = {path.encode(): service for path, service in services.items()}
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.held = 0  # bytes of unfinished messages, all calls
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._stopping = False
        self._listener: asyncio.Server | None = None
        self._accepting: socket.socket | None = None
        self._beat: asyncio.Task[None] | None = None
        self._owned: listening.OwnedPath | None = None
        self._address: listening.UnixAddress | listening.TcpAddress | None = None

    async def start(self, address: listening.UnixAddress | listening.TcpAddress, socket_mode: int) -> None:
        """Listen."""
        if isinstance(address, listening.UnixAddress):
            self._owned = listening.OwnedPath(address.path)
            accepting = listening.listen_unix(self._owned, socket_mode)
            self._address = address
            listener = await self.loop.create_unix_server(self._connection, sock=accepting.dup())
        else:
            accepting = listening.listen_tcp(address)
            self._address = listening.TcpAddress(address.host, accepting.getsockname()[1])
            listener = await self.loop.create_server(self._connection, sock=accepting.dup())
        self._listener, self._accepting = listener, accepting
        self._beat = self.loop.create_task(self._keepalive())

    def _connection(self) -> Connection:
        return Connection(self)

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self._address)

    def admit(self, connection: Connection) -> bool:
        """Count a new connection, if there is room."""
        if len(self._connections) >= self.limits.max_connections:
            _LOG.warning("more than %d connections: one is refused", self.limits.max_connections)
            return False
        self._connections.add(connection)
        self._empty.clear()
        if self._stopping:
            self.loop.call_soon(connection.drain)
        return True

    def forget(self, connection: Connection) -> None:
        """Drop a connection that is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def _keepalive(self) -> None:
        while True:
            await asyncio.sleep(self.limits.keepalive_s)
            for connection in list(self._connections):
                connection.keepalive()

    async def stop(self, grace_s: float) -> None:
        """Take no more connections, drain those there are, abort what is left after `grace_s`."""
        listener, accepting = self._listener, self._accepting
        if listener is None or accepting is None or self._stopping:
            return
        self._stopping = True
        if self._owned is not None:
            self._owned.withdraw()
        listener.close()
        await self._accept_rest(accepting)
        for connection in list(self._connections):
            connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), grace_s)
        for connection in list(self._connections):
            connection.abort()
        if self._beat is not None:
            self._beat.cancel()
        await self._empty.wait()

    async def _accept_rest(self, accepting: socket.socket) -> None:
        """Take the connections that the system has accepted in our name."""
        with accepting:
            while True:
                try:
                    peer, _ = accepting.accept()
                except OSError:  # nobody waits
                    return
                peer.setblocking(False)
                await self.loop.connect_accepted_socket(self._connection, peer)
