"""Addresses to listen on, and the sockets behind them.

A Unix socket is bound under a name of its own and renamed to its path: a stale socket is replaced, a new server takes
the path over from an old one without a moment where nobody listens, and the old one does not remove what is not its own.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BACKLOG: Final = 1024
_MAX_PATH: Final = 107  # bytes of a Unix socket's name in Linux


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP port; 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(address: str) -> UnixAddress | TcpAddress:
    """Read "unix:/path" or "host:port". Raises ValueError."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path:
            raise ValueError("a Unix socket needs a path: unix:/run/picker.sock")
        return UnixAddress(Path(path))
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:  # noqa: PLR2004 - the largest port
        raise ValueError(f"{address!r} is no address: write unix:/path, host:port or [::1]:port")
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))


class OwnedPath:
    """The name of a Unix socket in the file system, as long as it is ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.draft = path.with_name(f".{path.name}.{os.getpid()}")  # what it is bound as
        self._identity: tuple[int, int] | None = None
        if len(os.fsencode(self.draft)) > _MAX_PATH:
            raise ValueError(f"{path} is too long for a Unix socket: {_MAX_PATH} bytes less those of the process id")

    def publish(self, mode: int) -> None:
        """Give the socket that listens under `draft` its real name. Raises FileExistsError for another kind of file."""
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                self.draft.unlink()
                raise FileExistsError(f"{self.path} exists and is no socket")
        self.draft.chmod(mode)
        found = self.draft.stat()
        self._identity = (found.st_dev, found.st_ino)
        self.draft.rename(self.path)

    def withdraw(self) -> None:
        """Remove the name, unless a successor took it."""
        with suppress(FileNotFoundError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()


def listen_unix(owned: OwnedPath, mode: int) -> socket.socket:
    """Return a socket that listens under the path already."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            owned.draft.unlink()
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(owned.draft))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
        owned.publish(mode)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_tcp(address: TcpAddress) -> socket.socket:
    """Return a socket that listens on the port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    listener.setblocking(False)
    return listener
