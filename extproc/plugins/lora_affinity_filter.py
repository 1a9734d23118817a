"""`lora-affinity-filter`: only endpoints that have the request's LoRA adapter loaded, if one has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.lora_affinity_scorer import Adapters, wanted
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class LoraAffinityFilter:
    """Keep the endpoints that list the request's model; all of them if none does.

    Listed: under the name that goes to the engine, at its /v1/models, as of the last time it was asked (every 15
    seconds). Where none lists it, any endpoint may be told to load it, so nothing is left out. For adapters that a
    ModelRoute names in `loraAdapters` the candidates have been narrowed like this already; the filter does it for adapters
    that are routed by their own `modelName`.
    `requireSlot` false (of ours): true leaves out, too, endpoints where the adapter scores 0 in lora-affinity-scorer, its
    slots being taken by others, as long as one is left: there it would wait for a whole batch of other adapters to end.
    Source: Kthena's filter lora-affinity.
    """

    TYPE = "lora-affinity-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameter of ours."""

        require_slot: bool = parameter(default=False)

    def __init__(self, params: Params) -> None:
        self.params = params
        self._adapters = Adapters()

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        models, name = cycle.table.models, wanted(cycle)
        keep = np.array([name in models[row] for row in cycle.rows.tolist()], dtype=np.bool_)
        if not np.count_nonzero(keep):
            keep = np.ones(len(keep), dtype=np.bool_)
        if self.params.require_slot:
            room = keep & (self._adapters.grades(cycle) > 0)
            return room if np.count_nonzero(room) else keep
        return keep

    def observe(self, cycle: Cycle, row: int) -> None:
        """Remember that the adapter goes to work at `row`."""
        if self.params.require_slot:
            self._adapters.sent(cycle, row)
