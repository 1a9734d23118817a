"""`endpoint-attribute-scorer`: prefer endpoints by a metric of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle

_INFINITE = float("inf")
_ADAPTIVE = NoParams()


@dataclass(frozen=True, slots=True)
class FixedRange:
    """Ends of the scale; values beyond are cut off."""

    min: float
    max: float

    def __post_init__(self) -> None:
        if self.min >= self.max:
            raise ValueError("fixedRange needs min < max")


@dataclass(frozen=True, slots=True)
class Normalization:
    """The scale: fixed, or from the least to the greatest of the candidates."""

    fixed_range: FixedRange = FixedRange(-_INFINITE, _INFINITE)
    adaptive_range: NoParams = _ADAPTIVE


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a value becomes a score."""

    type: Literal["linear_lower_is_better", "linear_higher_is_better"]
    normalization: Normalization = Normalization()


class EndpointAttributeScorer:
    """Score (v - low) / (high - low), or 1 less that where lower is better; 0 for an endpoint without a value.

    v: the attribute `attributeKey`, shape (n,), as the engine reported it at its last scrape; which metric that is says
    core-metrics-extractor. low, high: `fixedRange` `min` and `max`, else the least and the greatest v; 1 if these are equal.
    `algorithm`: `type` linear_lower_is_better or linear_higher_is_better, `normalization` fixedRange or adaptiveRange.
    `producer`: core-metrics-extractor is the only one. What was sent since the scrape is not in a metric of which nobody
    knows how it grows: put a scorer of load beside it, or a burst goes to one endpoint.
    Source: llm-d's endpoint-attribute-scorer.
    """

    TYPE = "endpoint-attribute-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        attribute_key: str
        algorithm: Algorithm
        producer: Literal["", "core-metrics-extractor"] = ""

        @property
        def reads(self) -> str:
            """Name of the metric."""
            return self.attribute_key

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        values = attribute(cycle, self.params.attribute_key)
        known = ~np.isnan(values)
        if not np.count_nonzero(known):
            return np.zeros(len(values))
        fixed = self.params.algorithm.normalization.fixed_range
        low, high = fixed.min, fixed.max
        if low == -_INFINITE:
            low, high = float(values[known].min()), float(values[known].max())
        if high <= low:
            return known.astype(np.float64)
        share = np.clip((values - low) / (high - low), 0.0, 1.0)
        if self.params.algorithm.type == "linear_lower_is_better":
            share = 1.0 - share
        return np.nan_to_num(share, nan=0.0)


def attribute(cycle: Cycle, name: str) -> NDArray[np.float64]:
    """Return the values of an attribute, NaN where there is none; shape (n,)."""
    column = cycle.table.attributes.get(name)
    return np.full(len(cycle.rows), np.nan) if column is None else column[cycle.rows]
