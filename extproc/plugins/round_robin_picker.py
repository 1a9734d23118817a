"""`round-robin-picker`: every candidate in turn, whatever its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class RoundRobinPicker:
    """Order by when the endpoint was last chosen, longest ago first; those never chosen first, in row order.

    Over a fixed set of candidates this is the plain round; with pools that share the picker each pool has its own
    round, and an endpoint that joins is simply next. Scores are not looked at: it is what benchmarks compare with.
    `maxNumOfEndpoints` 4: the chosen endpoint and three to fall back to.
    """

    TYPE = "round-robin-picker"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameter, as in the other pickers."""

        max_num_of_endpoints: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params
        self._count = 0
        self._last: NDArray[np.int64] = np.zeros(64, dtype=np.int64)  # by row: the count when it was last chosen

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions, next in turn first; shape (min(n, maxNumOfEndpoints),)."""
        self._cover(cycle)
        turns = np.lexsort((cycle.rows, self._last[cycle.rows]))
        return turns[: min(len(scores), self.params.max_num_of_endpoints)]

    def observe(self, cycle: Cycle, row: int) -> None:
        """Remember whose turn it was."""
        self._cover(cycle)
        self._count += 1
        self._last[row] = self._count

    def _cover(self, cycle: Cycle) -> None:
        size = len(cycle.table.endpoints)
        if size > len(self._last):
            self._last = np.concatenate([self._last, np.zeros(size - len(self._last), dtype=np.int64)])
