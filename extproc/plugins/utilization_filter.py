"""`utilization-filter`: leave out endpoints above a bound on their load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Cycle

Metric = Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of `conditions`."""

    metric: Metric
    max_value: float = parameter(minimum=0)


class UtilizationFilter:
    """Keep the endpoints of which every metric in `conditions` is at most its `maxValue`.

    Metrics: active-requests c, requests sent by this picker and not settled, exact at every moment; running-requests r,
    waiting-queue q (both requests) and kv-cache-utilization u (0..1), as the engine reported at its last scrape, 0 for
    one that was never scraped. Shape (n,) each.
    `conditions` has no default: what is too much depends on the engines. `fallbackOnEmpty` false: a request that none
    is left for is refused (429); true: then nothing is left out. Source: llm-d's utilization-filter.
    """

    TYPE = "utilization-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        conditions: tuple[Condition, ...]
        fallback_on_empty: bool = parameter(default=False)

        def __post_init__(self) -> None:
            if not self.conditions:
                raise ValueError("conditions must have an entry such as `metric: waiting-queue, maxValue: 10`")

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        keep = np.ones(len(cycle.rows), dtype=np.bool_)
        for condition in self.params.conditions:
            keep &= _column(cycle.table, condition.metric)[cycle.rows] <= condition.max_value
        if self.params.fallback_on_empty and not np.count_nonzero(keep):
            return np.ones(len(keep), dtype=np.bool_)
        return keep


def _column(table: EndpointTable, metric: Metric) -> NDArray[np.float64] | NDArray[np.int64]:
    match metric:
        case "active-requests":
            return table.inflight
        case "running-requests":
            return table.running
        case "waiting-queue":
            return table.waiting
        case "kv-cache-utilization":
            return table.kv_usage
