"""A real redis-server of the tests' own, which they may also kill, stop for a while, and start again."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
import redis

from matrixinfer.local.ports import choose
from tests.local.waiting import eventually

INSTALL = "apt-get update -q && apt-get install -qy redis-server"


@cache
def binary():
    """Return the server's path; Debian's is installed where there is none and that is possible."""
    if (found := shutil.which("redis-server")) is None and shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["timeout", "60", "sh", "-c", INSTALL], capture_output=True, check=False)
        found = shutil.which("redis-server")
    return found


class Server:
    """One server. Its memory goes with its process."""

    def __init__(self, directory, port, *options, tls=False, sentinel=None):
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._directory = directory
        self._options = options
        self._where = ["--port", "0", "--tls-port", str(port)] if tls else ["--port", str(port)]
        self._role = [sentinel] if sentinel else []
        self._last = ["--sentinel"] if sentinel else ["--save", ""]
        self._process = None

    def start(self):
        self._process = subprocess.Popen(
            [
                *(binary(), *self._role, *self._where, "--bind", "127.0.0.1", "--dir", str(self._directory)),
                *self._options,
                *self._last,
            ],
            stdout=subprocess.DEVNULL,
        )

    async def ready(self):
        def answers():
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1):
                    return True
            except OSError:
                return False

        await eventually(answers)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def halt(self):
        """Let it answer nobody: as a network that swallows everything."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def client(self):
        return redis.Redis(port=self.port, decode_responses=True)


@asynccontextmanager
async def running(*options, **how):
    """Run a server."""
    if binary() is None:
        pytest.skip("no redis-server: apt-get install redis-server")
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory), choose(0, option="port"), *options, **how)
        server.start()
        try:
            await server.ready()
            yield server
        finally:
            server.kill()
