"""`serve`: one door to both transports. Which one serves is a switch; services cannot tell the difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from extproc.adapters.transport import listening
from extproc.adapters.transport.calls import Limits, Server, Service, Tls

if TYPE_CHECKING:
    from collections.abc import Mapping

Transport = Literal["ngh2", "grpc"]


async def serve(  # noqa: PLR0913 - the keyword-only ones are settings
    address: str,
    services: Mapping[str, Service],
    *,
    transport: Transport = "ngh2",
    limits: Limits | None = None,
    socket_mode: int = 0o600,
    tls: Tls | None = None,
) -> Server:
    """Listen on `address` ("unix:/path" or "host:port") for the methods in `services` ("/package.Service/Method").

    `socket_mode` guards a Unix socket: 0o600, or 0o660 where Envoy runs as another user of the group. Raises
    ValueError for settings that do not fit together, OSError if the address cannot be had.
    """
    where = listening.parse(address)
    if transport == "ngh2":
        if tls is not None:
            raise ValueError("the ngh2 transport has no TLS: use the grpc transport")
        from extproc.adapters.transport.ngh2_server import NgServer  # noqa: PLC0415 - load one transport only

        fast = NgServer(services, limits or Limits())
        await fast.start(where, socket_mode)
        return fast
    if transport == "grpc":
        from extproc.adapters.transport.aio_server import AioServer  # noqa: PLC0415 - as above

        slow = AioServer(services, limits or Limits())
        await slow.start(where, socket_mode, tls)
        return slow
    raise ValueError(f"unknown transport {transport!r}: ngh2 or grpc")
