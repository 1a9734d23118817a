"""`context-length-aware`: long prompts to the pods that are meant for them, short ones to the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle

_OUTSIDE: Final = 0.3  # a range that holds the prompt scores more than this, any other at most
_UNKNOWN: Final = 0.5  # a pod without a range
_WIDTH_TOKENS: Final = 10_000  # a range of this width counts half as specific as one of a single length
_DISTANCE_TOKENS: Final = 1_000  # this far outside a range, half of 0.3 is left


class ContextLengthAware:
    """Score by the range lo-hi in the pod's label, in tokens; T: the prompt's tokens, w = hi - lo.

    lo <= T <= hi: 0.3 + 0.7 * (0.7 / (1 + w / 10000) + 0.3 * (hi - T) / w), 1 if w = 0: narrow ranges first, then
    those with room. Else 0.3 / (1 + d / 1000), d the distance to the range. No label: 0.5; one that is no range: 0.
    T is the estimate that all plugins use (characters / 4; exact for token ids).
    `label` llm-d.ai/context-length-range: upstream's; its value is like "0-2048". `enableFiltering` false: true leaves
    out pods whose range does not hold T or cannot be read, and keeps those without a label; a request that fits
    none is then refused (429), so that there should be a pod for every length.
    Source: llm-d's context-length-aware.
    """

    TYPE = "context-length-aware"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        label: str = "llm-d.ai/context-length-range"
        enable_filtering: bool = parameter(default=False)

        def __post_init__(self) -> None:
            if not self.label:
                raise ValueError("label must name a pod label")

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        if not self.params.enable_filtering:
            return np.ones(len(cycle.rows), dtype=np.bool_)
        tokens = cycle.request.prompt_tokens
        return np.array([_holds(value, tokens) for value in label_values(cycle, self.params.label)], dtype=np.bool_)

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        tokens = cycle.request.prompt_tokens
        return np.array([_score(value, tokens) for value in label_values(cycle, self.params.label)])


def label_values(cycle: Cycle, label: str) -> list[str | None]:
    """Return each candidate's value of a pod label, None where it has no such label."""
    endpoints = cycle.table.endpoints
    return [None if one is None else one.labels.get(label) for one in map(endpoints.__getitem__, cycle.rows.tolist())]


def _holds(value: str | None, tokens: int) -> bool:
    if value is None:
        return True
    span = _span(value)
    return span is not None and span[0] <= tokens <= span[1]


def _score(value: str | None, tokens: int) -> float:
    if value is None:
        return _UNKNOWN
    span = _span(value)
    if span is None:
        return 0.0
    low, high = span
    if not low <= tokens <= high:
        return _OUTSIDE / (1 + max(low - tokens, tokens - high) / _DISTANCE_TOKENS)
    width = high - low
    if width == 0:
        return 1.0
    return _OUTSIDE + (1 - _OUTSIDE) * (0.7 / (1 + width / _WIDTH_TOKENS) + 0.3 * (high - tokens) / width)


@lru_cache(maxsize=1024)  # as many as there are different labels, in all likelihood few
def _span(value: str) -> tuple[int, int] | None:
    """Read "lo-hi"; None if it is not that."""
    low, _dash, high = (part.strip() for part in value.partition("-"))
    if not (low.isascii() and low.isdigit() and high.isascii() and high.isdigit()):
        return None
    return (int(low), int(high)) if int(low) <= int(high) else None
