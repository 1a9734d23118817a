"""The stack's own processes beside the pods: Envoy and the picker, kept running."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from matrixinfer.local.processes import Process, StartError, last_words, tail

if TYPE_CHECKING:
    from matrixinfer.local.containers import Backoff
    from matrixinfer.local.processes import Command

logger = logging.getLogger("matrixinfer.local")

STOP_S = 1.5  # what a service gets to stop by itself; nothing of its state outlives the stack


class Service:
    """One command, started again whenever it ends. `run` until cancelled; then it is stopped."""

    def __init__(self, name: str, command: Command, *, backoff: Backoff) -> None:
        self.name = name
        self.restarts = 0
        self.failure = ""  # how it ended last
        self._command = command
        self._backoff = backoff
        self._process: Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None and self._process.running else None

    def log_tail(self, lines: int = 10) -> list[str]:
        """Last lines that it wrote."""
        return tail(self._command.log, lines)

    async def run(self) -> None:
        """Keep it running."""
        crashes = 0
        while True:
            began = time.monotonic()
            self.failure = await self._once()
            crashes = 1 if self._backoff.forgives(time.monotonic() - began) else crashes + 1
            pause = self._backoff.pause(crashes)
            logger.warning("%s: %s; starts again in %g s (%s)", self.name, self.failure, pause, self._command.log)
            self.restarts += 1
            await asyncio.sleep(pause)

    async def _once(self) -> str:
        """One life of the process; returns how it ended."""
        try:
            self._process = await Process.start(self._command)
        except StartError as error:
            return f"cannot be started: {error}"
        try:
            code = await self._process.wait()
        finally:
            if self._process.running:
                await self._process.stop(STOP_S)
        last = last_words(self._command.log)
        return f"ended with exit code {code}" + (f": {last}" if last else "")
