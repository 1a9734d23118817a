"""What a gRPC service of the picker sees of a transport: calls that carry raw message bytes, and nothing of HTTP/2.

A `Service` opens a call and returns its `Listener`; the transport tells the listener what comes in, the listener uses
the call to answer, at once or later. All of it happens on the event loop, so nobody needs a lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Status(IntEnum):
    """The gRPC status codes that we end calls with."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Call(Protocol):
    """One gRPC call, as its service sees it. Both methods do nothing once the call is over."""

    def send(self, message: bytes) -> None:
        """Queue one message; the transport sends it when the peer takes it."""
        ...

    def finish(self, status: int = Status.OK, message: str = "") -> None:
        """End the call after what was sent."""
        ...


class Listener(Protocol):
    """What a call's service is told. Exactly one of `finish` (ours) and `on_cancel` ends a call."""

    def on_message(self, data: bytes) -> None:
        """Take one whole message."""
        ...

    def on_end(self) -> None:
        """Take that the peer sends no more messages."""
        ...

    def on_cancel(self) -> None:
        """Take that the call is gone (reset, connection lost, deadline): nothing can be sent any more."""
        ...

    def on_drain(self) -> None:
        """Take that the server is stopping: a call that would go on for ever ends itself.

        Messages that were on their way may still come after that end.
        """
        ...


class Service(Protocol):
    """One gRPC method."""

    def open(self, call: Call) -> Listener:
        """Return what listens to a new call."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a peer may take. Defaults are for one Envoy beside the picker that carries prompts of a million tokens."""

    max_message_bytes: int = 20 << 20  # a 16 MiB body and its envelope; beyond: RESOURCE_EXHAUSTED
    max_held_bytes: int = 512 << 20  # unfinished messages of all calls together; beyond: RESOURCE_EXHAUSTED
    max_unsent_bytes: int = 64 << 20  # answers of one call that its peer does not take; beyond: the call is reset
    max_streams: int = 20_000  # concurrent calls of one connection, parked ones included
    max_connections: int = 256  # Envoy opens one for each worker thread
    max_header_bytes: int = 16 << 10  # gRPC headers of one call; beyond: the connection ends
    stream_window_bytes: int = 4 << 20  # what a peer may send ahead on one call
    connection_window_bytes: int = 64 << 20  # and on all calls of a connection
    reset_burst: int = 100_000  # resets at once: Envoy ends every exchange with one, and so would a client storm
    resets_per_s: int = 50_000  # and in the long run; beyond: the connection ends
    keepalive_s: float = 20.0  # a connection that was silent so long is asked, and dropped if silent as long again


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates (PEM) of a server; with `client_ca`, clients must show one of its certificates, too."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


class Server(Protocol):
    """A listening server."""

    @property
    def address(self) -> str:
        """Where it listens: "unix:/path" or "host:port", with the port that was really taken."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those that run finish within `grace_s`, end the rest."""
        ...
