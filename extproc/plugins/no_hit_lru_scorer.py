"""`no-hit-lru-scorer`: where the prefix speaks for no endpoint, the one that has been idle for longest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.prefix_cache_scorer import least_match
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class NoHitLruScorer:
    """Score 0.5 for all on a hit, else 1 - rank / (n - 1), least recently chosen first.

    A hit: one endpoint holds more of the prefix than another, and enough to score in prefix-cache-scorer. rank: place
    of the endpoint in the order of when it was last chosen, 0 for the longest ago; those that never were come first
    and share rank 0. One candidate alone scores 1. Every choice counts, of a request with a hit, too: what is evened
    out is the work, not the misses (upstream counts the misses only, and takes equal matches for a hit).
    `minTrunkShare` 0, `minTrunkTokens` 64 (of ours): as in prefix-cache-scorer; give both plugins the same values.
    `lruSize` 1024: upstream's; so many endpoints at least are remembered, for memory is one number for each row of the
    endpoint table and needs no bound. `prefixMatchInfoProducerName` as in prefix-cache-scorer. Source: llm-d's no-hit-lru-scorer.
    """

    TYPE = "no-hit-lru-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and two of ours."""

        prefix_match_info_producer_name: str = ""
        lru_size: int = parameter(1024, minimum=1)
        min_trunk_share: float = parameter(0.0, minimum=0, maximum=1)
        min_trunk_tokens: int = parameter(64, minimum=0)

    def __init__(self, params: Params) -> None:
        self.params = params
        self._count = 0  # choices so far
        self._last: NDArray[np.int64] = np.zeros(64, dtype=np.int64)  # by row: the count when it was last chosen
        self._view = self._last.data

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        n = len(cycle.rows)
        if self._hit(cycle, int(np.minimum.reduce(cycle.matched)), int(np.maximum.reduce(cycle.matched))):
            return np.full(n, 0.5)
        if n == 1:
            return np.ones(1)
        self._cover(cycle)
        last = self._last[cycle.rows]
        ranked = last.copy()
        ranked.sort()
        return 1.0 - ranked.searchsorted(last) / (n - 1)

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        n = len(cycle.rows)
        if self._hit(cycle, min(cycle.matched), max(cycle.matched)):
            return [0.5] * n
        if n == 1:
            return [1.0]
        self._cover(cycle)
        last = [self._view[row] for row in cycle.rows]
        ranked = sorted(last)
        return [1.0 - ranked.index(each) / (n - 1) for each in last]

    def observe(self, cycle: Cycle, row: int) -> None:
        """Remember the choice."""
        self._cover(cycle)
        self._count += 1
        self._view[row] = self._count

    def _hit(self, cycle: Cycle | Few, least: int, best: int) -> bool:
        """Tell whether the endpoints that hold most (`best` blocks) are worth more than those that hold `least`."""
        if best == least:
            return False
        if cycle.trunk < best < cycle.blocks:
            return True
        return best >= least_match(cycle, self.params.min_trunk_share, self.params.min_trunk_tokens)

    def _cover(self, cycle: Cycle | Few) -> None:
        size = len(cycle.table.endpoints)
        if size > len(self._last):
            self._last = np.concatenate([self._last, np.zeros(size - len(self._last), dtype=np.int64)])
            self._view = self._last.data
