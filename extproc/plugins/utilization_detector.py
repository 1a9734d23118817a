"""`utilization-detector`: an endpoint is full when its engine queues requests, or its KV cache is nearly used up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple

from extproc.scheduling import sections
from extproc.scheduling.flow import seconds
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.scheduling.endpoints import EndpointTable

_BATCH: Final = 256  # requests that an engine runs at once if it has not shown another number: vLLM's default
_FRESHEST_S: Final = 1.0  # engines with work are asked about every 0.8 s


class _Seen(NamedTuple):
    """What an engine has shown of its size."""

    address: str
    scraped_at: float
    batch: float  # requests that it runs at once
    queued: float  # running at the last page if requests waited then, else 0


class UtilizationDetector:
    """Places of an endpoint: b + queueDepthThreshold - c - o; none where u + t / k reaches kvCacheUtilThreshold.

    b: requests that its engine runs at once: as many as ran while requests waited on two pages one after the other, 256
    until then, and again once more ran without any waiting. c: requests that this picker sent and has not settled, exact at every
    moment. o: requests that others sent: what the engine reports less what was ours then. u: share of its KV blocks in use,
    t: prompt tokens that we sent since that page, k: tokens that its cache holds. An endpoint without any work has a place.
    `queueDepthThreshold` 5: requests that may wait in the engine, so that it never runs dry between two settlements.
    `kvCacheUtilThreshold` 0.8: beyond it engines begin to preempt. `metricsStalenessThreshold` 5s: of an engine whose page is
    older, only own work counts (b as it was, o and u as 0), so that one that falls silent is neither flooded nor shut. `headroom` 0:
    share of both thresholds that is added to them.
    Source: llm-d's utilization-detector, which takes the mean of q / threshold and u / threshold over the pool as last scraped, and a stale
    endpoint for full; here what was sent since counts at once, and the pool has room while one of its endpoints has.
    """

    TYPE = "utilization-detector"
    SERVES = sections.DETECTOR

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        LACKS: ClassVar = {
            "stalenessPolicy": "of an engine whose page is stale, own work counts",
        }

        queue_depth_threshold: int = parameter(5, minimum=0)
        kv_cache_util_threshold: float = parameter(0.8, minimum=0.01, maximum=1)
        metrics_staleness_threshold: str = "5s"
        headroom: float = parameter(0.0, minimum=0)

        def __post_init__(self) -> None:
            if self.stale_s < _FRESHEST_S:
                raise ValueError(
                    f"metricsStalenessThreshold must be at least {_FRESHEST_S:g}s: engines with work are asked about every 0.8 s"
                )

        @property
        def stale_s(self) -> float:
            """Age from which a page says nothing any more."""
            return seconds(self.metrics_staleness_threshold, "metricsStalenessThreshold")

    def __init__(self, params: Params) -> None:
        self.params = params
        self._stale_s = params.stale_s
        self._depth = params.queue_depth_threshold * (1 + params.headroom)
        self._fullest = params.kv_cache_util_threshold * (1 + params.headroom)
        self._seen: dict[int, _Seen] = {}

    def places(self, table: EndpointTable, rows: Sequence[int], now: float) -> list[float]:
        """Return how many more requests each of the endpoints takes."""
        view, depth = table.view, self._depth
        inflight, scraped_at = view["inflight"], view["scraped_at"]
        found = []
        for row in rows:
            own, at = inflight[row], scraped_at[row]
            seen = self._seen.get(row)
            if seen is None or seen.scraped_at != at or seen.address != table.addresses[row]:
                seen = self._seen[row] = self._learned(table, row, seen)
            if now - at > self._stale_s:
                found.append(seen.batch + depth - own)
                continue
            busy = view["waiting"][row] + view["running"][row]
            others = max(busy - view["inflight_scraped"][row], 0)
            if not own and not busy:
                found.append(max(seen.batch + depth, 1))
            elif self._kv_usage(table, row) >= self._fullest:
                found.append(0)
            else:
                found.append(seen.batch + depth - own - others)
        return found

    def _kv_usage(self, table: EndpointTable, row: int) -> float:
        view = table.view
        usage, size = view["kv_usage"][row], view["kv_tokens"][row]
        since = view["inflight_tokens"][row] - view["inflight_tokens_scraped"][row]
        return float(usage + since / size if size > 0 and since > 0 else usage)

    def _learned(self, table: EndpointTable, row: int, seen: _Seen | None) -> _Seen:
        """Take a page that was not seen yet."""
        view, address = table.view, table.addresses[row]
        at, waiting, running = view["scraped_at"][row], view["waiting"][row], view["running"][row]
        if seen is None or seen.address != address:
            seen = _Seen(address, at, _BATCH, 0.0)
        if waiting > 0:  # a burst waits for a moment, too: what two pages show is the batch's size
            batch = max(running, seen.queued) if seen.queued else seen.batch
            return _Seen(address, at, batch, max(running, 1.0))
        return _Seen(address, at, _BATCH if running > seen.batch else seen.batch, 0.0)
