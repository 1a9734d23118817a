"""Why a cycle ended as it did. Keeping a trace is cheap; putting it into words happens when somebody looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64] | Sequence[float]
    Strings = NDArray[np.object_] | Sequence[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """How one endpoint fared."""

    address: str
    score: float | None  # weighted mean, 0..1; None if it was left out
    scores: Mapping[str, float]  # by scorer, unweighted
    dropped_by: str  # the filter that left it out; "" if none did


class Trace(NamedTuple):
    """The scores of one cycle, as they were."""

    profile: str
    picker: str
    weights: Mapping[str, float]  # by scorer
    addresses: Strings  # of the n candidates that were scored
    parts: tuple[Numbers, ...]  # by scorer, in the order of `weights`; of length n
    total: Numbers  # of length n
    chosen: tuple[int, ...]  # positions among the n, best first
    dropped: tuple[tuple[str, tuple[str, ...]], ...]  # filter, addresses that it left out

    def candidates(self) -> list[Candidate]:
        """Return the chosen one, its fallbacks, the others by score, then those that were left out."""
        rest = sorted(set(range(len(self.addresses))) - set(self.chosen), key=lambda at: -self.total[at])
        scored = [self._candidate(at) for at in (*self.chosen, *rest)]
        return scored + [Candidate(one, None, {}, name) for name, addresses in self.dropped for one in addresses]

    def reason(self) -> str:
        """Say in one sentence why the winner won."""
        winner = self.chosen[0]
        others = [at for at in range(len(self.addresses)) if at != winner]
        if not others:
            return "the only candidate left"
        best = max(others, key=lambda at: float(self.total[at]))
        lead = float(self.total[winner] - self.total[best])
        if lead < 0:
            return f"chosen by {self.picker}, not for its score"
        if lead == 0:
            return f"{self.picker} broke the tie with {self.addresses[best]}"
        one, other = self._candidate(winner).scores, self._candidate(best).scores
        name = max(self.weights, key=lambda scorer: self.weights[scorer] * (one[scorer] - other[scorer]))
        return (
            f"leads {self.addresses[best]} by {lead:.4f}, "
            f"most of it by {name} ({one[name]:.4f} against {other[name]:.4f})"
        )

    def document(self) -> dict[str, object]:
        """Return all of it as plain values for JSON, scores rounded to four places."""
        candidates: list[dict[str, object]] = []
        for one in self.candidates():
            if one.score is None:
                candidates.append({"endpoint": one.address, "dropped_by": one.dropped_by})
            else:
                scores = {name: round(score, 4) for name, score in one.scores.items()}
                candidates.append({"endpoint": one.address, "score": round(one.score, 4), "scores": scores})
        return {
            "profile": self.profile,
            "picker": self.picker,
            "reason": self.reason(),
            "weights": dict(self.weights),
            "candidates": candidates,
        }

    def _candidate(self, at: int) -> Candidate:
        scores = {name: float(part[at]) for name, part in zip(self.weights, self.parts, strict=True)}
        return Candidate(self.addresses[at], float(self.total[at]), scores, "")
