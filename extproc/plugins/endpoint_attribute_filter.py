"""`endpoint-attribute-filter`: leave out endpoints by a metric of one's own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from extproc.plugins.endpoint_attribute_scorer import attribute
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle

_OPERATORS: Final = {
    "LessThan": operator.lt,
    "LessThanOrEqual": operator.le,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqual": operator.ge,
    "Equal": operator.eq,
    "NotEqual": operator.ne,
}
_INFINITE: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Compares with a value."""

    operator: Literal["LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"] = (
        "LessThan"
    )
    value: float = _INFINITE


@dataclass(frozen=True, slots=True)
class Range:
    """From one value to another, both included."""

    min: float = -_INFINITE
    max: float = _INFINITE

    def __post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError("range needs min <= max")


@dataclass(frozen=True, slots=True)
class TopK:
    """So many of the best."""

    k: int = parameter(1, minimum=1)
    higher_is_better: bool = parameter(default=True)


@dataclass(frozen=True, slots=True)
class Percentile:
    """Those at or beyond a percentile of the candidates."""

    percentile: float = parameter(50.0, minimum=0, maximum=100)
    higher_is_better: bool = parameter(default=True)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Which endpoints stay; of the sections only that of `type` counts."""

    type: Literal["threshold", "range", "topK", "percentile"]
    threshold: Threshold = Threshold()
    range: Range = Range()
    top_k: TopK = TopK()
    percentile: Percentile = Percentile()

    def __post_init__(self) -> None:
        if self.type == "threshold" and self.threshold.value == _INFINITE:
            raise ValueError("type threshold needs `threshold` with operator and value")
        if self.type == "range" and self.range == Range():
            raise ValueError("type range needs `range` with min, max or both")


class EndpointAttributeFilter:
    """Keep the endpoints whose attribute `attribute` fits `algorithm`; others as `onMissing` says.

    `algorithm`: `type` threshold (operator, value), range (min, max, both included), topK (k, higherIsBetter true; equal
    values stay together) or percentile (percentile, higherIsBetter true: those at or above the value of that rank), each
    with a section of its name. The attribute is as in endpoint-attribute-scorer, shape (n,).
    `onMissing` Pass: an endpoint that does not report it stays; Fail: it goes. `fallbackOnEmpty` false: a request that none
    is left for is refused (429); true: then nothing is left out. `producer`: core-metrics-extractor is the only one.
    Source: llm-d's endpoint-attribute-filter.
    """

    TYPE = "endpoint-attribute-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        attribute: str
        algorithm: Algorithm
        producer: Literal["", "core-metrics-extractor"] = ""
        on_missing: Literal["Pass", "Fail"] = "Pass"
        fallback_on_empty: bool = parameter(default=False)

        @property
        def reads(self) -> str:
            """Name of the metric."""
            return self.attribute

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        values = attribute(cycle, self.params.attribute)
        missing = np.isnan(values)
        keep = missing.copy() if self.params.on_missing == "Pass" else np.zeros(len(values), dtype=np.bool_)
        keep[~missing] = self._fits(values[~missing])
        if self.params.fallback_on_empty and not np.count_nonzero(keep):
            return np.ones(len(keep), dtype=np.bool_)
        return keep

    def _fits(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        how = self.params.algorithm
        if not len(values):
            return np.zeros(0, dtype=np.bool_)
        if how.type == "threshold":
            return np.asarray(_OPERATORS[how.threshold.operator](values, how.threshold.value), dtype=np.bool_)
        if how.type == "range":
            return (values >= how.range.min) & (values <= how.range.max)
        ranked = np.sort(values)
        if how.type == "topK":
            count = min(how.top_k.k, len(values))
            higher, cutoff = how.top_k.higher_is_better, ranked[-count if how.top_k.higher_is_better else count - 1]
        else:
            rank = max(ceil(how.percentile.percentile / 100 * len(values)) - 1, 0)
            higher, cutoff = how.percentile.higher_is_better, ranked[rank]
        return np.asarray(values >= cutoff if higher else values <= cutoff, dtype=np.bool_)
