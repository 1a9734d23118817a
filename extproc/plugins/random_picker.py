"""`random-picker`: any candidate, whatever its score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.max_score_picker import best_first
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class RandomPicker:
    """Order at random, each order as likely as any other; scores are not looked at.

    `maxNumOfEndpoints` 4: the chosen endpoint and three to fall back to. Source: llm-d's random-picker.
    """

    TYPE = "random-picker"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        max_num_of_endpoints: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions in random order; shape (min(n, maxNumOfEndpoints),)."""
        return best_first(np.zeros_like(scores), self.params.max_num_of_endpoints, cycle.draw)
