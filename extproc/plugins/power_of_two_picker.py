"""`power-of-two-picker`: the better of two candidates drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.max_score_picker import best_first
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class PowerOfTwoPicker:
    """Order two different candidates, drawn evenly, by score; the others follow in random order.

    Of two with equal scores the one drawn first wins. Several pickers that see the same stale load do not all choose the
    same best endpoint, and yet the longest queue grows only like log log n; the worst candidate of three or more is
    never chosen. What is paid is that the best is chosen in 2/n of the cases only, so that it goes with load
    scorers rather than with prefix-cache-scorer.
    `maxNumOfEndpoints` 4: the chosen endpoint and three to fall back to.
    Source: Azar, Broder, Karlin, Upfal, "Balanced Allocations", 1994; Mitzenmacher, "The Power of Two Choices in
    Randomized Load Balancing", 2001.
    """

    TYPE = "power-of-two-picker"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameter, as in the other pickers."""

        max_num_of_endpoints: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions, the better of the two first; shape (min(n, maxNumOfEndpoints),)."""
        count = self.params.max_num_of_endpoints
        drawn = best_first(np.zeros_like(scores), max(count, 2), cycle.draw)
        if len(drawn) > 1 and scores[drawn[1]] > scores[drawn[0]]:
            drawn[:2] = drawn[1::-1]
        return drawn[:count]
