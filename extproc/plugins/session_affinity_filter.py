"""`session-affinity-filter`: a session's requests go where its last one went, and nowhere else while that is possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.plugins.session_affinity_scorer import SessionAffinityParams, Sessions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class SessionAffinityFilter:
    """Keep the endpoint that the session is bound to; all of them if it is bound to none of the candidates.

    What a session is, how it is bound, and the parameters `strategy` and `sessionIdConfig`: as in
    session-affinity-scorer; each plugin remembers for itself. A bound session has no endpoint to fall back to but this
    one: where a retry elsewhere is worth more than the cache, take the scorer.
    Source: llm-d's session-affinity-filter.
    """

    TYPE = "session-affinity-filter"
    Params = SessionAffinityParams

    def __init__(self, params: SessionAffinityParams) -> None:
        self.params = params
        self._sessions = Sessions(params.session_id_config)

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        keep = cycle.rows == self._sessions.bound(cycle)
        return keep if np.count_nonzero(keep) else np.ones(len(keep), dtype=np.bool_)

    def observe(self, cycle: Cycle, row: int) -> None:
        """Bind the request's session to `row`."""
        self._sessions.bind(cycle, row)
