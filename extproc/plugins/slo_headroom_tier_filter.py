"""`slo-headroom-tier-filter`: only endpoints that are expected to meet the request's latency objectives, if one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.latency_scorer import headrooms
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class SloHeadroomTierFilter:
    """Keep the endpoints with TTFT headroom >= 0 and TPOT headroom >= 0; all of them if none has, or nothing is measured.

    Headroom: the request's objective less the prediction, as in latency-scorer; without an objective it is negative.
    `epsilonExploreNeg` 0.01: the share of the requests that go to one of the others instead, so that an endpoint that has
    become fast again is found out. Source: llm-d's slo-headroom-tier-filter.
    """

    TYPE = "slo-headroom-tier-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        epsilon_explore_neg: float = parameter(0.01, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        left = headrooms(cycle)
        everyone = np.ones(len(cycle.rows), dtype=np.bool_)
        if left is None:
            return everyone
        met = (left[0] >= 0) & (left[1] >= 0)
        if not 0 < np.count_nonzero(met) < len(met):
            return everyone
        return ~met if cycle.draw.random() < self.params.epsilon_explore_neg else met
