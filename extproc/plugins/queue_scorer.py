"""`queue-scorer`: prefer the shortest queue in the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class QueueScorer:
    """Score (max q - q) / (max q - min q); 1 for all if all are equal.

    q: requests waiting in the engine at its last scrape, shape (n,), requests. Being relative, the score tells a
    queue of 1 from none as strongly as 100 from none; `load-aware-scorer` is the absolute one.
    No parameters. Source: llm-d's queue-scorer.
    """

    TYPE = "queue-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return shortest_first(cycle.table.waiting[cycle.rows])


def shortest_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map the least of `values` to 1 and the greatest to 0, linearly; all to 1 if they are equal. Shape (n,)."""
    low = float(values.min())
    spread = float(values.max()) - low
    if spread == 0:
        return np.ones(len(values))
    return 1.0 - (values - low) / spread
