"""One container of a pod: a process, its probes, and starting it again.

`ContainerRunner.run` is a container's life; cancelling it stops the process and waits until nothing of it is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from matrixinfer.local import environment, images, probes
from matrixinfer.local.processes import Command, Process, StartError, last_words, tail
from matrixinfer.local.status import ContainerStatus, Running, Terminated, Waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from matrixinfer.api import core

logger = logging.getLogger("matrixinfer.local")

# How soon a container that is not ready yet is asked again at first, and how that grows to the probe's own period.
# It only helps: failures count once a period all the same.
EAGER_S = 0.1
EAGER_GROWTH = 1.25
START_FAILED = 128  # exit code of a command that could not be started, as container runtimes report it


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before restarts: none before the first, then doubling. Kubernetes has 10 s and 300 s.

    The default is a tenth of it: on one machine somebody is watching.
    """

    first_s: float = 1.0
    cap_s: float = 30.0

    def pause(self, crashes: int) -> float:
        """Seconds to wait after this many crashes in a row."""
        return 0.0 if crashes <= 1 else min(self.cap_s, self.first_s * 2.0 ** min(crashes - 2, 30))

    def forgives(self, ran_s: float) -> bool:
        """Return True if it ran so long that earlier crashes no longer count."""
        return ran_s >= 2 * self.cap_s


