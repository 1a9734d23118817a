"""`kv-cache-utilization-scorer`: prefer the engine with the most free KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class KvCacheUtilizationScorer:
    """Score 1 - u.

    u: share of the engine's KV blocks that running requests use, at its last scrape, shape (n,), 0..1; an engine
    that was never scraped counts as empty. Cached blocks that nobody uses count as free in vLLM and SGLang, so that a
    full prefix cache does not lower the score.
    No parameters. Source: llm-d's kv-cache-utilization-scorer, Kthena's gpu-usage.
    """

    TYPE = "kv-cache-utilization-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return np.maximum(1.0 - cycle.table.kv_usage[cycle.rows], 0.0)
