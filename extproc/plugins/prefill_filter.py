"""`prefill-filter`: only pods that may prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.scheduling.disaggregation import PREFILL, with_role
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class PrefillFilter:
    """Keep the endpoints whose pod's label `llm-d.ai/role` says `prefill`, `both` or a combination with it, and those without the label.

    A prefill profile gets prefill endpoints only: the ModelServer's `pdGroup` has told unlabelled pods apart before.

    No parameters. Source: llm-d's prefill-filter.
    """

    TYPE = "prefill-filter"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        return with_role(cycle, PREFILL)
