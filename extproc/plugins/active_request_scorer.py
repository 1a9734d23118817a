"""`active-request-scorer`: prefer the endpoint with the fewest of our own requests in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class ActiveRequestScorer:
    """Score 1 if c <= idleThreshold, else (max c - c) / max c * maxBusyScore.

    c: requests sent by this picker and not settled, shape (n,), requests; exact at every moment, so that a burst
    within one scrape interval spreads.
    `idleThreshold` 0: only an endpoint without any request is idle. `maxBusyScore` 1.0: lower, it leaves a gap between
    idle endpoints and all others. Source: llm-d's active-request-scorer.
    """

    TYPE = "active-request-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        idle_threshold: int = parameter(0, minimum=0)
        max_busy_score: float = parameter(1.0, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        active = cycle.table.inflight[cycle.rows]
        most = active.max()
        idle = self.params.idle_threshold
        if most <= idle:
            return np.ones(len(active))
        return np.where(active <= idle, 1.0, (most - active) / most * self.params.max_busy_score)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        inflight = cycle.table.view["inflight"]
        active = [inflight[row] for row in cycle.rows]
        most, idle, busy = max(active), self.params.idle_threshold, self.params.max_busy_score
        return [1.0 if each <= idle else (most - each) / most * busy for each in active]
