"""The plain view of a running stack: lines on standard error, for terminals without more and for files.

A view takes what is said (`say`), what is logged, and is told while it should watch a stack (`watching`) and from when on
the stack serves (`serving`).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from matrixinfer.api import core, kinds
from matrixinfer.cli.view.summary import summary
from matrixinfer.cli.view.watch import watch
from matrixinfer.cluster.protocol import EventType, Expired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from matrixinfer.cli.view.snapshot import Snapshot
    from matrixinfer.local.stack import Stack

LOOK_EVERY_S = 0.2  # at log files that may have grown
SUM_UP_EVERY_S = 5.0  # if something has changed


class PlainView:
    """Writes lines as things happen."""

    def __init__(self, log_level: str, *, logs: bool, summaries: bool = True) -> None:
        """Show what pods write with `logs`; with `summaries` a line about the traffic every few seconds in which there was some."""
        self._logs = logs
        self._summaries = summaries
        self._serving = asyncio.Event()
        logging.basicConfig(
            stream=sys.stderr,
            level=log_level.upper(),
            format="%(asctime)s %(levelname)-7s %(message)s",
            datefmt="%H:%M:%S",
            force=True,
        )
        if log_level != "debug":  # what these say at `info` is about themselves
            for chatty in ("asyncio", "grpc", "watchfiles"):
                logging.getLogger(chatty).setLevel(logging.WARNING)

    def say(self, text: str) -> None:
        """Tell the user."""
        print(f"matrixinfer: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the command's own voice

    def serving(self, url: str) -> None:
        """Tell that requests are served from now on."""
        print(f"ready {url}", flush=True)  # noqa: T201 - what programs wait for
        self._serving.set()

    @asynccontextmanager
    async def watching(self, stack: Stack) -> AsyncIterator[None]:
        """Tell what happens in the stack until the body ends."""
        tasks = [asyncio.create_task(self._follow_pods(stack))]
        if self._logs:
            tasks.append(asyncio.create_task(self._follow_logs(stack.logs)))
        if self._summaries:
            tasks.append(asyncio.create_task(self._sum_up(stack)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _sum_up(self, stack: Stack) -> None:
        await self._serving.wait()
        before: Snapshot | None = None

        def tell(now: Snapshot) -> None:
            nonlocal before
            if text := summary(before, now):
                self.say(text)
            before = now

        await watch(stack, tell, every_s=SUM_UP_EVERY_S)

    async def _follow_pods(self, stack: Stack) -> None:
        ready: dict[str, bool] = {}

        def tell(pod: core.Pod, *, gone: bool = False) -> None:
            name = f"{pod.metadata.namespace}/{pod.metadata.name}"
            before, now = ready.get(name, False), pod.ready and not gone
            ready[name] = now
            if now != before:
                self.say(f"pod {name} is {'ready' if now else 'not ready'} ({pod.status.pod_ip})")

        while True:
            listing = await stack.cluster.list(kinds.POD)
            for item in listing.items:
                tell(core.Pod.model_validate(item))
            with suppress(Expired):
                async for event in stack.cluster.watch(kinds.POD, since=listing.resource_version, bookmarks=False):
                    tell(core.Pod.model_validate(event.object), gone=event.type is EventType.DELETED)

    async def _follow_logs(self, folder: Path) -> None:
        seen: dict[Path, int] = {}
        while True:
            self._show_new(folder, seen)
            await asyncio.sleep(LOOK_EVERY_S)

    def _show_new(self, folder: Path, seen: dict[Path, int]) -> None:
        for log in sorted(folder.glob("*_*_*.log")):
            seen[log] = self._show(log, seen.get(log, 0))

    def _show(self, log: Path, position: int) -> int:
        """Write the complete lines from `position` on; returns where they end."""
        with log.open("rb") as file:
            file.seek(position)
            complete, newline, _ = file.read().rpartition(b"\n")
        _, pod, container = log.stem.split("_", 2)
        for line in complete.decode(errors="replace").splitlines() if newline else ():
            print(f"{pod}/{container} | {line}", file=sys.stderr)  # noqa: T201 - the pod's voice
        return position + len(complete) + len(newline)
