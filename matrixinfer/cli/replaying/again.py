"""Recorded decisions, taken again by another configuration."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc import errors
from extproc.scheduling import config as scheduling
from extproc.scheduling.endpoints import COLUMNS, Endpoint, EndpointTable, Lora
from extproc.scheduling.framework import Cycle
from extproc.scheduling.scheduler import Scheduler
from extproc.types import Api, InferenceRequest
from matrixinfer.cli.replaying.log import DecisionLine, DroppedLine, EndpointLine, entries
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from extproc.scheduling.trace import Trace

_SAME: Final = 1e-9  # scores that differ by less are equal
_REFUSED: Final = 2.0  # leads are scores, 1 at most: what cannot be compared stands first


@dataclass(frozen=True, slots=True)
class Difference:
    """A decision that the new configuration takes otherwise."""

    line: DecisionLine
    chosen: str  # by the new configuration; "" if it refuses
    lead: float  # of its score over that of the endpoint that was chosen then
    why: str
    trace: Trace | None  # None: refused


@dataclass(slots=True)
class Outcome:
    """What came of a log."""

    decisions: int = 0
    same: int = 0
    ties: int = 0
    missing: int = 0  # entries that the log says it has dropped
    before: Counter[str] = field(default_factory=Counter)  # by endpoint: chosen then
    after: Counter[str] = field(default_factory=Counter)
    held_before: int = 0  # prompt tokens that the chosen endpoints held, as far as was known
    held_after: int = 0
    tokens: int = 0
    differences: list[Difference] = field(default_factory=list)


def replay(file: Path, settings: scheduling.Config, *, seed: int) -> Outcome:
    """Take every decision of the log again. Raises BadInput."""
    return _Replay(settings, seed).run(file)


class _Replay:
    def __init__(self, settings: scheduling.Config, seed: int) -> None:
        built = scheduling.build(settings)
        self._observers = built.profile.observers  # are told what was decided then, not what is decided now
        self._scheduler = Scheduler(replace(built.profile, observers=()))
        self._draw = random.Random(seed)  # noqa: S311 - chance for balance
        self._table = EndpointTable()
        self._outcome = Outcome()

    def run(self, file: Path) -> Outcome:
        """Go through the log."""
        outcome = self._outcome
        for where, entry in entries(file):
            if isinstance(entry, EndpointLine):
                self._meet(entry)
            elif isinstance(entry, DecisionLine):
                self._decide(where, entry)
            elif isinstance(entry, DroppedLine):
                outcome.missing += entry.entries
        if not outcome.decisions:
            raise BadInput(file, "has no decision")
        return outcome

    def _meet(self, line: EndpointLine) -> None:
        table = self._table
        row = table.upsert(
            Endpoint(address=line.address, pod=line.pod, engine=line.engine, labels=line.labels, node=line.node)
        )
        table.models[row], table.adapters[row] = frozenset(line.models), frozenset(line.adapters)
        lora = line.lora
        if lora is not None:
            table.lora[row] = Lora(frozenset(lora.running), frozenset(lora.waiting), lora.slots)

    def _decide(self, where: str, line: DecisionLine) -> None:
        cycle = self._cycle(where, line)
        self._compare(line, cycle)
        row = self._table.row(line.order[0])
        if row is not None:
            for observer in self._observers:
                observer.observe(cycle, row)

    def _compare(self, line: DecisionLine, cycle: Cycle) -> None:
        outcome = self._outcome
        then = line.order[0]
        held = dict(zip(line.endpoints, line.matched, strict=True))
        share = line.prompt_tokens / max(line.blocks, 1)
        outcome.decisions += 1
        outcome.tokens += line.prompt_tokens
        outcome.before[then] += 1
        outcome.held_before += round(held.get(then, 0) * share)
        try:
            result = self._scheduler.schedule(cycle, trace=True)
        except errors.Saturated as rejection:
            outcome.differences.append(Difference(line, "", _REFUSED, rejection.message, None))
            return
        now, trace = result.addresses[0], result.trace
        outcome.after[now] += 1
        outcome.held_after += round(held[now] * share)
        if now == then:
            outcome.same += 1
            return
        assert trace is not None  # noqa: S101 - it was asked for
        totals = dict(zip(trace.addresses, trace.total, strict=True))
        if then not in totals:
            dropped = next((name for name, addresses in trace.dropped if then in addresses), "")
            why = f"{then} is left out by {dropped}" if dropped else f"{then} is no candidate any more"
            outcome.differences.append(Difference(line, now, _REFUSED, why, trace))
            return
        lead = float(totals[now] - totals[then])
        if abs(lead) < _SAME:
            outcome.ties += 1
            return
        why = _why(trace, now, then) if lead > 0 else f"chosen by {trace.picker}, not for its score"
        outcome.differences.append(Difference(line, now, lead, why, trace))

    def _cycle(self, where: str, line: DecisionLine) -> Cycle:
        table = self._table
        found = [table.row(address) for address in line.endpoints]
        for address, row in zip(line.endpoints, found, strict=True):
            if row is None:
                raise BadInput(where, f"{address} is not introduced by an endpoint line above")
        rows = np.array(found, dtype=np.intp)
        for name, unknown in COLUMNS.items():
            values = line.columns.get(name)
            getattr(table, name)[rows] = (
                unknown if values is None else [-np.inf if one is None else one for one in values]
            )
        request = InferenceRequest(
            id=line.request_id,
            api=Api.CHAT,
            path=line.path,
            headers={},
            model=line.model,
            stream=line.stream,
            prefix=b"",
            prompt_tokens=line.prompt_tokens,
            max_tokens=line.max_tokens,
            wants_usage=False,
            cache_salt="",
            body=b"",
        )
        return Cycle(
            request=request,
            table=table,
            rows=rows,
            matched=np.array(line.matched, dtype=np.int64),
            blocks=line.blocks,
            now=line.now,
            draw=self._draw,
            trunk=line.trunk,
            engine_model=line.engine_model,
            weighted=None if line.weighted is None else np.array(line.weighted, dtype=np.float64),
            cached_tokens=None if line.cached_tokens is None else np.array(line.cached_tokens, dtype=np.int64),
            home=None if line.home is None else np.array(line.home, dtype=np.int64),
        )


def _why(trace: Trace, now: str, then: str) -> str:
    """Name the scorer that speaks most for the new choice."""
    addresses = list(trace.addresses)
    one, other = addresses.index(now), addresses.index(then)
    gains = {
        name: weight * (float(part[one]) - float(part[other]))
        for (name, weight), part in zip(trace.weights.items(), trace.parts, strict=True)
    }
    name = max(gains, key=lambda scorer: gains[scorer])
    part = trace.parts[list(trace.weights).index(name)]
    return f"{name} prefers {now} ({float(part[one]):.4f} against {float(part[other]):.4f})"
