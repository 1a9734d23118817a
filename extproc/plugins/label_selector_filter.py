"""`label-selector-filter`: only pods that a Kubernetes label selector selects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


@dataclass(frozen=True, slots=True)
class Requirement:
    """One entry of `matchExpressions`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("key must name a pod label")
        listed = self.operator in ("In", "NotIn")
        if listed and not self.values:
            raise ValueError(f"operator {self.operator} needs values")
        if not listed and self.values:
            raise ValueError(f"operator {self.operator} takes no values")

    def met(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a pod with these labels is meant."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None


class LabelSelectorFilter:
    """Keep the endpoints whose pod has all of `matchLabels` and meets all of `matchExpressions`.

    The selector of Kubernetes: an expression has a key, an operator (In, NotIn, Exists, DoesNotExist) and values; a
    pod without the key is NotIn any values; a selector that says nothing selects everything. A request that no pod is
    left for is refused (429). Labels are the pod's as the cluster tells them.
    `matchLabels` and `matchExpressions`: upstream's, none by default. Source: llm-d's label-selector-filter, Kubernetes'
    LabelSelector.
    """

    TYPE = "label-selector-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        match_labels: dict[str, str] = field(default_factory=dict)
        match_expressions: tuple[Requirement, ...] = ()

    def __init__(self, params: Params) -> None:
        self.params = params
        self._requirements = (
            *(Requirement(key, "In", (value,)) for key, value in params.match_labels.items()),
            *params.match_expressions,
        )

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        endpoints = cycle.table.endpoints
        found = [endpoints[row] for row in cycle.rows.tolist()]
        return np.array(
            [one is not None and all(each.met(one.labels) for each in self._requirements) for one in found],
            dtype=np.bool_,
        )
