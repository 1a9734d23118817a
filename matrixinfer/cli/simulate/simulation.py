"""One run: a trace through pickers and engines, event by event in virtual time.

Events are arrivals, an engine's stretches of steps, scrapes, and answers that the picker hears of a little later. Each request
comes to one of the pickers by chance; all of them hear all engines' events, and none hears of the others. Nothing waits and
nothing is drawn but from the seed, so that a run repeats exactly.

With flow control each event may let a request go that waits, so that all happen in their order. Without it pickers look at nothing
between two arrivals, and hear of what ended when the next one comes.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc import errors
from matrixinfer.cli.simulate.engine import NEVER, Engine, Request
from matrixinfer.cli.simulate.picker import Picker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.config import Config
    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.holders import Told
    from matrixinfer.cli.simulate.trace import Trace
    from matrixinfer.cli.simulate.turns import Turns

_TOLD_EVERY: Final = 1000  # requests between two words of progress
# Why a request is refused, in the picker's words; a record has places in here.
REFUSALS: Final = tuple(
    one.reason for one in (errors.Saturated, errors.Shed, errors.QueueFull, errors.Displaced, errors.WaitedTooLong)
)


@dataclass(frozen=True, slots=True)
class Record:
    """What became of the n requests of a trace; -1 where a request has no such figure, being refused."""

    ttft_s: NDArray[np.float64]  # from its arrival: what it waited for its turn is in it
    tpot_s: NDArray[np.float64]  # 0 for answers of one token
    cached: NDArray[np.int64]  # prompt tokens that the engine found in its cache
    place: NDArray[np.int64]  # engine
    picker: NDArray[np.int64]  # that it came to; never -1
    waited_s: NDArray[np.float64]  # for its turn
    refusal: NDArray[np.int64]  # why it was refused: place in REFUSALS; -1 if it was served
    busy_s: NDArray[np.float64]  # of each engine
    computed: NDArray[np.int64]  # prompt tokens that each engine computed
    preemptions: int
    ended_s: float  # when the last answer was complete
    behind: Mapping[str, float] | None  # tokens that a tenant was behind its share, at most; None without flow control


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
        self.waited = np.full(n, -1.0)
        self.refusal = np.full(n, -1, dtype=np.int64)
        self.ended_s = 0.0
        self._wakes: list[tuple[float, int]] = []  # heap; an entry is good while the engine wakes at that time
        self._unsettled: deque[tuple[float, int, float, Request]] = deque()  # heard of at, place, ended, request
        self._scrape_at = 0.0
        self._scraped = 0
        self._quiet = 0  # scrapes in a row that found nothing to do

    def run(self, progress: Callable[[int], None]) -> None:
        """Run to the end of the last answer."""
        trace = self._trace
        queued = self._settings.flow is not None
        advance, arrive = (self._advance_in_order, self._ask) if queued else (self._advance, self._arrive)
        for number, at in enumerate(trace.at.tolist()):
            advance(at)
            while self._joins and self._joins[0] <= number:
                self._joins.popleft()
                self._join().warm(self.engines, at)
            self.picker[number] = self._spread.randrange(len(self.pickers)) if len(self.pickers) > 1 else 0
            arrive(number, at)
            if number % _TOLD_EVERY == 0:
                progress(number)
        advance(NEVER)
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
        """Place a request as it comes."""
        self._settle(now)
        self._place(number, now, now)

    def _place(self, number: int, arrived: float, now: float) -> None:
        """Send a request to the engine that its picker chooses."""
        trace = self._trace
        picker = self.pickers[self.picker[number]]
        chain = trace.chain(number)
        try:
            place = picker.place(number, chain, now)
        except errors.Rejection as refusal:
            self._refused(number, refusal)
            if picker.turns is not None:
                picker.turns.failed(number)
            return
        engine = self.engines[place]
        self.place[number] = place
        self.waited[number] = now - arrived
        request = Request(
            number,
            chain=chain,
            answer=trace.answer(number),
            prompt=int(trace.prompt[number]),
            output=max(int(trace.output[number]), 1),
            adapter=int(trace.model[number]) if trace.models[trace.model[number]] else 0,
            arrived=arrived,
        )
        before = engine.wakes_at
        engine.add(request, now)
        if engine.wakes_at != before:
            heapq.heappush(self._wakes, (engine.wakes_at, place))

    def _refused(self, number: int, refusal: errors.Rejection) -> None:
        self.refusal[number] = REFUSALS.index(refusal.reason)

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
            self._wake(engine, at)
        if until != NEVER:
            self._scrape(until)

    def _wake(self, engine: Engine, at: float) -> None:
        for request in engine.wake(at):
            self._ended(request, engine.place, at)
        if engine.wakes_at != NEVER:
            heapq.heappush(self._wakes, (engine.wakes_at, engine.place))

    def _scrape(self, until: float) -> None:
        """Scrape one engine after the other, for one picker after the other.

        Once all were found idle, nothing can change until something arrives.
        """
        while self._scrape_at < until:
            if self._idle():
                self._scrape_at = until
                self._quiet = 0
                return
            self._scrape_next()

    def _idle(self) -> bool:
        """Tell whether all were found idle, and nothing was sent since."""
        return self._quiet >= len(self.engines) * len(self.pickers)

    def _scrape_next(self) -> int:
        """Scrape the engine whose turn it is; returns for which picker."""
        engines, pickers = self.engines, self.pickers
        self._scraped %= len(engines) * len(pickers)
        picker, place = divmod(self._scraped, len(engines))
        self._scraped += 1
        pickers[picker].scraped(engines[place], self._scrape_at)
        self._quiet = 0 if engines[place].wakes_at != NEVER else self._quiet + 1
        self._scrape_at += self._cluster.scrape_interval_s / (len(engines) * len(pickers))
        return picker

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
            self._settle_next()

    def _settle_next(self) -> int:
        """Let a picker hear of the answer that was complete first; returns which."""
        at, place, ended, request = self._unsettled.popleft()
        picker = int(self.picker[request.number])
        self.pickers[picker].settle(request, place, ended, at)
        return picker

    # ---- with flow control

    def _ask(self, number: int, now: float) -> None:
        """Take a request to its picker's gate."""
        picker = int(self.picker[number])
        self.pickers[picker].ask(number, now)
        self._look_again(now)
        self._go_on(picker, now)

    def _go_on(self, picker: int, now: float) -> None:
        """Do what the gate has said: send whose turn has come, and drop who is refused."""
        turns = self._turns(picker)
        for number, refusal in turns.heard():
            if refusal is None:
                self._place(number, float(self._trace.at[number]), now)
                self._look_again(now)
            else:
                self._refused(number, refusal)

    def _look_again(self, now: float) -> None:
        """Scrape from now on, if that has ceased."""
        if self._idle():
            self._scrape_at = now
            self._quiet = 0

    def _advance_in_order(self, until: float) -> None:
        """Let everything happen that happens before `until`, one after the other."""
        wakes, unsettled, engines = self._wakes, self._unsettled, self.engines
        while True:
            wake = wakes[0][0] if wakes else NEVER
            heard = unsettled[0][0] if unsettled else NEVER
            scrape = NEVER if self._idle() else self._scrape_at
            late, picker = min((self._turns(one).expires_at, one) for one in range(len(self.pickers)))
            at = min(wake, heard, scrape, late)
            if at > until or at == NEVER:
                return
            if at == wake:
                engine = engines[heapq.heappop(wakes)[1]]
                if engine.wakes_at == at:
                    self._wake(engine, at)
                continue
            if at == heard:
                picker = self._settle_next()
            elif at == scrape:
                picker = self._scrape_next()
            else:
                self._turns(picker).at(at)
                self._turns(picker).expire()
            self._go_on(picker, at)

    def _turns(self, picker: int) -> Turns:
        turns = self.pickers[picker].turns
        assert turns is not None  # noqa: S101 - for the types: flow control is in force
        return turns

    @property
    def behind(self) -> dict[str, float] | None:
        """Tokens that each tenant was behind its share at a picker, at most; None without flow control."""
        if self._settings.flow is None:
            return None
        behind: dict[str, float] = {}
        for picker in range(len(self.pickers)):
            for tenant, tokens in self._turns(picker).behind.items():
                behind[tenant] = max(tokens, behind.get(tenant, 0.0))
        return behind


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
        waited_s=state.waited,
        refusal=state.refusal,
        busy_s=np.array([engine.busy_s for engine in state.engines]),
        computed=np.array([engine.computed_tokens for engine in state.engines]),
        preemptions=sum(engine.preemptions for engine in state.engines),
        ended_s=state.ended_s,
        behind=state.behind,
    )
