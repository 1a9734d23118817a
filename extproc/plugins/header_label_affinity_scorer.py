"""`header-label-affinity-scorer`: prefer pods whose label is what the request's header says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.context_length_aware import label_values

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class HeaderLabelAffinityScorer:
    """Score 1 if the pod's label `labelKey` equals the request's header `headerName`, else 0; 0 for all without it.

    Values are compared as they stand, blanks around the header's aside; the header's name in any case.
    `headerName` and `labelKey` have no defaults. Source: llm-d's header-label-affinity-scorer.
    """

    TYPE = "header-label-affinity-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        header_name: str
        label_key: str

        def __post_init__(self) -> None:
            if not self.header_name or not self.label_key:
                raise ValueError("headerName and labelKey must not be empty")

    def __init__(self, params: Params) -> None:
        self.params = params
        self._header = params.header_name.lower()

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        wanted = cycle.request.headers.get(self._header, "").strip()
        if not wanted:
            return np.zeros(len(cycle.rows))
        return np.array([float(value == wanted) for value in label_values(cycle, self.params.label_key)])
