"""What there is to see of KV events: how many, what went wrong, what the index holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.adapters import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from extproc.adapters.kv_events import KvEvents
    from extproc.kvcache.exact import ExactIndex


def metrics(exact: ExactIndex, events: KvEvents) -> Iterable[Metric]:
    """Yield the metrics of the exact index and of the streams that feed it."""
    index, told, streams = exact.index, exact.replica_counts, exact.stream_counts
    blocks = index.counts
    yield telemetry.counter(
        "matrixinfer_kv_batches",
        "Batches of KV events that engines published; some may be unreadable, or have come before.",
        {("applied",): told.batches, ("unreadable",): told.unreadable, ("duplicate",): streams.duplicates},
        ("result",),
    )
    yield telemetry.counter(
        "matrixinfer_kv_blocks",
        "Copies of blocks that engines stored and removed, and blocks that could not be placed, by why.",
        {
            ("stored",): blocks.stored,
            ("removed",): blocks.removed,
            ("removed-unknown",): blocks.unknown,
            ("orphan",): told.orphans,
            ("foreign",): told.foreign,
            ("misfit",): told.misfits,
            ("refused",): blocks.refused,
            ("evicted",): blocks.evicted,
        },
        ("event",),
    )
    yield telemetry.counter(
        "matrixinfer_kv_expected_blocks",
        "Blocks of requests just routed: expected of their engine, confirmed by it, or given up.",
        {("expected",): blocks.expected, ("confirmed",): blocks.confirmed, ("expired",): blocks.expired},
        ("event",),
    )
    yield telemetry.counter(
        "matrixinfer_kv_stream_events",
        "What happened to streams of KV events: gaps in their numbers, replays, parts of the index that were dropped.",
        {
            ("gap",): streams.gaps,
            ("replay",): streams.replays,
            ("replay-failed",): streams.failed_replays,
            ("reset",): streams.resets,
            ("restart",): streams.restarts,
            ("cleared",): told.cleared,
        },
        ("event",),
    )
    followed = [one for many in events.following.values() for one in many]
    whole = sum(one.member.up and one.member.stream.whole for one in followed)
    down = sum(not one.member.up for one in followed)
    yield telemetry.labelled_gauge(
        "matrixinfer_kv_streams",
        "Streams of KV events: all known of their engine, not all known, or connection lost.",
        {("complete",): whole, ("partial",): len(followed) - whole - down, ("disconnected",): down},
        ("state",),
    )
    yield telemetry.gauge(
        "matrixinfer_kv_event_lag_seconds",
        "Age of the last batch when it came, of the stream where it is highest, by the engine's clock.",
        max((one.lag_s for one in followed), default=0.0),
    )
    yield telemetry.gauge("matrixinfer_kv_index_blocks", "Distinct blocks in the exact index.", index.blocks)
    yield telemetry.gauge("matrixinfer_kv_index_pairs", "Pairs of engine and block in the exact index.", index.pairs)
    yield telemetry.gauge("matrixinfer_kv_index_bytes", "Memory of the exact index's tables.", index.memory)
