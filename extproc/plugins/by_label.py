"""`by-label`: only pods whose label has one of some values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.context_length_aware import label_values
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class ByLabel:
    """Keep the endpoints whose pod has `label` with one of `validValues`, or without it if `allowsNoLabel`.

    A request that no pod is left for is refused (429). Labels are the pod's as the cluster tells them.
    `label` has no default. `validValues`: none by default. `allowsNoLabel` false: a pod that nobody labelled is left out.
    Older configurations have it; label-selector-filter can say more. Source: llm-d's by-label.
    """

    TYPE = "by-label"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        label: str
        valid_values: tuple[str, ...] = ()
        allows_no_label: bool = parameter(default=False)

        def __post_init__(self) -> None:
            if not self.label:
                raise ValueError("label must name a pod label")
            if not self.valid_values and not self.allows_no_label:
                raise ValueError("validValues must be given, or allowsNoLabel be true; else no pod would ever be left")

    def __init__(self, params: Params) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        valid: set[str | None] = set(self.params.valid_values)
        if self.params.allows_no_label:
            valid.add(None)
        return np.array([value in valid for value in label_values(cycle, self.params.label)], dtype=np.bool_)