def _inherited() -> dict[str, str]:
    """Give the supervisor's environment; `python` and our commands are those of the interpreter that runs us."""
    own = str(Path(sys.executable).parent)
    return dict(os.environ) | {"PATH": f"{own}:{os.environ.get('PATH', os.defpath)}", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Settings:
    """How the node runs containers."""

    logs: Path
    backoff: Backoff = Backoff()
    env: Mapping[str, str] = field(default_factory=_inherited)


class ContainerRunner:
    """A container and its status, which `changed` is told to read again."""

    def __init__(  # noqa: PLR0913 - what a pod's containers share, by name
        self,
        pod: core.Pod,
        container: core.Container,
        *,
        restart: str,
        address: str,
        settings: Settings,
        sources: Mapping[tuple[str, str], Mapping[str, str]],
        grace: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.container = container
        self.status = ContainerStatus(container.name, container.image)
        self.log = settings.logs / f"{pod.metadata.namespace}_{pod.metadata.name}_{container.name}.log"
        self.started = asyncio.Event()
        self._pod = pod
        self._restart = restart
        self._address = address
        self._settings = settings
        self._sources = sources
        self._grace = grace
        self._changed = changed
        self._label = f"pod {pod.metadata.namespace}/{pod.metadata.name}, container {container.name}"

    def log_tail(self, lines: int) -> list[str]:
        """Last lines that it wrote."""
        return tail(self.log, lines)

    async def run(self) -> int:
        """Run the container, again and again as its restart policy says; returns the last exit code."""
        crashes = 0
        while True:
            try:
                command = self._command()
            except images.NoCommand as error:
                await self._wait_for_another_manifest("ErrImageNeverPull", str(error))
            except environment.BadEnvironment as error:
                await self._wait_for_another_manifest("CreateContainerConfigError", str(error))
            ended = await self._once(command)
            if self._restart == "Never" or (self._restart == "OnFailure" and ended.exit_code == 0):
                return ended.exit_code
            crashes = 1 if self._settings.backoff.forgives(ended.finished_at - ended.started_at) else crashes + 1
            pause = self._settings.backoff.pause(crashes)
            logger.warning(
                "%s: %s (exit code %d)%s; starts again in %g s",
                self._label,
                ended.reason,
                ended.exit_code,
                f": {ended.message}" if ended.message else "",
                pause,
            )
            back = Waiting("CrashLoopBackOff", f"back-off {pause:g} s, exit code {ended.exit_code}: {ended.message}")
            self._set(state=back, last=ended, restarts=self.status.restarts + 1)
            await asyncio.sleep(pause)

    def _command(self) -> Command:
        container = self.container
        env = environment.build(
            self._pod, container, address=self._address, initial=self._settings.env, sources=self._sources
        )
        entry = environment.command_line(container.command, env) or images.entry_point(container.image, env.get("PATH"))
        argv = (*entry, *environment.command_line(container.args, env))
        cwd = Path(environment.expand(container.working_dir, env)) if container.working_dir else None
        return Command(argv, env, self.log, cwd)

    async def _wait_for_another_manifest(self, reason: str, message: str) -> NoReturn:
        logger.warning("%s: %s: %s", self._label, reason, message)
        self._set(state=Waiting(reason, message))
        await asyncio.Event().wait()
        raise AssertionError("the wait ends by cancellation only")

    async def _once(self, command: Command) -> Terminated:
        """One life of the process."""
        began = time.time()
        try:
            process = await Process.start(command)
        except StartError as error:
            ended = Terminated(START_FAILED, "StartError", str(error), began, time.time())
            self._set(state=ended)
            return ended
        self._set(state=Running(began), pid=process.pid, complaint="")
        watching = asyncio.create_task(self._watch(process, command.env))
        try:
            await process.wait()
        finally:
            if process.running:  # cancelled: the pod is to go
                await process.stop(self._grace())
            watching.cancel()
            # For its end and not its word: if we are cancelled meanwhile, that is ours to obey.
            await asyncio.wait((watching,))
            if not watching.cancelled():
                watching.result()
            ended = self._end(await process.wait(), began)
        return ended

    def _end(self, code: int, began: float) -> Terminated:
        """Take note that the process is over."""
        complaint = self.status.complaint
        why = complaint if complaint.startswith(("liveness", "startup")) else last_words(self.log)
        ended = Terminated(code, "Completed" if code == 0 else "Error", why, began, time.time())
        self.started.clear()
        self._set(state=ended, started=False, ready=False, pid=None, complaint="")
        return ended

    async def _watch(self, process: Process, env: Mapping[str, str]) -> None:
        """Ask the container as its probes say; a failed liveness or startup probe stops the process."""
        if self.container.startup_probe and not await self._startup(self.container.startup_probe, env):
            await process.stop(self._grace())
            return
        self.started.set()
        self._set(started=True, ready=self.container.readiness_probe is None)
        async with asyncio.TaskGroup() as group:
            if self.container.readiness_probe:
                group.create_task(self._readiness(self.container.readiness_probe, env))
            if self.container.liveness_probe:
                group.create_task(self._liveness(self.container.liveness_probe, env, process))

    async def _startup(self, probe: core.Probe, env: Mapping[str, str]) -> bool:
        async for verdict in self._answers("startup", probe, env, passing=False):
            if verdict.settled:
                return verdict.passing
        raise AssertionError("probing ends by cancellation only")

    async def _readiness(self, probe: core.Probe, env: Mapping[str, str]) -> None:
        async for verdict in self._answers("readiness", probe, env, passing=False):
            if verdict.passing != self.status.ready:
                self._set(ready=verdict.passing)

    async def _liveness(self, probe: core.Probe, env: Mapping[str, str], process: Process) -> None:
        async for verdict in self._answers("liveness", probe, env, passing=True):
            if not verdict.passing:
                logger.warning("%s: %s", self._label, self.status.complaint)
                await process.stop(self._grace())
                return

    async def _answers(
        self, kind: str, probe: core.Probe, env: Mapping[str, str], *, passing: bool
    ) -> AsyncIterator[probes.Verdict]:
        """Ask forever; yields what the answers mean so far."""
        clock = asyncio.get_running_loop().time
        what = f"{kind} probe, {probes.describe(probe, self.container, self._address)}"
        verdict = probes.Verdict(passing)
        counted_at, eager_s = -float("inf"), EAGER_S
        await asyncio.sleep(probe.initial_delay_seconds)
        while True:
            problem = await probes.ask(probe, self.container, address=self._address, env=env)
            if not problem or verdict.passing or clock() - counted_at >= probe.period_seconds:
                verdict, counted_at = verdict.after(probe, success=not problem), clock()
            if problem:
                self._set(complaint=f"{what}: {problem}")
            elif self.status.complaint.startswith(kind):
                self._set(complaint="")
            yield verdict
            if problem and not verdict.passing:
                await asyncio.sleep(min(eager_s, probe.period_seconds))
                eager_s *= EAGER_GROWTH
            else:
                await asyncio.sleep(probe.period_seconds)
                eager_s = EAGER_S

    def _set(self, **changes: Any) -> None:
        status = replace(self.status, **changes)
        if status != self.status:
            self.status = status
            self._changed()
