"""`bounded-load-filter`: no endpoint takes more than its fair share of the requests in flight, by a factor."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class BoundedLoadFilter:
    """Keep the endpoints with c + 1 <= max(minRequests, ceil(loadFactor * (sum c + 1) / n)).

    c: requests sent by this picker and not settled, shape (n,), requests; n: candidates. The least loaded one always
    stays, for its c + 1 is at most the mean rounded up.
    `loadFactor` 1.25: a hot prefix may hold one endpoint at a quarter over its fair load and no more. Nearer
    to 1, prefixes are torn away for every ripple (the paper's bound on moves grows with 1/(loadFactor - 1)^2); far above,
    requests wait on the hot endpoint for longer than a hit saves. KubeAI's default is the same.
    `minRequests` 4: below, an engine's batch costs its members next to nothing, so an idle pool is not restricted
    and a few conversations that share an engine stay there while the others are silent.
    Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2016.
    """

    TYPE = "bounded-load-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameters of ours."""

        load_factor: float = parameter(1.25, minimum=1)
        min_requests: int = parameter(4, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        active = cycle.table.inflight[cycle.rows]
        fair = (int(np.add.reduce(active)) + 1) / len(active)
        return active < max(self.params.min_requests, ceil(self.params.load_factor * fair))

    def keep_few(self, cycle: Few) -> list[bool]:
        """Do the same for few."""
        inflight = cycle.table.view["inflight"]
        active = [inflight[row] for row in cycle.rows]
        fair = (sum(active) + 1) / len(active)
        bound = max(self.params.min_requests, ceil(self.params.load_factor * fair))
        return [each < bound for each in active]
