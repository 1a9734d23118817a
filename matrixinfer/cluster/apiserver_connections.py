"""Connections to an API server: they notice a peer that is gone, and keep back a write whose time is over."""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from matrixinfer.cluster.clock import boottime

# A peer that is gone is noticed within half a minute, where nothing is said for long.
SOCKET_OPTIONS: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class _Sending(threading.local):
    """Until when the request of this thread may leave (opening a connection may have taken long), and may arrive."""

    before: float = float("inf")
    over: float = float("inf")


sending = _Sending()


_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


class _Punctual:
    """Keeps a request back whose time is over, and has the kernel give up sending it again when it will be."""

    sock: socket.socket | None
    _bounded = False

    def request(self, *arguments: Any, **more: Any) -> None:
        now = boottime()
        if now > sending.before:
            raise urllib3.exceptions.ConnectTimeoutError("connecting took too long for a write under a lease")
        bounded = sending.over < float("inf")
        if (bounded or self._bounded) and self.sock is not None and _USER_TIMEOUT is not None:
            left_ms = max(int((sending.over - now) * 1000), 1) if bounded else 0  # 0: as long as the system has it
            self.sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, left_ms)
            self._bounded = bounded
        super().request(*arguments, **more)  # type: ignore[misc]  # mixed into urllib3's connections


class _Connection(_Punctual, HTTPConnection):
    pass


class _TlsConnection(_Punctual, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS: Final = {"http": _Pool, "https": _TlsPool}
