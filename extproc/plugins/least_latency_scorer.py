"""`least-latency-scorer`: prefer the endpoint that has answered fastest, at the load that it has now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling import latency
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class LeastLatencyScorer:
    """Score w * f(TTFT) + (1 - w) * f(TPOT), f(x) = 1 - (x - min x) / max(max x - min x, minSpread * max x).

    TTFT, TPOT: predicted time to the first token and between tokens, shape (n,), seconds: means over settled requests, a
    sample's weight halving every 30 s, times (c + 1) / K for c requests in flight now and K while they were measured.
    TTFT is for the prompt tokens that the endpoint does not hold. An endpoint without samples of late counts as the
    best of the others, so that it is tried, for as many requests as its load allows (Kthena gave 50 of 100, later 100;
    with engines' own figures, which keep a once slow engine slow until it gets traffic). One of the two that nobody
    has measured is left out; before any sample, x = c + 1.
    `TTFTTPOTWeightFactor` 0.5: Kthena's w. `minSpread` 0.2 (of ours): equal engines differ by chance, and Kthena's scale (0)
    would tell a millisecond as loudly as a second; differences below a fifth of the slowest count by their size.
    Source: Kthena's least-latency; the load's factor is that of Finagle's Peak EWMA, per request in flight.
    """

    TYPE = "least-latency-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Kthena's parameter, and one of ours."""

        ttft_tpot_weight_factor: float = parameter(0.5, minimum=0, maximum=1, name="TTFTTPOTWeightFactor")
        min_spread: float = parameter(0.2, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        times = prediction(cycle)
        if times is None:
            return self._fastest_first(cycle.table.inflight[cycle.rows].astype(np.float64) + 1.0)
        factor = self.params.ttft_tpot_weight_factor
        if not np.count_nonzero(times.tpot_known):
            factor = 1.0
        elif not np.count_nonzero(times.ttft_known):
            factor = 0.0
        return factor * self._fastest_first(times.ttft_s) + (1.0 - factor) * self._fastest_first(times.tpot_s)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        table, prompt, blocks = cycle.table, cycle.request.prompt_tokens, max(cycle.blocks, 1)
        missing = [prompt * (1.0 - matched / blocks) for matched in cycle.matched]
        times = latency.predicted_few(table, cycle.rows, missing, now=cycle.now)
        if times is None:
            return self._fastest_few([table.view["inflight"][row] + 1.0 for row in cycle.rows])
        factor = self.params.ttft_tpot_weight_factor
        if not times.tpot_known:
            factor = 1.0
        elif not times.ttft_known:
            factor = 0.0
        both = zip(self._fastest_few(times.ttft_s), self._fastest_few(times.tpot_s), strict=True)
        return [factor * ttft + (1.0 - factor) * tpot for ttft, tpot in both]

    def _fastest_few(self, times: list[float]) -> list[float]:
        slowest, fastest = max(times), min(times)
        spread = max(slowest - fastest, self.params.min_spread * slowest)
        if spread <= 0:
            return [1.0] * len(times)
        return [1.0 - (each - fastest) / spread for each in times]

    def _fastest_first(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        slowest, fastest = float(times.max()), float(times.min())
        spread = max(slowest - fastest, self.params.min_spread * slowest)
        if spread <= 0:
            return np.ones(len(times))
        return 1.0 - (times - fastest) / spread


def prediction(cycle: Cycle) -> latency.Predicted | None:
    """Return what the request would take at each candidate; None if nothing was measured of late."""
    missing = cycle.request.prompt_tokens * (1.0 - cycle.matched / max(cycle.blocks, 1))
    return latency.predicted(cycle.table, cycle.rows, missing, now=cycle.now)
