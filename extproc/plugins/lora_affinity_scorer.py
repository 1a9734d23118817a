"""`lora-affinity-scorer`: prefer endpoints that have the request's LoRA adapter loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class LoraAffinityScorer:
    """Score 1 if the endpoint lists the request's model, else 0.

    Listed: ids at the engine's /v1/models, loaded adapters among them, as of the last time they were asked for (every 15
    seconds); none for an engine that was never asked. Every endpoint of a pool lists its base model under the engine's
    own name, so for requests without an adapter the score is the same for all.
    Upstream grades more finely: 0.8 for an endpoint with a free slot, 0.6 for one where a request waits for the
    adapter. Both come from vLLM's lora_requests_info, which names adapters of requests at work only: one that is loaded
    and idle is not on it, and would count as absent. What is listed need not be fetched and loaded; whether its weights
    have a slot on the GPU at this moment is not told.
    No parameters. Source: llm-d's lora-affinity-scorer.
    """

    TYPE = "lora-affinity-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return listing(cycle).astype(np.float64)


def listing(cycle: Cycle) -> NDArray[np.bool_]:
    """Mark the candidates whose engine lists the request's model, shape (n,)."""
    models, wanted = cycle.table.models, cycle.request.model
    return np.array([wanted in models[row] for row in cycle.rows.tolist()], dtype=np.bool_)
