"""The Redis in which a stack's gateways count together: one that this machine starts, or one that runs already.

Routes name Redis by an address of the cluster that they were written for, which does not exist here. So every address
means this one.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from matrixinfer.local import ports
from matrixinfer.local.processes import Command

if TYPE_CHECKING:
    from pathlib import Path

HERE = "here"  # instead of a URL: start one


class RedisMissing(Exception):
    """There is no Redis to start; the message says how to get one."""


def server(folder: Path, log: Path) -> tuple[str, Command]:
    """Return the URL of a server, and how it is started. Raises RedisMissing.

    It writes every command to a file before it answers, and so forgets nothing if it is killed.
    """
    names = ("redis-server", "valkey-server")
    binary = next((found for name in names if (found := shutil.which(name)) is not None), None)
    if binary is None:
        raise RedisMissing(
            "no redis-server found: install it (Debian, Ubuntu: apt-get install redis-server), or name one that runs"
            " already with --redis redis://HOST:PORT"
        )
    port = ports.choose(0, option="--redis")
    data = folder / "redis"
    data.mkdir(exist_ok=True)
    argv = (
        *(binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(data), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "no"),
    )
    return f"redis://127.0.0.1:{port}", Command(argv, dict(os.environ), log)


def entry(folder: Path, url: str) -> Path:
    """Write for the pickers how Redis is entered, whatever address a route names; the URL may hold a password."""
    file = folder / "redis.txt"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(f"* {url}\n")
    return file
