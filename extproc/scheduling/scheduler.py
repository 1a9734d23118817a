"""The scheduler: one cycle in, an ordered list of endpoints out.

Filters run in the configured order, scorers rate who is left, the weighted mean of their scores goes to the picker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from extproc import errors
from extproc.scheduling import few
from extproc.scheduling.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.scheduling.disaggregation import Disaggregation
    from extproc.scheduling.framework import Cycle, Filter, Observer, Picker, Scorer
    from extproc.scheduling.trace import Numbers, Strings

__all__ = ["Profile", "Result", "Scheduler", "Trace"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The plugins of one scheduling profile, each under the name that the configuration gives it."""

    name: str
    filters: tuple[tuple[str, Filter], ...]
    scorers: tuple[tuple[str, float, Scorer], ...]  # name, weight, plugin
    picker: tuple[str, Picker]
    observers: tuple[Observer, ...] = ()  # those of the above that remember decisions


class Result(NamedTuple):
    """The outcome of a cycle, best first: the chosen endpoint and those to fall back to."""

    rows: tuple[int, ...]
    addresses: tuple[str, ...]
    trace: Trace | None = None


class Scheduler:
    """Runs the profile that the configuration chose. Holds no state but its plugins' memory of decisions."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.disaggregation: Disaggregation | None = None  # how a ModelServer with prefill and decode pods is served
        weights = sum(weight for _name, weight, _scorer in profile.scorers) or 1.0
        self._shares = [weight / weights for _name, weight, _scorer in profile.scorers]
        self._weights = {name: weight for name, weight, _scorer in profile.scorers}
        members: list[Any] = [plugin for _name, plugin in profile.filters]
        members += [plugin for _name, _weight, plugin in profile.scorers]
        self._able = all(map(few.able, [*members, profile.picker[1]]))  # of few candidates without numpy

    def schedule(self, cycle: Cycle, *, trace: bool = False) -> Result:
        """Order the candidates. Raises NoEndpoints for a cycle without any, Saturated if the filters leave none."""
        if not len(cycle.rows):
            raise errors.NoEndpoints("the pool has no endpoint that is ready")
        if self._able and len(cycle.rows) <= few.MOST:
            return self._schedule_few(cycle, trace=trace)
        table = cycle.table
        left = cycle
        dropped: list[tuple[str, tuple[str, ...]]] = []
        for name, plugin in self.profile.filters:
            keep = plugin.keep(left)
            if np.count_nonzero(keep) == len(keep):
                continue
            if trace:
                dropped.append((name, tuple(table.addresses[left.rows[~keep]].tolist())))
            left = left.narrowed(keep)
            if not len(left.rows):
                raise errors.Saturated(f"all endpoints have been left out, the last of them by filter {name}")
        parts = [plugin.score(left) for _name, _weight, plugin in self.profile.scorers]
        total = parts[0] * self._shares[0] if parts else np.zeros(len(left.rows))  # the weighted mean, 0..1
        for share, scores in zip(self._shares[1:], parts[1:], strict=True):
            total += scores * share
        chosen = self.profile.picker[1].order(left, total)
        picked = left.rows[chosen]
        rows = tuple(picked.tolist())
        for observer in self.profile.observers:
            observer.observe(cycle, rows[0])
        return Result(
            rows=rows,
            addresses=tuple(table.addresses[picked].tolist()),
            trace=self._trace(table.addresses[left.rows], dropped, parts, total, chosen.tolist()) if trace else None,
        )

    def _schedule_few(self, cycle: Cycle, *, trace: bool) -> Result:
        """Do the same with lists: `few` says why."""
        left = few.few(cycle)
        addresses = cycle.table.addresses
        dropped: list[tuple[str, tuple[str, ...]]] = []
        plugin: Any
        for name, plugin in self.profile.filters:
            keep = plugin.keep_few(left)
            if False not in keep:
                continue
            if trace:
                gone = [row for row, kept in zip(left.rows, keep, strict=True) if not kept]
                dropped.append((name, tuple(addresses[gone].tolist())))
            left = left.narrowed(keep)
            if not left.rows:
                raise errors.Saturated(f"all endpoints have been left out, the last of them by filter {name}")
        scorers: Any = self.profile.scorers
        parts = [plugin.score_few(left) for _name, _weight, plugin in scorers]
        total = few.weighted(parts, self._shares, len(left.rows))
        picker: Any = self.profile.picker[1]
        chosen = picker.order_few(left, total)
        rows = tuple([left.rows[at] for at in chosen])
        for observer in self.profile.observers:
            observer.observe(cycle, rows[0])
        named = addresses[left.rows].tolist()
        return Result(
            rows=rows,
            addresses=tuple([named[at] for at in chosen]),
            trace=self._trace(named, dropped, parts, total, chosen) if trace else None,
        )

    def _trace(
        self,
        addresses: Strings,
        dropped: list[tuple[str, tuple[str, ...]]],
        parts: Sequence[Numbers],
        total: Numbers,
        chosen: list[int],
    ) -> Trace:
        return Trace(
            profile=self.profile.name,
            picker=self.profile.picker[0],
            weights=self._weights,
            addresses=addresses,
            parts=tuple(parts),
            total=total,
            chosen=tuple(chosen),
            dropped=tuple(dropped),
        )
