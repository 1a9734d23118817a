"""`round-robin-fairness-policy`: tenants that wait take turns, whatever their requests cost."""

from __future__ import annotations

from extproc.scheduling import sections
from extproc.scheduling.flow import Prices
from extproc.scheduling.framework import NoParams


class RoundRobinFairnessPolicy:
    """Each request counts 1, divided by its tenant's weight: of the tenants that wait, the one with the lowest count is next.

    A tenant with long prompts gets more of the engines than one with short ones: virtual-token-counter-fairness-policy
    counts tokens. Source: llm-d's round-robin-fairness-policy.
    """

    TYPE = "round-robin-fairness-policy"
    SERVES = sections.FAIRNESS
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def prices(self) -> Prices | None:
        """Return what counts."""
        return Prices(request=1.0)
