"""What the picker counts, as Prometheus metrics named `matrixinfer_*`.

Everything happens on the loop, so counters are plain numbers, without the locks of prometheus-client's own: counting one
request costs microseconds, and the text is made when it is asked for. Labels are bounded: models that no route names
are `unknown`, endpoints and reasons are as many as there are. Token types are OpenTelemetry's `gen_ai.token.type`:
`input` and `output`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, Protocol

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from extproc.traffic.ledger import End

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prometheus_client.metrics_core import Metric

    from extproc.candidates import World
    from extproc.errors import Rejection
    from extproc.traffic.ledger import Done, Settlement
    from extproc.types import Outcome

_DURATION: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TTFT: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TPOT: Final = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1)
_DECISION: Final = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1)
_RATIO: Final = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)

Labels = tuple[str, ...]


class Counter:
    """A counter by labels."""

    def __init__(self, name: str, says: str, labels: Sequence[str]) -> None:
        self._name, self._says, self._labels = name, says, labels
        self.values: dict[Labels, float] = defaultdict(float)
        if not labels:
            self.values[()] = 0.0  # told from the start: a rate needs something to begin with

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count."""
        self.values[labels] += amount

    def forget(self, known: Callable[[str], bool]) -> None:
        """Drop the counts whose first label is not known (any more): labels stay bounded as pods come and go."""
        for labels in [labels for labels in self.values if not known(labels[0])]:
            del self.values[labels]

    def family(self) -> Metric:
        """Return the metric as Prometheus wants it."""
        return _family(CounterMetricFamily, self._name, self._says, self._labels, self.values.items())


