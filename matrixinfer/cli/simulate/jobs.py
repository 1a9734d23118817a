"""Runs side by side: each in a process of its own, forked, so that the trace is in memory once."""

from __future__ import annotations

import multiprocessing
import traceback
from dataclasses import dataclass
from multiprocessing import connection
from typing import TYPE_CHECKING, Final

from matrixinfer.cli.simulate.simulation import run
from matrixinfer.cli.simulate.summary import Summary, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkProcess

    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.config import Config
    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.trace import Trace

_LOOK_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Job:
    """One configuration at one load."""

    configuration: str
    settings: Config
    load: float
    trace: Trace  # at its rate
    found: NDArray[np.int64]  # the oracle's hits in it
    exact: bool


@dataclass(frozen=True, slots=True)
class Common:
    """What all jobs share."""

    cluster: Cluster
    warm_up: float
    seed: int


class Failed(Exception):
    """A run broke; the message is where."""


def perform(
    jobs: Sequence[Job], common: Common, *, at_once: int, progress: Callable[[int, int], None]
) -> list[Summary]:
    """Run all jobs, `at_once` of them at a time; `progress` is told of a job and the requests it has done. Raises Failed."""
    fork = multiprocessing.get_context("fork")
    results: dict[int, Summary] = {}
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    left = list(enumerate(jobs))[::-1]
    try:
        while left or running:
            while left and len(running) < at_once:
                number, job = left.pop()
                ours, theirs = fork.Pipe(duplex=False)
                process = fork.Process(target=_work, args=(job, common, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = (number, process)
            for ready in connection.wait(list(running), timeout=_LOOK_S):
                assert isinstance(ready, connection.Connection)  # noqa: S101 - nothing else is waited for
                number, process = running[ready]
                try:
                    word = ready.recv()
                except EOFError:
                    word = f"the process of {jobs[number].configuration} ended with status {process.exitcode}"
                if isinstance(word, int):
                    progress(number, word)
                    continue
                if not isinstance(word, Summary):
                    raise Failed(word)
                results[number] = word
                progress(number, len(jobs[number].trace))
                del running[ready]
                process.join()
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return [results[number] for number in range(len(jobs))]


def _work(job: Job, common: Common, told: Connection) -> None:
    """Run one job in this process; sends progress, then the summary, or what went wrong."""
    try:
        record = run(
            job.trace,
            common.cluster,
            job.settings,
            exact=job.exact,
            seed=common.seed,
            progress=told.send,
        )
        told.send(
            summary(
                record,
                job.trace,
                configuration=job.configuration,
                load=job.load,
                slo=common.cluster.slo,
                found=job.found,
                warm_up=common.warm_up,
            )
        )
    except Exception:  # noqa: BLE001 - the root of a process: the parent tells what it was
        told.send(traceback.format_exc())
