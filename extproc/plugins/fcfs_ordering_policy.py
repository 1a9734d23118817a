"""`fcfs-ordering-policy`: one tenant's requests in the order of their arrival."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams


class FcfsOrderingPolicy:
    """A tenant's oldest request is its next one; there is no other order, whether a configuration names this or not.

    Source: llm-d's fcfs-ordering-policy, its default.
    """

    TYPE = "fcfs-ordering-policy"
    SERVES = sections.ORDERING

    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
