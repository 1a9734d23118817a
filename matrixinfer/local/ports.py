"""Ports that the stack offers to people: checked before anything starts, so that one in use is named at once."""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import suppress
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FROM = 10_240
_TRIES = 20


class PortInUse(Exception):
    """Somebody else has the port; the message says which option to change."""


def choose(port: int, *, option: str, host: str = "127.0.0.1") -> int:
    """Return `port`, or any free one for 0. Raises PortInUse.

    For 0 it is, if possible, one that the kernel gives to no connection before it is served.
    """
    below = 0 if port else _first_ephemeral() - _FROM
    for _ in range(_TRIES if below > 0 else 0):
        with suppress(PortInUse):
            return _free(_FROM + secrets.randbelow(below), option, host)
    return _free(port, option, host)


def _free(port: int, option: str, host: str) -> int:
    with socket.socket(_family(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger do not count
        _bind(probe, port, option, host)
        return int(probe.getsockname()[1])


def hold(port: int, *, option: str, host: str) -> socket.socket:
    """Like `choose`, and keep the port for a server that sets SO_REUSEPORT, as Envoy does: also between its lives.

    A socket that is bound and does not listen gets no connections.
    """
    chosen = choose(port, option=option, host=host)
    held = socket.socket(_family(host))
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(held, chosen, option, host)
    except BaseException:
        held.close()
        raise
    return held


def _first_ephemeral() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bind(probe: socket.socket, port: int, option: str, host: str) -> None:
    try:
        probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"port {port} is in use: choose another with {option} PORT, or 0 for any free one"
            ) from None
        if error.errno == errno.EACCES:
            raise PortInUse(
                f"port {port} may not be opened by this user: choose one above 1023 with {option} PORT"
            ) from None
        raise PortInUse(f"port {port} of {host} cannot be opened: {error.strerror}") from None
