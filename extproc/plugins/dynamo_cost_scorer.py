"""`dynamo-cost-scorer`: work that the request brings to an endpoint plus work that is there, as Dynamo's router weighs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from extproc.plugins.queue_scorer import shortest_first, shortest_of_few
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class DynamoCostScorer:
    """Score (max cost - cost) / (max cost - min cost), cost = overlapScoreWeight * p + t; 1 for all if all are equal.

    p: the request's prompt tokens that the endpoint does not hold, shape (n,): T * (1 - m / b) with T the prompt's
    tokens, b its blocks and m those held; T if it is shorter than a block. t: prompt tokens of the requests sent by this
    picker and not settled, shape (n,). Dynamo counts both in blocks, and in t each shared block once and the answers
    so far; blocks are of one size, so that tokens give the same order.
    `overlapScoreWeight` 1.0: Dynamo's, a token to compute is worth one that is there; higher follows the prefix (better
    TTFT), 0 looks at load alone. Dynamo's softmax temperature belongs to the picker: max-score-picker is its 0, and
    weighted-random-picker draws by score. Being relative, the score tells a small difference as loudly as a large one:
    meant to stand alone. Source: NVIDIA Dynamo's KV router, its cost function.
    """

    TYPE = "dynamo-cost-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Dynamo's --kv-overlap-score-weight."""

        overlap_score_weight: float = parameter(1.0, minimum=0)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        missing = 1.0 - cycle.matched / max(cycle.blocks, 1)
        prefill = self.params.overlap_score_weight * cycle.request.prompt_tokens * missing
        return shortest_first(prefill + cycle.table.inflight_tokens[cycle.rows])

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        tokens, blocks = cycle.table.view["inflight_tokens"], max(cycle.blocks, 1)
        prompt = self.params.overlap_score_weight * cycle.request.prompt_tokens
        both = zip(cycle.rows, cycle.matched, strict=True)
        return shortest_of_few([prompt * (1.0 - matched / blocks) + tokens[row] for row, matched in both])
