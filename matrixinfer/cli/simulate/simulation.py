"""One run: a trace through pickers and engines, event by event in virtual time.

Events are arrivals, an engine's stretches of steps, scrapes, and answers that the picker hears of a little later. Each request
comes to one of the pickers by chance; all of them hear all engines' events, and none hears of the others. Nothing waits and
nothing is drawn but from the seed, so that a run repeats exactly.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from matrixinfer.cli.simulate.engine import NEVER, Engine, Request
from matrixinfer.cli.simulate.picker import Picker

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from extproc.scheduling.config import Config
    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.holders import Told
    from matrixinfer.cli.simulate.trace import Trace

_TOLD_EVERY: Final = 1000  # requests between two words of progress


@dataclass(frozen=True, slots=True)
class Record:
    """What became of the n requests of a trace; -1 where a request has no such figure, being refused."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]  # 0 for answers of one token
    cached: NDArray[np.int64]  # prompt tokens that the engine found in its cache
    place: NDArray[np.int64]  # engine
    picker: NDArray[np.int64]  # that placed it; never -1
    busy_s: NDArray[np.float64]  # of each engine
    computed: NDArray[np.int64]  # prompt tokens that each engine computed
    preemptions: int
    ended_s: float  # when the last answer was complete


class _Run:
    """The state of a run."""

    def __init__(self, trace: Trace, cluster: Cluster, settings: Config, *, exact: bool, seed: int) -> None:
        self._trace = trace
        self._cluster = cluster
        self._settings = settings
        self._exact = exact
        self._seed = seed
        self._spread = random.Random(seed)  # noqa: S311 - chance for balance
        self._listeners: list[Told] = []
        self.pickers: list[Picker] = []
        self.engines = [
            Engine(place, group, block_tokens=trace.block_tokens, listeners=self._listeners)
            for place, group in enumerate(cluster.each)
        ]
        for _ in range(cluster.pickers):
            self._join()
        n = len(trace)
        self._joins = deque(sorted(int(share * n) for share in cluster.pickers_join_at))  # numbers of requests
        self.ttft = np.full(n, -1.0)
        self.tpot = np.full(n, -1.0)
        self.cached = np.full(n, -1, dtype=np.int64)
        self.place = np.full(n, -1, dtype=np.int64)
        self.picker = np.zeros(n, dtype=np.int64)
        self.ended_s = 0.0
        self._wakes: list[tuple[float, int]] = []  # heap; an entry is good while the engine wakes at that time
        self._unsettled: deque[tuple[float, int, float, Request]] = deque()  # heard of at, place, ended, request
        self._scrape_at = 0.0
        self._scraped = 0
        self._quiet = 0  # scrapes in a row that found nothing to do

    def run(self, progress: Callable[[int], None]) -> None:
        """Run to the end of the last answer."""
        trace = self._trace
        for number, at in enumerate(trace.at.tolist()):
            self._advance(at)
            while self._joins and self._joins[0] <= number:
                self._joins.popleft()
                self._join().warm(self.engines, at)
            self._arrive(number, at)
            if number % _TOLD_EVERY == 0:
                progress(number)
        self._advance(NEVER)
        progress(len(trace))

    def _join(self) -> Picker:
        """Start one more picker, which hears from now on what the others hear."""
        picker = Picker(
            self._settings, self._cluster, self._trace, exact=self._exact, seed=self._seed + len(self.pickers)
        )
        self.pickers.append(picker)
        if picker.told is not None:
            self._listeners.append(picker.told)
        return picker

    def _arrive(self, number: int, now: float) -> None:
        trace = self._trace
        self._settle(now)
        chain = trace.chain(number)
        prompt, output = int(trace.prompt[number]), max(int(trace.output[number]), 1)
        one = self._spread.randrange(len(self.pickers)) if len(self.pickers) > 1 else 0
        self.picker[number] = one
        place = self.pickers[one].place(number, chain, now)
        if place is None:
            return
        engine = self.engines[place]
        self.place[number] = place
        request = Request(
            number,
            chain=chain,
            answer=trace.answer(number),
            prompt=prompt,
            output=output,
            adapter=int(trace.model[number]) if trace.models[trace.model[number]] else 0,
            arrived=now,
        )
        before = engine.wakes_at
        engine.add(request, now)
        if engine.wakes_at != before:
            heapq.heappush(self._wakes, (engine.wakes_at, place))

    def _advance(self, until: float) -> None:
        """Let everything happen that happens before `until`."""
        wakes, engines = self._wakes, self.engines
        while wakes and wakes[0][0] <= until:
            at, place = heapq.heappop(wakes)
            engine = engines[place]
            if engine.wakes_at != at:
                continue
            if self._scrape_at < at:
                self._scrape(at)
            for request in engine.wake(at):
                self._ended(request, place, at)
            if engine.wakes_at != NEVER:
                heapq.heappush(wakes, (engine.wakes_at, place))
        if until != NEVER:
            self._scrape(until)

    def _scrape(self, until: float) -> None:
        """Scrape one engine after the other, for one picker after the other.

        Once all were found idle, nothing can change until something arrives.
        """
        engines, pickers = self.engines, self.pickers
        gap = self._cluster.scrape_interval_s / (len(engines) * len(pickers))
        while self._scrape_at < until:
            if self._quiet >= len(engines) * len(pickers):
                self._scrape_at = until
                self._quiet = 0
                return
            self._scraped %= len(engines) * len(pickers)
            picker, place = divmod(self._scraped, len(engines))
            self._scraped += 1
            pickers[picker].scraped(engines[place], self._scrape_at)
            self._quiet = 0 if engines[place].wakes_at != NEVER else self._quiet + 1
            self._scrape_at += gap

    def _ended(self, request: Request, place: int, now: float) -> None:
        number = request.number
        first = request.first_token
        self.ttft[number] = first - request.arrived
        self.tpot[number] = (now - first) / (request.output - 1) if request.output > 1 else 0.0
        self.cached[number] = request.cached
        self.ended_s = max(self.ended_s, now)
        self._unsettled.append((now + self._cluster.settle_lag_ms / 1000, place, now, request))

    def _settle(self, now: float) -> None:
        unsettled = self._unsettled
        while unsettled and unsettled[0][0] <= now:
            at, place, ended, request = unsettled.popleft()
            self.pickers[self.picker[request.number]].settle(request, place, ended, at)


def run(  # noqa: PLR0913 - what a run is made of
    trace: Trace,
    cluster: Cluster,
    settings: Config,
    *,
    exact: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _done: None,
) -> Record:
    """Simulate; `progress` is told how many requests have arrived."""
    state = _Run(trace, cluster, settings, exact=exact, seed=seed)
    state.run(progress)
    return Record(
        ttft_s=state.ttft,
        tpot_s=state.tpot,
        cached=state.cached,
        place=state.place,
        picker=state.picker,
        busy_s=np.array([engine.busy_s for engine in state.engines]),
        computed=np.array([engine.computed_tokens for engine in state.engines]),
        preemptions=sum(engine.preemptions for engine in state.engines),
        ended_s=state.ended_s,
    )
