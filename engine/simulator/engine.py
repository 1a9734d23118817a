"""The engine at work: turns the batch's steps into time, and hands each token to the answer it belongs to.

One timer for the whole batch. If the loop is late, the steps that are due are done at once and each stands at the time it was
due, so what the model says about latency does not depend on how busy the machine is.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from engine.simulator import batch, kvcache
from engine.simulator.vllm_metrics import EngineMetrics

_STEPS_PER_TURN = 64
_EARLY_S = 0.001  # timers tick in milliseconds and may ring early by one


class Owner(Protocol):
    """Whoever a sequence belongs to."""

    n: int
    max_tokens: int | None

    def progress(self, sequence: batch.Sequence) -> None:
        """Take a token; `finish` tells whether it was the last."""

    def flush(self) -> None:
        """All that is due now has been told."""


class Engine:
    """Runs a batch on an event loop."""

    def __init__(
        self,
        state: batch.Batch,
        metrics: EngineMetrics,
        publish: Callable[[list[kvcache.CacheEvent]], None] | None = None,
    ) -> None:
        self.state = state
        self._metrics = metrics
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic  # finer than the loop's own, and from the same origin
        self._due: float | None = None
        self._timer: asyncio.Handle | None = None
        self._loras = ("", "")
        self._adapters_used = False
        metrics.watch(state)

    def submit(self, sequences: Iterable[batch.Sequence]) -> None:
        """Queue sequences; their owners hear of every token."""
        now = self._clock()
        if self._due is not None and self._due <= now:
            self._advance(now)
        for sequence in sequences:
            self.state.add(sequence, now)
            self._adapters_used = self._adapters_used or sequence.origin.lora is not None
        if self._timer is None:
            self._timer = self._loop.call_soon(self._turn)

    def abort(self, sequences: Iterable[batch.Sequence]) -> None:
        """Drop sequences; their memory is free at once. As in vLLM, no metric of finished requests counts them."""
        for sequence in sequences:
            self.state.abort(sequence)

    def reset_prefix_cache(self) -> bool:
        """Forget all prefixes, unless requests run. Subscribers hear of it with the next step, as in vLLM."""
        return self.state.blocks.clear()

    def _turn(self) -> None:
        self._timer = None
        now = self._clock()
        if self._due is None:
            self._start(now)
        self._advance(now)
        if self._due is not None:
            self._timer = (
                self._loop.call_at(self._due, self._turn)
                if self._due > now + _EARLY_S
                else self._loop.call_soon(self._turn)
            )

    def _advance(self, now: float) -> None:
        touched: dict[Owner, None] = {}
        steps = 0
        while self._due is not None and self._due <= now + _EARLY_S and steps < _STEPS_PER_TURN:
            self._complete(self._due, touched)
            self._start(self._due)
            steps += 1
        for owner in touched:
            owner.flush()

    def _start(self, now: float) -> None:
        duration = self.state.start(now)
        self._due = None if duration is None else now + duration
        if self._publish is not None:
            self._tell_events()
        if self._adapters_used:
            self._tell_loras()

    def _complete(self, now: float, touched: dict[Owner, None]) -> None:
        metrics = self._metrics
        waits: dict[float, int] = {}
        produced = self.state.complete(now)
        metrics.step(self.state, produced)
        for sequence in produced:
            if sequence.output_tokens <= 1:
                metrics.first_token(sequence, now)
            else:
                wait = sequence.token_gap
                waits[wait] = waits.get(wait, 0) + 1
            owner: Owner = sequence.owner  # type: ignore[assignment] # the batch does not know owners
            owner.progress(sequence)
            touched[owner] = None
            if sequence.finish is not None:
                self._report(sequence, now)
        for wait, times in waits.items():
            metrics.itl.observe(metrics.one, wait, times)

    def _report(self, sequence: batch.Sequence, now: float) -> None:
        owner: Owner = sequence.owner  # type: ignore[assignment] # as above
        self._metrics.finished(sequence, now, n=owner.n, max_tokens=owner.max_tokens)

    def _tell_events(self) -> None:
        events = self.state.blocks.take_events()
        if events and self._publish is not None:
            self._publish(events)

    def _tell_loras(self) -> None:
        loras = (_adapters(self.state.running), _adapters(self.state.waiting))
        if loras != self._loras:
            self._loras = loras
            self._metrics.loras(*loras)


def _adapters(sequences: Iterable[batch.Sequence]) -> str:
    return ",".join(sorted({s.origin.lora for s in sequences if s.origin.lora is not None}))
