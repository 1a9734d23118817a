"""`prefix-cache-scorer`: prefer the endpoint that holds most of the request's prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class PrefixCacheScorer:
    """Score w * min(1, t / s)^2 + (1 - w) * m / b; less or more where the match is a trunk or a continuation.

    m: blocks at the prefix's start that the endpoint holds, in the score each weighed by the best tier that has it (see
    precise-prefix-cache-producer; 1 where engines tell nothing), shape (n,); b: blocks of the prefix; t: tokens in the m
    blocks (the prompt's tokens * m / b); w: `matchLengthWeight`; s: `matchLengthScaleTokens`. 0 for all if b = 0.
    `matchLengthWeight` 0 and `matchLengthScaleTokens` 8192: upstream's; the squared term favours long matches, as
    attention's cost grows with the square of the length. `prefixMatchInfoProducerName`: the
    approx-prefix-cache-producer that it reads; there is one index, so it can only be named, not chosen.

    Of ours:
    `minTrunkShare` 0 (0.5 in the default profile), `minTrunkTokens` 64 (512): a match that is neither this whole
    prompt nor an earlier one that this goes on from is a trunk: a system prompt, a chat template. Below either of the
    two it scores 0, so that new conversations that share only a beginning spread over the endpoints. 64 tokens are
    upstream's smallest block, below which it sees no match. The default profile follows a trunk when that saves more
    than it leaves to do (Preble's rule, ICLR 2025) and 512 tokens: fewer are prefilled in some 30 ms, and soon every
    endpoint has them at the price of 32 blocks.
    `minContinuationScore` 0 (0.5): an earlier request that this one goes on from (trunk < m < b: it ended there, and
    this one has more) scores at least this. It is the next turn of a conversation, and the engine holds the answer
    in between, too, of which we know nothing.
    Source: llm-d's prefix-cache-scorer.
    """

    TYPE = "prefix-cache-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and three of ours."""

        match_length_weight: float = parameter(0.0, minimum=0, maximum=1)
        match_length_scale_tokens: int = parameter(8192, minimum=1)
        prefix_match_info_producer_name: str = ""
        min_trunk_share: float = parameter(0.0, minimum=0, maximum=1)
        min_trunk_tokens: int = parameter(64, minimum=0)
        min_continuation_score: float = parameter(0.0, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        if not np.count_nonzero(cycle.matched):
            return np.zeros(len(cycle.rows))
        params = self.params
        ratio = (cycle.matched if cycle.weighted is None else cycle.weighted) / cycle.blocks
        score = ratio
        if params.match_length_weight:
            length = np.minimum(ratio * (cycle.request.prompt_tokens / params.match_length_scale_tokens), 1.0)
            score = params.match_length_weight * length * length + (1.0 - params.match_length_weight) * ratio
        trunk = score
        if params.min_trunk_share or params.min_trunk_tokens:
            trunk = score * (cycle.matched >= least_match(cycle, params.min_trunk_share, params.min_trunk_tokens))
        goes_on = (cycle.matched > cycle.trunk) & (cycle.matched < cycle.blocks)
        if np.count_nonzero(goes_on):
            return np.where(goes_on, np.maximum(score, params.min_continuation_score), trunk)
        return trunk

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        if not any(cycle.matched):
            return [0.0] * len(cycle.rows)
        params = self.params
        least = 0.0
        if params.min_trunk_share or params.min_trunk_tokens:
            least = least_match(cycle, params.min_trunk_share, params.min_trunk_tokens)
        tokens = cycle.request.prompt_tokens / params.match_length_scale_tokens
        weight = params.match_length_weight
        scores = []
        held = cycle.matched if cycle.weighted is None else cycle.weighted
        for matched, weighted in zip(cycle.matched, held, strict=True):
            score = ratio = weighted / cycle.blocks
            if weight:
                length = min(ratio * tokens, 1.0)
                score = weight * length * length + (1.0 - weight) * ratio
            if cycle.trunk < matched < cycle.blocks:
                score = max(score, params.min_continuation_score)
            elif matched < least:
                score = 0.0
            scores.append(score)
        return scores


def least_match(cycle: Cycle | Few, share: float, tokens: int) -> float:
    """Return how many blocks are `share` of the prefix and `tokens` at least, or all of them."""
    return min(max(share, tokens / max(cycle.request.prompt_tokens, 1)), 1.0) * cycle.blocks
