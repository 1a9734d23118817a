"""`least-request-scorer`: own requests in flight, on a scale that does not jump when there are few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class LeastRequestScorer:
    """Score 1 - c / max(max c, scaleRequests).

    c: requests sent by this picker and not settled, shape (n,), requests; exact at every moment.
    `scaleRequests` 8: a score relative to the busiest endpoint alone tells one request from none as strongly as a
    hundred from none, which would tear a conversation from its prefix for a single request; engines batch, and a few
    requests more or less cost little. Up to 8 each request counts 1/8, above that the share of the busiest counts.
    Source: Kthena's least-request ((max - c) / max over its in-flight counters), with this floor under the scale.
    """

    TYPE = "least-request-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameter of ours."""

        scale_requests: int = parameter(8, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        active = cycle.table.inflight[cycle.rows]
        return 1.0 - active / max(int(np.maximum.reduce(active)), self.params.scale_requests)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        inflight = cycle.table.view["inflight"]
        active = [inflight[row] for row in cycle.rows]
        scale = max(self.params.scale_requests, *active)
        return [1.0 - each / scale for each in active]
