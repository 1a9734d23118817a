"""`kv-cache-utilization-scorer`: prefer the engine with the most free KV cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


_USUAL_TOKENS: Final = 524_288.0


class KvCacheUtilizationScorer:
    """Score 1 - min(u + (t - t0) / T, 1).

    u: share of the engine's KV blocks that running requests use, at its last scrape, shape (n,), 0..1; an engine
    that was never scraped counts as empty. Cached blocks that nobody uses count as free in vLLM and SGLang, so that a
    full prefix cache does not lower the score. The rest is ours, so that requests of one scrape interval do not all
    go to the emptiest: t, prompt tokens of the requests sent by this picker and not settled, shape (n,), tokens; t0, the
    same when the engine was asked; T, tokens that its KV cache holds, as it reports, else 524,288, about one large GPU's.
    No parameters. Source: llm-d's kv-cache-utilization-scorer, Kthena's gpu-usage.
    """

    TYPE = "kv-cache-utilization-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        table, rows = cycle.table, cycle.rows
        capacity = table.kv_tokens[rows]
        capacity += _USUAL_TOKENS * (capacity == 0)
        usage = table.kv_usage[rows] + (table.inflight_tokens[rows] - table.inflight_tokens_scraped[rows]) / capacity
        return 1.0 - np.minimum(np.maximum(usage, 0.0), 1.0)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        view = cycle.table.view
        usage, capacity = view["kv_usage"], view["kv_tokens"]
        now, then = view["inflight_tokens"], view["inflight_tokens_scraped"]
        used = [usage[row] + (now[row] - then[row]) / (capacity[row] or _USUAL_TOKENS) for row in cycle.rows]
        return [1.0 - min(max(each, 0.0), 1.0) for each in used]
