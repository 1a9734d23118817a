"""What a plugin is: the cycle it reads and the methods it may have.

A plugin has a `TYPE` (its name in EndpointPickerConfig), a frozen `Params` dataclass (unknown parameters fail) and the
method of its role. It reads the cycle and returns a value: no clock, no chance of its own, nothing kept but what its
`observe` methods are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.types import InferenceRequest


class Draw(Protocol):
    """Chance as an argument: `random.Random` fits."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class Cycle:
    """One scheduling cycle over n candidates; arrays are aligned with `rows` (shape (n,))."""

    request: InferenceRequest
    table: EndpointTable
    rows: NDArray[np.intp]  # the candidates' rows in the table
    matched: NDArray[np.int64]  # blocks at the prefix's start that each candidate holds
    blocks: int  # blocks of the whole prefix
    now: float  # monotonic seconds
    draw: Draw

    def narrowed(self, keep: NDArray[np.bool_]) -> Cycle:
        """Return the cycle over the candidates that `keep` (shape (n,)) marks."""
        return Cycle(self.request, self.table, self.rows[keep], self.matched[keep], self.blocks, self.now, self.draw)


class Filter(Protocol):
    """Leaves candidates out."""

    TYPE: str

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        ...


class Scorer(Protocol):
    """Rates candidates."""

    TYPE: str

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return a score in [0, 1] for each candidate, 1 the best; shape (n,)."""
        ...


class Picker(Protocol):
    """Orders candidates."""

    TYPE: str

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions in `cycle.rows`, best first: the chosen one and those to fall back to."""
        ...
