"""Processes of the stack, each under a guardian of its own (see `guardian.py`).

A `Process` is started once and ends once; starting it anew is the business of its owner. Output goes to a log file
directly, never through the supervisor.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GUARDIAN = Path(__file__).with_name("guardian.py")


class StartError(Exception):
    """The command cannot be executed; the message says why."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `log` receives standard output and error, appended."""

    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path | None = None


class Process:
    """One running command. `pid` is the command's own process id, not its guardian's."""

    def __init__(self, guardian: asyncio.subprocess.Process, pid: int) -> None:
        self.pid = pid
        self._guardian = guardian
        self._exit = asyncio.ensure_future(self._watch())

    @classmethod
    async def start(cls, command: Command) -> Process:
        """Start the command. Raises StartError."""
        if command.cwd is not None and not command.cwd.is_dir():
            raise StartError(f"working directory {command.cwd} does not exist")
        command.log.parent.mkdir(parents=True, exist_ok=True)
        guardian = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            str(GUARDIAN),
            str(command.log.absolute()),
            *command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(command.env),
            cwd=command.cwd,
            start_new_session=True,
        )
        try:
            first = await _message(guardian)
        except asyncio.CancelledError:
            _orders(guardian).close()
            raise
        if "pid" not in first:
            _orders(guardian).close()
            await guardian.wait()
            raise StartError(str(first.get("error", "its guardian died")))
        return cls(guardian, first["pid"])

    @property
    def running(self) -> bool:
        """False as soon as the command has ended and all it started is gone."""
        return not self._exit.done()

    async def wait(self) -> int:
        """Exit code; 128 + N for a death by signal N."""
        return await asyncio.shield(self._exit)

    def terminate(self) -> None:
        """Ask the command to stop (SIGTERM)."""
        self._order(b"t")

    def kill(self) -> None:
        """Kill the command and everything it started (SIGKILL)."""
        self._order(b"k")

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL after the grace (at once if cancelled); returns when nothing of it is left."""
        try:
            if grace_s > 0:
                self.terminate()
                with suppress(TimeoutError):
                    return await asyncio.wait_for(self.wait(), grace_s)
        finally:
            self.kill()
        return await self.wait()

    def _order(self, order: bytes) -> None:
        if self.running:
            _orders(self._guardian).write(order)

    async def _watch(self) -> int:
        last = await _message(self._guardian)
        if "exit" not in last:  # the guardian was killed: the kernel has killed the command, the rest falls to us
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        await self._guardian.wait()
        orders = _orders(self._guardian)
        orders.close()
        with suppress(OSError):
            await orders.wait_closed()
        return int(last.get("exit", 128 + signal.SIGKILL))


def _orders(guardian: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    if guardian.stdin is None:
        raise RuntimeError("a guardian is started with a pipe")
    return guardian.stdin


async def _message(guardian: asyncio.subprocess.Process) -> dict[str, int]:
    """Next line from the guardian; empty if it is gone."""
    if guardian.stdout is None:
        raise RuntimeError("a guardian is started with a pipe")
    line = await guardian.stdout.readline()
    message: dict[str, int] = json.loads(line) if line.endswith(b"\n") else {}
    return message


def tail(log: Path, lines: int = 10, limit: int = 16384) -> list[str]:
    """Last lines of a log file, none if there is no file."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - limit))
        return file.read().decode(errors="replace").splitlines()[-lines:]
    return []


def last_words(log: Path) -> str:
    """Last lines of a log file on one line, without the markers under a traceback's code."""
    return " | ".join(line.strip() for line in tail(log, 3) if line.strip(" ^~"))