class Histogram:
    """A histogram by labels."""

    def __init__(self, name: str, says: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._says, self._labels, self._bounds = name, says, labels, bounds
        self._cells: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = defaultdict(float)

    def observe(self, labels: Labels, value: float) -> None:
        """Take one value."""
        cells = self._cells.get(labels)
        if cells is None:
            cells = self._cells[labels] = [0] * (len(self._bounds) + 1)
        cells[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def family(self) -> Metric:
        """Return the metric as Prometheus wants it."""
        family = HistogramMetricFamily(self._name, self._says, labels=self._labels)
        names = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        for labels, cells in self._cells.items():
            total, buckets = 0, []
            for name, cell in zip(names, cells, strict=True):
                total += cell
                buckets.append((name, total))
            family.add_metric(labels, buckets, self._sums[labels])
        return family


class Source(Protocol):
    """Something whose numbers are read when metrics are asked for."""

    def __call__(self) -> Iterable[Metric]:
        """Return its metrics."""
        ...


class Telemetry:
    """All metrics of the picker; a collector of prometheus-client."""

    def __init__(self, world: World, knows: Callable[[str], bool]) -> None:
        """`knows` tells whether a route names a model: what no route names must not become a label."""
        self._world = world
        self._knows = knows
        self._sources: list[Source] = []
        self._requests = Counter(
            "matrixinfer_requests", "Requests that ended, refusals included.", ("model", "status", "reason")
        )
        self._tokens = Counter(
            "matrixinfer_tokens", "Tokens of requests that ended, as engines counted them.", ("model", "type")
        )
        self._cached = Counter(
            "matrixinfer_cached_tokens", "Prompt tokens that engines found in their KV caches.", ("model",)
        )
        self._estimated = Counter(
            "matrixinfer_estimated_tokens",
            "Tokens of answers that broke off, beyond those that their engines told, inferred from the time that these had.",
            ("model", "type"),
        )
        self._usage_missing = Counter("matrixinfer_usage_missing", "Complete answers that told no usage.", ("model",))
        self._bypassed = Counter("matrixinfer_bypassed", "Requests that reached an engine without a decision.", ())
        self._failures = Counter(
            "matrixinfer_endpoint_failures",
            "Tries that an endpoint failed: refused, reset, timed out, 502 or 503.",
            ("endpoint",),
        )
        self._served = Counter("matrixinfer_endpoint_requests", "Requests that an endpoint answered.", ("endpoint",))
        self._served_tokens = Counter(
            "matrixinfer_endpoint_tokens",
            "Tokens of the requests that an endpoint answered; cached is a part of input.",
            ("endpoint", "type"),
        )
        self._decisions = Histogram(
            "matrixinfer_decision_duration_seconds",
            "Time that the picker took to decide, refusals included, and what the request waited for there: texts that are "
            "tokenized, a prefill leg, shared limits.",
            (),
            _DECISION,
        )
        self._duration = Histogram(
            "matrixinfer_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ("model",),
            _DURATION,
        )
        self._ttft = Histogram(
            "matrixinfer_time_to_first_token_seconds",
            "From a request's arrival to the first chunk of its answer.",
            ("model",),
            _TTFT,
        )
        self._tpot = Histogram(
            "matrixinfer_time_per_output_token_seconds",
            "Time of each token after the first, streams only, mean of a request.",
            ("model",),
            _TPOT,
        )
        self._hits = Histogram(
            "matrixinfer_prefix_hit_ratio",
            "Share of a prompt's tokens that its engine found in its KV cache.",
            ("model",),
            _RATIO,
        )
        self._expected = Histogram(
            "matrixinfer_prefix_match_ratio",
            "Share of a prompt's blocks that the picker expected at the endpoint it chose.",
            ("model",),
            _RATIO,
        )
        self._predicted = Counter(
            "matrixinfer_kv_predictions",
            "Predictions of cached tokens from KV events, by how they stand to what the engine reported.",
            ("result",),
        )
        self._families: tuple[Counter | Histogram, ...] = (
            *(self._requests, self._tokens, self._cached, self._estimated, self._usage_missing, self._bypassed),
            *self._of_endpoints(),
            *(self._decisions, self._duration, self._ttft, self._tpot, self._hits, self._expected, self._predicted),
        )

    def add_source(self, source: Source) -> None:
        """Collect from `source`, too."""
        self._sources.append(source)

    def decided(self, took_s: float) -> None:
        """Count a decision's time."""
        self._decisions.observe((), took_s)

    def rejected(self, rejection: Rejection, model: str, took_s: float) -> None:
        """Count a request that was refused."""
        self._decisions.observe((), took_s)
        self._requests.add((self._label(model), str(rejection.status), rejection.reason))

    def bypassed(self) -> None:
        """Count a request that Envoy placed by itself."""
        self._bypassed.add(())

    def settled(self, settlement: Settlement) -> None:
        """Count a request that ended."""
        sent, outcome = settlement.sent, settlement.outcome
        model = (self._label(sent.model),)
        self._requests.add((*model, str(outcome.status) if outcome else "0", settlement.end.value))
        self._served.add((settlement.served,))  # "" where nobody did: not an endpoint, so never shown
        for address in settlement.failed:
            self._failures.add((address,))
        if sent.blocks:
            self._expected.observe(model, sent.matched / sent.blocks)
        if outcome is None:
            return
        self._duration.observe(model, outcome.duration_s)
        if outcome.first_token_s is not None:
            self._ttft.observe(model, outcome.first_token_s)
        prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
        self._count_untold(*model, settlement.done, outcome)
        if prompt is None and completion is None:
            if settlement.end is End.COMPLETE:
                self._usage_missing.add(model)
            return
        self._tokens.add((*model, "input"), prompt or 0)
        self._tokens.add((*model, "output"), completion or 0)
        for kind, tokens in (("input", prompt), ("output", completion), ("cached", outcome.cached_tokens)):
            self._served_tokens.add((settlement.served, kind), tokens or 0)
        if prompt and outcome.cached_tokens is not None:
            self._cached.add(model, outcome.cached_tokens)
            self._hits.observe(model, outcome.cached_tokens / prompt)
            self._predicted.add((_compared(settlement, outcome.cached_tokens),))
        if sent.stream and completion and completion > 1 and outcome.first_token_s is not None:
            self._tpot.observe(model, (outcome.duration_s - outcome.first_token_s) / (completion - 1))

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        for counted in self._of_endpoints():
            counted.forget(lambda address: self._world.table.row(address) is not None)
        for family in self._families:
            yield family.family()
        yield from self._endpoints()
        yield from self._ledger()
        index = self._world.index
        yield gauge("matrixinfer_prefix_index_blocks", "Distinct blocks in the prefix index.", index.blocks)
        yield gauge("matrixinfer_prefix_index_pairs", "Pairs of endpoint and block in the prefix index.", index.pairs)
        for source in self._sources:
            yield from source()

    def _count_untold(self, model: str, done: Done | None, outcome: Outcome) -> None:
        """Count what an engine did beyond what it told; apart, as ratios of what was told have to stay true."""
        if done is not None:
            prompt, completion = outcome.prompt_tokens or 0, outcome.completion_tokens or 0
            self._estimated.add((model, "input"), max(done.prompt_tokens - prompt, 0))
            self._estimated.add((model, "output"), max(done.completion_tokens - completion, 0))

    def _of_endpoints(self) -> tuple[Counter, ...]:
        return self._served, self._served_tokens, self._failures

    def _label(self, model: str) -> str:
        return model if self._knows(model) else "unknown"

    def _endpoints(self) -> Iterator[Metric]:
        table = self._world.table
        rows = [(row, endpoint) for row in table.rows() if (endpoint := table.endpoints[row]) is not None]
        columns: tuple[tuple[str, str, Callable[[int], float]], ...] = (
            (
                "inflight_requests",
                "Requests sent to the endpoint and not settled.",
                lambda row: int(table.inflight[row]),
            ),
            (
                "inflight_tokens",
                "Prompt tokens (estimated) of requests sent to the endpoint and not settled.",
                lambda row: int(table.inflight_tokens[row]),
            ),
            (
                "endpoint_waiting",
                "Requests queued in the engine, as it last told.",
                lambda row: float(table.waiting[row]),
            ),
            (
                "endpoint_running",
                "Requests in the engine's batch, as it last told.",
                lambda row: float(table.running[row]),
            ),
            (
                "endpoint_kv_usage",
                "Share of the engine's KV blocks in use, 0 to 1, as it last told.",
                lambda row: float(table.kv_usage[row]),
            ),
        )
        for name, says, value in columns:
            values = [((endpoint.address, endpoint.pod), value(row)) for row, endpoint in rows]
            yield _family(GaugeMetricFamily, f"matrixinfer_{name}", says, ("endpoint", "pod"), values)
        ready = [((endpoint.address, endpoint.pod), float(endpoint.ready)) for _row, endpoint in rows]
        yield _family(
            GaugeMetricFamily,
            "matrixinfer_endpoint_ready",
            "1 if the endpoint may be chosen.",
            ("endpoint", "pod"),
            ready,
        )

    def _ledger(self) -> Iterator[Metric]:
        ledger = self._world.ledger
        counts = ledger.counts
        values = {
            ("opened",): counts.opened,
            ("settled",): counts.settled,
            ("expired",): counts.expired,
            ("duplicate",): counts.duplicates,
            ("stranger",): counts.strangers,
        }
        says = "Requests opened, settled and expired (no record of their end came), and records that settled nothing."
        yield _family(CounterMetricFamily, "matrixinfer_ledger", says, ("event",), values.items())
        yield gauge("matrixinfer_ledger_open", "Requests sent and not settled, of all endpoints.", len(ledger))


def _compared(settlement: Settlement, cached: int) -> str:
    """Say how the prediction of cached tokens stands to what the engine reported."""
    predicted = settlement.sent.predicted_cached_tokens
    if predicted is None:
        return "none"
    if settlement.served != settlement.sent.endpoints[0]:
        return "elsewhere"
    if predicted == cached:
        return "equal"
    return "too-many" if predicted > cached else "too-few"


def gauge(name: str, says: str, value: float) -> Metric:
    """Return a gauge without labels."""
    return GaugeMetricFamily(name, says, value=value)


def labelled_gauge(name: str, says: str, values: Mapping[Labels, float], labels: Sequence[str]) -> Metric:
    """Return a gauge with labels."""
    return _family(GaugeMetricFamily, name, says, labels, values.items())


def counter(name: str, says: str, values: Mapping[Labels, float], labels: Sequence[str] = ()) -> Metric:
    """Return a counter."""
    return _family(CounterMetricFamily, name, says, labels, values.items())


def registry(telemetry: Telemetry) -> prometheus_client.CollectorRegistry:
    """Return a registry of these metrics and the process's own (CPU, memory, file descriptors, garbage collection)."""
    made = prometheus_client.CollectorRegistry()
    made.register(telemetry)
    prometheus_client.ProcessCollector(registry=made)
    prometheus_client.GCCollector(registry=made)
    return made


def _family(kind: Any, name: str, says: str, labels: Sequence[str], values: Iterable[tuple[Labels, float]]) -> Metric:
    family: Any = kind(name, says, labels=labels)
    for names, value in values:
        family.add_metric(names, value)
    made: Metric = family
    return made
