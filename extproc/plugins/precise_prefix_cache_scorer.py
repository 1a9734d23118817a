"""`precise-prefix-cache-scorer`: prefer the endpoint whose engine says that it holds most of the prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.precise_prefix_cache_producer import Exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class PrecisePrefixCacheScorer:
    """Score m / b.

    m: blocks at the prefix's start that the endpoint holds, each weighed by the best tier that has it
    (`kvCacheBackendConfigs`), shape (n,); b: blocks of the prefix; 0 for all if b = 0. For endpoints that publish no
    events m is what the learned index says.
    Parameters are those of precise-prefix-cache-producer, with their defaults and reasons: upstream's deprecated wrapper
    of the two, `prefix-cache-scorer` beside the producer being its successor. In one configuration there is one of them.
    Source: llm-d's precise-prefix-cache-scorer.
    """

    TYPE = "precise-prefix-cache-scorer"
    Params = Exact

    def __init__(self, params: Exact) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        if not cycle.blocks:
            return np.zeros(len(cycle.rows))
        held = cycle.matched if cycle.weighted is None else cycle.weighted
        return np.minimum(held / cycle.blocks, 1.0)

    def score_few(self, few: Few) -> list[float]:
        """Return the scores, length n."""
        if not few.blocks:
            return [0.0] * len(few.rows)
        held = few.matched if few.weighted is None else few.weighted
        return [min(one / few.blocks, 1.0) for one in held]
