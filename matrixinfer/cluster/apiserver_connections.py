"""Connections to an API server: they notice a peer that is gone, and keep back a write whose time is over."""

from __future__ import annotations

import socket
import ssl
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
    """Keeps a request back whose time is over, and has the kernel give up sending it again when it will be.

    What is past the look at the clock when its process is frozen leaves when that thaws. So a request leaves in one piece, and Python is
    not let wait between the look and the system call: with a timeout it would, for the socket and then for its own lock.
    """

    sock: Any
    _bounded = False
    _parts: list[bytes] | None = None  # of a request that is being made

    def request(self, *arguments: Any, **more: Any) -> None:
        self._parts = []
        try:
            super().request(*arguments, **more)  # type: ignore[misc]  # mixed into urllib3's connections
            whole = b"".join(self._parts)
        finally:
            self._parts = None
        if self.sock is None:
            self.connect()  # type: ignore[attr-defined]
        bounded = sending.over < float("inf")
        if (bounded or self._bounded) and _USER_TIMEOUT is not None:
            # 0: as long as the system has it
            left_ms = max(int((sending.over - boottime()) * 1000), 1) if bounded else 0
            self.sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, left_ms)
            self._bounded = bounded
        if bounded:
            _send_before(sending.before, self.sock, memoryview(whole))
        else:
            self.send(whole)

    def send(self, data: Any) -> None:
        if self._parts is None:
            super().send(data)  # type: ignore[misc]
        else:
            self._parts.append(data)


def _send_before(moment: float, sock: socket.socket, whole: memoryview) -> None:
    """Send it. Raises ConnectTimeoutError if the moment comes first."""
    patience_s = sock.gettimeout()
    sock.settimeout(0)
    try:
        while whole:
            left_s = moment - boottime()
            if left_s < 0:
                raise urllib3.exceptions.ConnectTimeoutError(
                    "connecting and sending took too long for a write under a lease"
                )
            try:
                whole = whole[sock.send(whole) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                urllib3.util.wait_for_write(sock, left_s)
    finally:
        sock.settimeout(patience_s)


class _Connection(_Punctual, HTTPConnection):
    pass


class _TlsConnection(_Punctual, HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


POOLS: Final = {"http": _Pool, "https": _TlsPool}
