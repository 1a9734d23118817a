"""Requests under a deadline: whole when they leave, and not at all once it is over."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self

import pytest
import urllib3

from matrixinfer.cluster import apiserver_connections as connections
from matrixinfer.cluster.clock import boottime

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LARGE = b"a" * 8_000_000  # more than a socket takes at once


class Server:
    """Takes one connection at a time; `slowness_s` goes by before it reads a request's first byte."""

    def __init__(self, *, slowness_s: float = 0.0) -> None:
        self.pieces: list[bytes] = []
        self._slowness_s = slowness_s
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.join()
        self._listening.close()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces).partition(b"\r\n\r\n")[2]

    def _serve(self) -> None:
        stream, _ = self._listening.accept()
        with stream, contextlib.suppress(ConnectionError):
            time.sleep(self._slowness_s)
            while piece := stream.recv(1_000_000):
                self.pieces.append(piece)
                head = b"".join(self.pieces).partition(b"\r\n\r\n")[0]
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                if len(self.body) == length:
                    stream.sendall(ANSWER)


def put(server: Server, body: bytes, *, within_s: float) -> int:
    with connections.POOLS["http"]("127.0.0.1", server.port) as pool:
        connections.sending.before = boottime() + within_s
        connections.sending.over = boottime() + 30
        try:
            return pool.urlopen("PUT", "/", body=body, retries=False, timeout=10).status
        finally:
            connections.sending.before = connections.sending.over = float("inf")


def test_head_and_body_leave_together():
    with Server() as server:
        assert put(server, b"{}", within_s=10) == 200
    assert len(server.pieces) == 1


def test_a_body_that_no_socket_takes_at_once_arrives_whole():
    with Server(slowness_s=0.2) as server:
        assert put(server, LARGE, within_s=10) == 200
    assert server.body == LARGE


def test_a_body_is_not_finished_once_its_time_is_over():
    with Server(slowness_s=0.5) as server, pytest.raises(urllib3.exceptions.ConnectTimeoutError):
        put(server, LARGE, within_s=0.1)
    assert len(server.body) < len(LARGE)


def test_nothing_leaves_once_its_time_is_over():
    with Server() as server, pytest.raises(urllib3.exceptions.ConnectTimeoutError):
        put(server, b"{}", within_s=-1)
    assert server.pieces == []
