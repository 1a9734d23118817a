"""`weighted-random-picker`: a candidate at random, with its score as weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.max_score_picker import best_first
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle

_LARGEST = np.finfo(np.float64).max
_NOTHING = 1e-300  # scores below it count as 0; the division stays finite


class WeightedRandomPicker:
    """Order by u^(1/s), descending: the first is drawn with probability s / sum s, the next from the rest likewise.

    s: scores, shape (n,); u: a fresh draw from (0, 1] for each. The key is taken as ln(u) / s, which does not
    underflow. Candidates that score 0 come last, in random order; if all do, any order is as likely as any other.
    `maxNumOfEndpoints` 4: the chosen endpoint and three to fall back to.
    Source: Efraimidis and Spirakis, "Weighted Random Sampling with a Reservoir" (A-Res), 2006; llm-d's
    weighted-random-picker.
    """

    TYPE = "weighted-random-picker"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        max_num_of_endpoints: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions, first drawn first; shape (min(n, maxNumOfEndpoints),)."""
        draws = np.array([1.0 - cycle.draw.random() for _ in scores])
        keys = np.full(len(scores), -_LARGEST)
        np.divide(np.log(draws), scores, out=keys, where=scores > _NOTHING)
        return best_first(keys, self.params.max_num_of_endpoints, cycle.draw)
