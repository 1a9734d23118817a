"""`prefix-cache-scorer`: prefer the endpoint that holds most of the request's prefix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle

_FEW_HOLDERS: Final = 12  # are scored as Python numbers: faster than arrays


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
    `homeWeight` 0 (0.5): where no candidate holds half of the prefix, an endpoint to which earlier requests took it scores
    so much of what it would score if it had kept it. Engines that give prefixes up would else have them scattered; see
    `kvcache.exact.homeless`. Half: a home is left sooner than a hit, for nothing is lost there that was not lost before; with
    1, hot prefixes that just fit queue at home. Without engines' events there is no difference, as nothing tells what was
    given up.
    Source: llm-d's prefix-cache-scorer.
    """

    TYPE = "prefix-cache-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and four of ours."""

        match_length_weight: float = parameter(0.0, minimum=0, maximum=1)
        match_length_scale_tokens: int = parameter(8192, minimum=1)
        prefix_match_info_producer_name: str = ""
        min_trunk_share: float = parameter(0.0, minimum=0, maximum=1)
        min_trunk_tokens: int = parameter(64, minimum=0)
        min_continuation_score: float = parameter(0.0, minimum=0, maximum=1)
        home_weight: float = parameter(0.0, minimum=0, maximum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        score = self._scored(cycle, cycle.matched, cycle.matched if cycle.weighted is None else cycle.weighted)
        if cycle.home is None or not self.params.home_weight:
            return score
        return np.maximum(score, self.params.home_weight * self._scored(cycle, cycle.home, cycle.home))

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        scores = self._scored_few(cycle, cycle.matched, cycle.matched if cycle.weighted is None else cycle.weighted)
        weight = self.params.home_weight
        if cycle.home is None or not weight:
            return scores
        return [
            max(a, weight * b) for a, b in zip(scores, self._scored_few(cycle, cycle.home, cycle.home), strict=True)
        ]

    def _scored(
        self, cycle: Cycle, matched: NDArray[np.int64], weighted: NDArray[np.int64] | NDArray[np.float64]
    ) -> NDArray[np.float64]:
        held = matched.nonzero()[0]
        if len(held) <= _FEW_HOLDERS:  # the others score 0
            scores = np.zeros(len(matched))
            if len(held):
                few = self._scored_few(cycle, matched[held].tolist(), weighted[held].tolist())
                for at, each in zip(held.tolist(), few, strict=True):
                    scores[at] = each
            return scores
        params = self.params
        ratio: NDArray[np.float64] = weighted / cycle.blocks
        score = ratio
        if params.match_length_weight:
            length = np.minimum(ratio * (cycle.request.prompt_tokens / params.match_length_scale_tokens), 1.0)
            score = params.match_length_weight * length * length + (1.0 - params.match_length_weight) * ratio
        trunk = score
        if params.min_trunk_share or params.min_trunk_tokens:
            trunk = score * (matched >= least_match(cycle, params.min_trunk_share, params.min_trunk_tokens))
        goes_on = (matched > cycle.trunk) & (matched < cycle.blocks)
        if np.count_nonzero(goes_on):
            return np.where(goes_on, np.maximum(score, params.min_continuation_score), trunk)
        return trunk

    def _scored_few(self, cycle: Cycle | Few, matched: Sequence[int], weighted: Sequence[float]) -> list[float]:
        if not any(matched):
            return [0.0] * len(cycle.rows)
        params = self.params
        least = 0.0
        if params.min_trunk_share or params.min_trunk_tokens:
            least = least_match(cycle, params.min_trunk_share, params.min_trunk_tokens)
        tokens = cycle.request.prompt_tokens / params.match_length_scale_tokens
        weight = params.match_length_weight
        scores = []
        for held, weighed in zip(matched, weighted, strict=True):
            score = ratio = weighed / cycle.blocks
            if weight:
                length = min(ratio * tokens, 1.0)
                score = weight * length * length + (1.0 - weight) * ratio
            if cycle.trunk < held < cycle.blocks:
                score = max(score, params.min_continuation_score)
            elif held < least:
                score = 0.0
            scores.append(score)
        return scores


def least_match(cycle: Cycle | Few, share: float, tokens: int) -> float:
    """Return how many blocks are `share` of the prefix and `tokens` at least, or all of them."""
    return min(max(share, tokens / max(cycle.request.prompt_tokens, 1)), 1.0) * cycle.blocks
