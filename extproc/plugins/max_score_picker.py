"""`max-score-picker`: the best score first, ties in random order."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle, Draw

_FEW = 32  # so many are sorted as Python numbers: faster than arrays


class MaxScorePicker:
    """Order by score, descending; equal scores in random order, each order as likely as any other.

    `maxNumOfEndpoints` 4: the chosen endpoint and three to fall back to. Upstream's default is 1, with which the
    gateway has nowhere to go when the chosen one fails. Source: llm-d's max-score-picker.
    """

    TYPE = "max-score-picker"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameter."""

        max_num_of_endpoints: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions of the best, best first; shape (min(n, maxNumOfEndpoints),)."""
        return best_first(scores, self.params.max_num_of_endpoints, cycle.draw)

    def order_few(self, cycle: Few, scores: list[float]) -> list[int]:
        """Do the same for few."""
        return _sorted(scores, range(len(scores)), cycle.draw)[: self.params.max_num_of_endpoints]


def best_first(scores: NDArray[np.float64], count: int, draw: Draw) -> NDArray[np.intp]:
    """Return positions of the `count` best of `scores` (shape (n,), finite), best first, ties in random order."""
    n = len(scores)
    if n <= _FEW:
        return np.array(_sorted(scores.tolist(), range(n), draw)[:count], dtype=np.intp)
    wanted = min(count, n)
    highest = scores.copy()
    highest.partition(n - wanted)
    worst = highest[n - wanted]
    best = (scores >= worst).nonzero()[0]
    if count < n and len(best) <= _FEW:
        return np.array(_sorted(scores[best].tolist(), best.tolist(), draw)[:count], dtype=np.intp)
    chosen: list[int] = []
    for score in sorted(set(highest[n - wanted :].tolist()), reverse=True):
        ties = (scores == score).nonzero()[0]
        taken: list[int] = []  # places in `ties`, in order
        while len(taken) < len(ties) and len(chosen) < wanted:
            place = int(draw.random() * (len(ties) - len(taken)))
            for before in taken:
                place += before <= place
            insort(taken, place)
            chosen.append(int(ties[place]))
    return np.array(chosen, dtype=np.intp)


def _sorted(scores: list[float], positions: Iterable[int], draw: Draw) -> list[int]:
    keys = [(-score, draw.random(), at) for score, at in zip(scores, positions, strict=True)]
    keys.sort()
    return [at for _score, _draw, at in keys]
