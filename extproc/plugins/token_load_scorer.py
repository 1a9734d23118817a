"""`token-load-scorer`: prefer the endpoint with the fewest prompt tokens in flight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class TokenLoadScorer:
    """Score 1 - min(1, t / queueThresholdTokens).

    t: prompt tokens of the requests sent by this picker and not settled, shape (n,), tokens.
    `queueThresholdTokens` 4,194,304: upstream's; about what a large engine prefills in four minutes, so lower it where
    prompts are short. Source: llm-d's token-load-scorer.
    """

    TYPE = "token-load-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        queue_threshold_tokens: int = parameter(4_194_304, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        load = cycle.table.inflight_tokens[cycle.rows] / self.params.queue_threshold_tokens
        return 1.0 - np.minimum(load, 1.0)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        tokens, threshold = cycle.table.view["inflight_tokens"], self.params.queue_threshold_tokens
        return [1.0 - min(tokens[row] / threshold, 1.0) for row in cycle.rows]
