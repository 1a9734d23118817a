"""What waits at the gate, as Prometheus metrics and for the admin page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prometheus_client.core import HistogramMetricFamily

from extproc.adapters import telemetry
from extproc.traffic.flow.gate import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from extproc.traffic.flow.gate import Gate
    from extproc.traffic.flow.queue import Queue


def metrics(gate: Gate, now: float) -> Iterable[Metric]:
    """Yield the metrics."""
    counts = gate.counts
    waiting: dict[telemetry.Labels, float] = {}
    size: dict[telemetry.Labels, float] = {}
    held: dict[telemetry.Labels, float] = {}
    full: dict[telemetry.Labels, float] = {}
    for server, queue in gate.queues.items():
        without = gate.held(server)
        held[server,] = float(queue.count if without else 0)
        full[server,] = float(gate.places(server, now) - queue.granted < 1)
        for priority, band in queue.bands.items():
            waiting[server, str(priority)] = float(band.count)
            size[server, str(priority)] = float(band.size)
    labels = ("server", "priority")
    yield telemetry.labelled_gauge(
        "matrixinfer_queue_requests", "Requests that wait for their turn, by ModelServer and priority.", waiting, labels
    )
    yield telemetry.labelled_gauge("matrixinfer_queue_bytes", "Bytes of their bodies.", size, labels)
    yield telemetry.labelled_gauge(
        "matrixinfer_queue_held_requests",
        "Requests that wait until their ModelServer has an endpoint: a reason to start one.",
        held,
        ("server",),
    )
    yield telemetry.labelled_gauge(
        "matrixinfer_queue_saturated", "1 while no endpoint of the ModelServer has a place.", full, ("server",)
    )
    yield telemetry.counter(
        "matrixinfer_queue_outcomes",
        "Requests by what flow control did with them: at-once, waited, left, expired, displaced, full, shed.",
        {labels: float(number) for labels, number in counts.outcomes.items()},
        ("priority", "outcome"),
    )
    yield telemetry.counter(
        "matrixinfer_queue_tokens",
        "Weighted tokens that tenants were charged, divided by their weights; other: those that the configuration does not name.",
        {(tenant,): float(tokens) for tenant, tokens in gate.accounts.tokens.items()},
        ("tenant",),
    )
    family = HistogramMetricFamily(
        "matrixinfer_queue_wait_seconds", "How long requests waited whose turn came.", labels=("priority",)
    )
    for priority, cells in counts.waits.items():
        total, buckets = 0, []
        for bound, cell in zip([*map(str, map(float, BOUNDS)), "+Inf"], cells, strict=True):
            total += cell
            buckets.append((bound, total))
        family.add_metric((str(priority),), buckets, counts.waited_s[priority])
    yield family


def shown(gate: Gate, now: float) -> dict[str, Any]:
    """Return the queues as plain values, and the priorities that InferenceObjectives give."""
    objectives: dict[str, dict[str, int]] = {}
    for (server, name), priority in sorted(gate.objectives.items()):
        objectives.setdefault(server, {})[name] = priority
    return {
        "on": gate.rules is not None,
        "waiting": gate.count,
        "bytes": gate.size,
        "queues": {server: _queue(gate, server, queue, now) for server, queue in gate.queues.items()},
        "objectives": objectives,
    }


def _queue(gate: Gate, server: str, queue: Queue, now: float) -> dict[str, Any]:
    places = gate.places(server, now)
    oldest = queue.oldest()
    return {
        "waiting": queue.count,
        "without_endpoints": gate.held(server),
        "places": None if math.isinf(places) else places - queue.granted,
        "oldest_waits_s": None if oldest is None else round(now - oldest, 3),
        "bands": {
            str(priority): {
                "waiting": band.count,
                "bytes": band.size,
                "tenants": {
                    tenant: {"waiting": len(band.flows.get(tenant, ())), "counter": round(level, 1)}
                    for tenant, level in band.counters.levels().items()
                },
            }
            for priority, band in queue.bands.items()
        },
    }
