"""Samples out of the picker's metrics page: only those that the view shows, found without reading the rest. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

REQUESTS: Final = "matrixinfer_requests_total"  # model, reason, status
TOKENS: Final = "matrixinfer_tokens_total"  # model, type
CACHED: Final = "matrixinfer_cached_tokens_total"  # model
TTFT: Final = "matrixinfer_time_to_first_token_seconds_bucket"  # le, model
ENDPOINT_REQUESTS: Final = "matrixinfer_endpoint_requests_total"  # endpoint
ENDPOINT_TOKENS: Final = "matrixinfer_endpoint_tokens_total"  # endpoint, type
ENDPOINT_FAILURES: Final = "matrixinfer_endpoint_failures_total"  # endpoint
BYPASSED: Final = "matrixinfer_bypassed_total"
LEDGER: Final = "matrixinfer_ledger_total"  # event
FEED_CONNECTED: Final = "matrixinfer_feed_connected"
FEED_CHANGES: Final = "matrixinfer_feed_changes_total"
CONFIG_PROBLEM: Final = "matrixinfer_config_problem"
UNMET: Final = "matrixinfer_resource_conditions_unmet"  # condition, kind
WANTED: Final = frozenset(
    (
        *(REQUESTS, TOKENS, CACHED, TTFT, ENDPOINT_REQUESTS, ENDPOINT_TOKENS, ENDPOINT_FAILURES),
        *(BYPASSED, LEDGER, FEED_CONNECTED, FEED_CHANGES, CONFIG_PROBLEM, UNMET),
    )
)

Labels = tuple[str, ...]
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")


class Samples:
    """Values by metric, and by label values in the order of the labels' names."""

    def __init__(self, values: Mapping[str, Mapping[Labels, float]]) -> None:
        self._values = values

    def of(self, name: str) -> Mapping[Labels, float]:
        """Return all samples of a metric."""
        return self._values.get(name, {})

    def value(self, name: str, *labels: str) -> float:
        """Return one sample, 0 if it is not there: counters appear when they count."""
        return self.of(name).get(labels, 0.0)

    def since(self, earlier: Samples) -> Samples:
        """Return how much each has grown; a counter that is smaller than before has begun again."""
        grown: dict[str, dict[Labels, float]] = {}
        for name, values in self._values.items():
            before = earlier.of(name)
            grown[name] = {
                labels: value - before.get(labels, 0.0) if value >= before.get(labels, 0.0) else value
                for labels, value in values.items()
            }
        return Samples(grown)

    def times(self, factor: float) -> Samples:
        """Return all of them, multiplied."""
        return Samples(
            {
                name: {labels: value * factor for labels, value in values.items()}
                for name, values in self._values.items()
            }
        )

    @classmethod
    def sum(cls, several: Sequence[Samples]) -> Samples:
        """Return what several pages say together; what only some say counts as 0 in the others."""
        if len(several) == 1:
            return several[0]
        added: defaultdict[str, defaultdict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        for one in several:
            for name in WANTED:
                for labels, value in one.of(name).items():
                    added[name][labels] += value
        return cls(added)


def samples(page: str) -> Samples:
    """Return what the view needs of a metrics page."""
    found: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    for line in page.split("\n"):
        name, brace, rest = line.partition("{")
        if not brace:
            name, _, rest = line.partition(" ")
        if name not in WANTED:
            continue
        labels, _, value = rest.rpartition("}") if brace else ("", "", rest)
        named = sorted(_LABEL.findall(labels))
        found[name][tuple(_plain(each) for _, each in named)] = float(value.split()[0])
    return Samples(found)


def quantile(share: float, buckets: Iterable[tuple[float, float]]) -> float | None:
    """Return a quantile from a histogram's cumulative buckets (upper bound, count), linear within a bucket.

    None where nothing was observed; the last finite bound where the quantile lies beyond it.
    """
    ordered = sorted(buckets)
    if not ordered or ordered[-1][1] <= 0:
        return None
    rank = share * ordered[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= rank and count > below:
            return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / (count - below)
        lower, below = bound, count
    return lower


def _plain(value: str) -> str:
    """Undo the escapes of the text format."""
    return _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value) if "\\" in value else value
