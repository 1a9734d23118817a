"""`decode-filter`: only pods that may decode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.scheduling.disaggregation import DECODE, with_role
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class DecodeFilter:
    """Keep the endpoints whose pod's label `llm-d.ai/role` says `decode`, `both` or a combination with it, and those without the label.

    Under a profile handler that disaggregates, the ModelServer's `pdGroup` has told unlabelled pods apart before.

    No parameters. Source: llm-d's decode-filter.
    """

    TYPE = "decode-filter"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        return with_role(cycle, DECODE)
