"""`load-aware-scorer`: prefer short queues in the engine, on an absolute scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.queue_scorer import since_scrape
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class LoadAwareScorer:
    """Score 0.5 * (1 - min(q, threshold) / threshold): 0.5 without a queue, 0 from `threshold` on.

    q: requests waiting in the engine, with what has changed since its last scrape, as in queue-scorer; shape (n,), requests.
    `threshold` 128: upstream's. Source: llm-d's load-aware-scorer.
    """

    TYPE = "load-aware-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        threshold: int = parameter(128, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        threshold = self.params.threshold
        return 0.5 - np.minimum(since_scrape(cycle, cycle.table.waiting), threshold) * (0.5 / threshold)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        view, threshold = cycle.table.view, self.params.threshold
        waiting, now, then = view["waiting"], view["inflight"], view["inflight_scraped"]
        queues = [max(waiting[row] + now[row] - then[row], 0.0) for row in cycle.rows]
        return [0.5 - min(queue, threshold) * (0.5 / threshold) for queue in queues]
