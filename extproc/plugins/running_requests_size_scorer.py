"""`running-requests-size-scorer`: prefer the smallest batch in the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.plugins.queue_scorer import shortest_first, shortest_of_few, since_scrape, since_scrape_few
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class RunningRequestsSizeScorer:
    """Score (max r - r) / (max r - min r); 1 for all if all are equal.

    r: max(running + c - c0, 0), shape (n,), requests: the engine's batch at its last scrape, and how the requests of this
    picker have changed since, as in queue-scorer.
    No parameters. Source: llm-d's running-requests-size-scorer.
    """

    TYPE = "running-requests-size-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return shortest_first(since_scrape(cycle, cycle.table.running))

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        return shortest_of_few(since_scrape_few(cycle, "running"))
