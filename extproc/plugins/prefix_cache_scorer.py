"""`prefix-cache-scorer`: prefer the endpoint that holds most of the request's prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class PrefixCacheScorer:
    """Score w * min(1, t / s)^2 + (1 - w) * m / b; less or more where the match is a trunk or a continuation.

    m: blocks at the prefix's start that the endpoint holds, shape (n,); b: blocks of the prefix; t: tokens in the m
    blocks (the prompt's tokens * m / b); w: `matchLengthWeight`; s: `matchLengthScaleTokens`. 0 for all if b = 0.
    `matchLengthWeight` 0 and `matchLengthScaleTokens` 8192: upstream's; the squared term favours long matches, as
    attention's cost grows with the square of the length. `prefixMatchInfoProducerName`: the
    approx-prefix-cache-producer that it reads; there is one index, so it can only be named, not chosen.

    Of ours, both 0 (off, as upstream) by default and 0.5 in the default profile:
    `minTrunkShare`: a match that ends where other requests went on from (a trunk, such as a system prompt) scores 0
    if m / b is less. New conversations that share only a beginning then spread over the endpoints; a trunk is
    followed when it saves more than it leaves to do (Preble's rule, ICLR 2025).
    `minContinuationScore`: a match that ends where an earlier request ended (m > the trunk) scores at least this. It
    is the next turn of a conversation, and the engine holds the answer in between, too, of which we know nothing.
    Source: llm-d's prefix-cache-scorer.
    """

    TYPE = "prefix-cache-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and two of ours."""

        match_length_weight: float = parameter(0.0, minimum=0, maximum=1)
        match_length_scale_tokens: int = parameter(8192, minimum=1)
        prefix_match_info_producer_name: str = ""
        min_trunk_share: float = parameter(0.0, minimum=0, maximum=1)
        min_continuation_score: float = parameter(0.0, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        if not cycle.blocks:
            return np.zeros(len(cycle.rows))
        params = self.params
        ratio = cycle.matched / cycle.blocks
        score = ratio
        if params.match_length_weight:
            length = np.minimum(ratio * (cycle.request.prompt_tokens / params.match_length_scale_tokens), 1.0)
            score = params.match_length_weight * length * length + (1.0 - params.match_length_weight) * ratio
        if cycle.trunk and params.min_trunk_share:
            score = np.where((cycle.matched <= cycle.trunk) & (ratio < params.min_trunk_share), 0.0, score)
        if params.min_continuation_score:
            score = np.where(cycle.matched > cycle.trunk, np.maximum(score, params.min_continuation_score), score)
        return score
