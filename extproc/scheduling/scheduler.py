"""The scheduler: one cycle in, an ordered list of endpoints out.

Filters run in the configured order, scorers rate who is left, the weighted mean of their scores goes to the picker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from extproc import errors
from extproc.scheduling.trace import Trace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.disaggregation import Disaggregation
    from extproc.scheduling.framework import Cycle, Filter, Observer, Picker, Scorer

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

    def schedule(self, cycle: Cycle, *, trace: bool = False) -> Result:
        """Order the candidates. Raises NoEndpoints for a cycle without any, Saturated if the filters leave none."""
        if not len(cycle.rows):
            raise errors.NoEndpoints("the pool has no endpoint that is ready")
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
        total = np.zeros(len(left.rows))  # the weighted mean, 0..1
        for share, scores in zip(self._shares, parts, strict=True):
            total += scores * share
        chosen = self.profile.picker[1].order(left, total)
        rows = tuple(left.rows[chosen].tolist())
        for observer in self.profile.observers:
            observer.observe(cycle, rows[0])
        return Result(
            rows=rows,
            addresses=tuple(table.addresses[left.rows[chosen]].tolist()),
            trace=self._trace(left, tuple(dropped), parts, total, chosen) if trace else None,
        )

    def _trace(
        self,
        left: Cycle,
        dropped: tuple[tuple[str, tuple[str, ...]], ...],
        parts: list[NDArray[np.float64]],
        total: NDArray[np.float64],
        chosen: NDArray[np.intp],
    ) -> Trace:
        return Trace(
            profile=self.profile.name,
            picker=self.profile.picker[0],
            weights=self._weights,
            addresses=left.table.addresses[left.rows],
            parts=tuple(parts),
            total=total,
            chosen=tuple(chosen.tolist()),
            dropped=dropped,
        )
