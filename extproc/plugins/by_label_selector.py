"""`by-label-selector`: the former name of label-selector-filter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.plugins.label_selector_filter import LabelSelectorFilter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class ByLabelSelector:
    """As label-selector-filter, which should be used instead: `matchLabels` and `matchExpressions`, none by default.

    Source: llm-d's by-label-selector (deprecated there).
    """

    TYPE = "by-label-selector"
    Params = LabelSelectorFilter.Params

    def __init__(self, params: LabelSelectorFilter.Params) -> None:
        self.params = params
        self._selector = LabelSelectorFilter(params)

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        return self._selector.keep(cycle)
