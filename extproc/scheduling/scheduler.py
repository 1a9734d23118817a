"""The scheduler: one cycle in, an ordered list of endpoints out.

Filters run in the configured order, scorers rate who is left, the weighted mean of their scores goes to the picker.
A trace of all that is made only when it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle, Filter, Observer, Picker, Scorer


@dataclass(frozen=True, slots=True)
class Profile:
    """The plugins of one scheduling profile, each under the name that the configuration gives it."""

    name: str
    filters: tuple[tuple[str, Filter], ...]
    scorers: tuple[tuple[str, float, Scorer], ...]  # name, weight, plugin
    picker: tuple[str, Picker]
    observers: tuple[Observer, ...] = ()  # those of the above that remember decisions


@dataclass(frozen=True, slots=True)
class Candidate:
    """How one endpoint fared."""

    address: str
    dropped_by: str  # the filter that left it out; "" if none did
    score: float | None  # weighted mean, 0..1; None if it was left out
    scores: Mapping[str, float]  # by scorer, unweighted


@dataclass(frozen=True, slots=True)
class Trace:
    """Why a cycle ended as it did."""

    profile: str
    picker: str
    weights: Mapping[str, float]  # by scorer
    candidates: tuple[Candidate, ...]  # the chosen one, its fallbacks, then the others by score, then who was left out
    reason: str  # one sentence: why the winner won

    def document(self) -> dict[str, object]:
        """Return the trace as plain values for JSON, scores rounded to four places."""
        candidates: list[dict[str, object]] = []
        for one in self.candidates:
            if one.score is None:
                candidates.append({"endpoint": one.address, "dropped_by": one.dropped_by})
            else:
                scores = {name: round(score, 4) for name, score in one.scores.items()}
                candidates.append({"endpoint": one.address, "score": round(one.score, 4), "scores": scores})
        return {
            "profile": self.profile,
            "picker": self.picker,
            "reason": self.reason,
            "weights": dict(self.weights),
            "candidates": candidates,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a cycle, best first: the chosen endpoint and those to fall back to."""

    rows: tuple[int, ...]
    addresses: tuple[str, ...]
    trace: Trace | None = None


class Scheduler:
    """Runs the profile that the configuration chose. Holds no state but its plugins' memory of decisions."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._weight = sum(weight for _name, weight, _scorer in profile.scorers)

    def schedule(self, cycle: Cycle, *, trace: bool = False) -> Result:
        """Order the candidates. Raises NoEndpoints for a cycle without any, Saturated if the filters leave none."""
        if not len(cycle.rows):
            raise errors.NoEndpoints("the pool has no endpoint that is ready")
        left = cycle
        dropped: dict[int, str] = {}
        for name, plugin in self.profile.filters:
            keep = plugin.keep(left)
            if keep.all():
                continue
            if trace:
                dropped.update((row, name) for row in left.rows[~keep].tolist())
            left = left.narrowed(keep)
            if not len(left.rows):
                raise errors.Saturated(f"all endpoints have been left out, the last of them by filter {name}")
        parts = [(weight, plugin.score(left)) for _name, weight, plugin in self.profile.scorers]
        total = self._total(parts, len(left.rows))
        positions = self.profile.picker[1].order(left, total)
        rows = tuple(left.rows[positions].tolist())
        result = Result(
            rows=rows,
            addresses=tuple(cycle.table.address(row) for row in rows),
            trace=self._trace(left, dropped, parts, total, positions) if trace else None,
        )
        for observer in self.profile.observers:
            observer.observe(cycle, rows[0])
        return result

    def _total(self, parts: list[tuple[float, NDArray[np.float64]]], n: int) -> NDArray[np.float64]:
        """Weighted mean of the scores, 0..1; all 0 without scorers or weights."""
        total = np.zeros(n)
        if self._weight:
            for weight, scores in parts:
                total += scores * (weight / self._weight)
        return total

    def _trace(
        self,
        left: Cycle,
        dropped: Mapping[int, str],
        parts: list[tuple[float, NDArray[np.float64]]],
        total: NDArray[np.float64],
        positions: NDArray[np.intp],
    ) -> Trace:
        table = left.table
        names = [name for name, _weight, _scorer in self.profile.scorers]
        chosen = positions.tolist()
        others = sorted(set(range(len(total))) - set(chosen), key=lambda at: -total[at])
        scored = [
            Candidate(
                address=table.address(int(left.rows[at])),
                dropped_by="",
                score=float(total[at]),
                scores={name: float(scores[at]) for name, (_weight, scores) in zip(names, parts, strict=True)},
            )
            for at in chosen + others
        ]
        out = [Candidate(table.address(row), name, None, {}) for row, name in dropped.items()]
        weights = {name: weight for name, weight, _scorer in self.profile.scorers}
        return Trace(
            profile=self.profile.name,
            picker=self.profile.picker[0],
            weights=weights,
            candidates=(*scored, *out),
            reason=_reason(scored, weights, self.profile.picker[0]),
        )


def _reason(scored: list[Candidate], weights: Mapping[str, float], picker: str) -> str:
    """Say why the first of `scored` won."""
    winner, *rest = scored
    if not rest:
        return "the only candidate left"
    best = max(rest, key=lambda one: one.score or 0.0)
    lead = (winner.score or 0.0) - (best.score or 0.0)
    if lead < 0:
        return f"chosen by {picker}, not for its score"
    if lead == 0:
        return f"{picker} broke the tie with {best.address}"
    gains = {name: weight * (winner.scores[name] - best.scores[name]) for name, weight in weights.items()}
    name = max(gains, key=lambda one: gains[one])
    return f"leads {best.address} by {lead:.4f}, most of it by {name} ({winner.scores[name]:.4f} against {best.scores[name]:.4f})"
