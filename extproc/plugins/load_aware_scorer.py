"""`load-aware-scorer`: prefer short queues in the engine, on an absolute scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class LoadAwareScorer:
    """Score 0.5 * (1 - min(q, threshold) / threshold): 0.5 without a queue, 0 from `threshold` on.

    q: requests waiting in the engine at its last scrape, shape (n,), requests.
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
        return 0.5 - np.minimum(cycle.table.waiting[cycle.rows], threshold) * (0.5 / threshold)
