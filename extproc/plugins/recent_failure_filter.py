"""`recent-failure-filter`: leave out endpoints that failed lately, unless all did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class RecentFailureFilter:
    """Keep the endpoints with avoid_until <= now; all of them if none would be left.

    avoid_until: set by the director when a request failed there, shape (n,), monotonic seconds. Where every endpoint
    failed, refusing would turn one bad second into an outage, so nothing is left out.
    Part of every profile, at its head, unless the profile names it elsewhere. No parameters.
    """

    TYPE = "recent-failure-filter"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        keep = cycle.table.avoid_until[cycle.rows] <= cycle.now
        return keep if np.count_nonzero(keep) else np.ones(len(keep), dtype=np.bool_)

    def keep_few(self, cycle: Few) -> list[bool]:
        """Do the same for few."""
        avoid, now = cycle.table.view["avoid_until"], cycle.now
        keep = [avoid[row] <= now for row in cycle.rows]
        return keep if True in keep else [True] * len(keep)
