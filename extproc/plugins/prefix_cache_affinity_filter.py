"""`prefix-cache-affinity-filter`: only endpoints that hold the prefix, until they are too busy for it to pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from extproc.plugins.least_latency_scorer import prediction
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class PrefixCacheAffinityFilter:
    """Keep the sticky endpoints, m / b >= affinityThreshold; all if there is none, or if the best of them is too slow.

    Too slow: min over the sticky of TTFT - min over the others of TTFT > maxTTFTPenaltyMs, with
    TTFT = 1000 * t / peakPrefillThroughput in milliseconds, or as predicted (`ttftSource`).
    m: blocks at the prefix's start that the endpoint holds, shape (n,); b: blocks of the prefix; t: prompt tokens of the
    requests sent by this picker and not settled, shape (n,). Upstream's t has only tokens that were not cached, and
    lets go of them at the first token of the answer; ours counts whole prompts to the end of the answer, so that the
    estimate is an upper bound and the same penalty lets go of a busy endpoint sooner.
    `affinityThreshold` 0.8; `explorationProbability` 0: share of the requests for which nothing is left out, so that a
    prefix gets to other endpoints; `maxTTFTPenaltyMs` 18000: 0 sticks whatever the load; `ttftSource` prefillThroughput;
    latencyPredictor takes the times that least-latency-scorer predicts, learned from settled requests (upstream asks its
    prediction service), and sticks while nothing is learned; `peakPrefillThroughput` 15928 tokens/s: upstream's measure of
    a 32B model on two H100, so set it to your own. `prefixMatchInfoProducerName` as in
    prefix-cache-scorer.
    What follows it should weigh load (token-load-scorer, active-request-scorer); a heavy prefix-cache-scorer behind it
    would bring requests back to the endpoint that it let go. Source: llm-d's prefix-cache-affinity-filter.
    """

    TYPE = "prefix-cache-affinity-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        affinity_threshold: float = parameter(0.8, minimum=0, maximum=1)
        exploration_probability: float = parameter(0.0, minimum=0, maximum=1)
        max_ttft_penalty_ms: float = parameter(18_000.0, minimum=0, name="maxTTFTPenaltyMs")
        ttft_source: Literal["prefillThroughput", "latencyPredictor"] = "prefillThroughput"
        peak_prefill_throughput: float = parameter(15_928.0, minimum=0.001)
        prefix_match_info_producer_name: str = ""

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        sticky = cycle.matched >= self.params.affinity_threshold * cycle.blocks
        holders = np.count_nonzero(sticky) if cycle.blocks else 0
        if 0 < holders < len(sticky) and not self._explores(cycle) and not self._too_slow(cycle, sticky):
            return sticky
        return np.ones(len(sticky), dtype=np.bool_)

    def _explores(self, cycle: Cycle) -> bool:
        chance = self.params.exploration_probability
        return chance > 0 and cycle.draw.random() < chance

    def _too_slow(self, cycle: Cycle, sticky: NDArray[np.bool_]) -> bool:
        if not self.params.max_ttft_penalty_ms:
            return False
        if self.params.ttft_source == "latencyPredictor":
            times = prediction(cycle)
            if times is None:
                return False
            ttft_s = times.ttft_s
        else:
            ttft_s = cycle.table.inflight_tokens[cycle.rows] / self.params.peak_prefill_throughput
        return 1000 * float(ttft_s[sticky].min() - ttft_s[~sticky].min()) > self.params.max_ttft_penalty_ms
