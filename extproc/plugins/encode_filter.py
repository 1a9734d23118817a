"""`encode-filter`: only pods whose role includes encoding images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.plugins.by_label import ByLabel
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class EncodeFilter:
    """Keep the endpoints whose pod's label llm-d.ai/role is encode, encode-prefill or encode-prefill-decode.

    A pod without the label is left out; a request that no pod is left for is refused (429).
    No parameters. Source: llm-d's encode-filter.
    """

    TYPE = "encode-filter"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
        self._roles = ByLabel(
            ByLabel.Params("llm-d.ai/role", valid_values=("encode", "encode-prefill", "encode-prefill-decode"))
        )

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        return self._roles.keep(cycle)
