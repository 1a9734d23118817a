"""`lora-affinity-filter`: only endpoints that have the request's LoRA adapter loaded, if one has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.lora_affinity_scorer import listing
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class LoraAffinityFilter:
    """Keep the endpoints that list the request's model; all of them if none does.

    Listed: as in lora-affinity-scorer. Where none lists it, any endpoint may be told to load it, or the name is one that
    the route changes on the way, so nothing is left out. For adapters that a ModelRoute names in `loraAdapters` the
    candidates have been narrowed like this already; the filter does it for adapters that are routed by their own
    `modelName`.
    No parameters. Source: Kthena's filter lora-affinity.
    """

    TYPE = "lora-affinity-filter"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        keep = listing(cycle)
        return keep if np.count_nonzero(keep) else np.ones(len(keep), dtype=np.bool_)
