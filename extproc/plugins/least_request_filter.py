"""`least-request-filter`: leave out engines whose queue is long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class LeastRequestFilter:
    """Keep the endpoints with q < maxWaitingRequests; a request that none is left for is refused (429).

    q: requests waiting in the engine at its last scrape, shape (n,), requests.
    `maxWaitingRequests` 10: Kthena's. Source: Kthena's filter least-request.
    """

    TYPE = "least-request-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Kthena's parameter."""

        max_waiting_requests: int = parameter(10, minimum=1)

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        return cycle.table.waiting[cycle.rows] < self.params.max_waiting_requests
