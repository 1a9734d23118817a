"""What the picker counts of requests to ModelServers with prefill and decode pods, as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily

from extproc.adapters import telemetry
from extproc.prefilling.told import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from extproc.adapters.calls import Calls
    from extproc.prefilling.told import Counts


def metrics(counts: Counts, calls: Calls) -> Iterable[Metric]:
    """Yield the metrics."""
    yield telemetry.counter(
        "matrixinfer_disaggregation",
        "Requests to ModelServers with prefill and decode pods: who performed the prefill leg, or none, and why.",
        {labels: number for labels, number in counts.requests.items()},  # noqa: C416 - Counter is no Mapping[str, float]
        ("leg", "reason"),
    )
    yield telemetry.counter(
        "matrixinfer_prefill_legs",
        "Prefill legs that the gateway performed, by how they ended.",
        {(result,): number for result, number in counts.legs.items()},
        ("result",),
    )
    family = HistogramMetricFamily(
        "matrixinfer_prefill_leg_seconds", "Time of a prefill leg that the gateway performed."
    )
    total, buckets = 0, []
    for bound, cell in zip([*map(repr, BOUNDS), "+Inf"], counts.cells, strict=True):
        total += cell
        buckets.append((bound, total))
    family.add_metric((), buckets, counts.seconds)
    yield family
    yield telemetry.gauge("matrixinfer_calls_open", "Calls to engines that are under way for requests.", calls.open)
