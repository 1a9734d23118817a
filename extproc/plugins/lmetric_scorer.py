"""`lmetric-scorer`: tokens still to be computed times the batch that they would join; nothing to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class LmetricScorer:
    """Score min(cost) / cost, cost = p * (c + 1): 1 for the cheapest, half for one of twice the cost.

    p: the request's prompt tokens that the endpoint does not hold, shape (n,): T * (b - min(m, b - 1)) / b with T the
    prompt's tokens, b its blocks and m those held; T if it is shorter than a block. The last block is always computed,
    as engines do, for a cost of 0 would make all endpoints that hold everything alike, however busy. c: requests sent by this
    picker and not settled, shape (n,), exact at every moment; with this one, the batch.
    Only the order of the costs is the paper's; the score keeps it, and their ratio for whoever draws by weight. Meant to
    stand alone before max-score-picker. Nothing to tune: that is its point. (Upstream scales the costs between the least and
    the greatest, with the same order.)
    `prefixMatchInfoProducerName`, `inFlightLoadProducerName`: there is one of each, so they can be named, not chosen.
    Source: llm-d's lmetric-scorer; Zhang et al., "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request Scheduling",
    arXiv 2603.15202, 2026.
    """

    TYPE = "lmetric-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        prefix_match_info_producer_name: str = ""
        in_flight_load_producer_name: Literal["", "inflight-load-producer"] = ""

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        batch = cycle.table.inflight[cycle.rows] + 1
        missing = cycle.blocks - np.minimum(cycle.matched, cycle.blocks - 1) if cycle.blocks else 1
        cost = missing * batch  # in blocks: T / b is the same for all
        return np.asarray(cost.min() / cost, dtype=np.float64)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        inflight, blocks = cycle.table.view["inflight"], cycle.blocks
        missing = [blocks - min(each, blocks - 1) if blocks else 1 for each in cycle.matched]
        costs = [each * (inflight[row] + 1) for each, row in zip(missing, cycle.rows, strict=True)]
        least = min(costs)
        return [least / each for each in costs]
