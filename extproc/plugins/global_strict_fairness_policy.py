"""`global-strict-fairness-policy`: a band's requests in the order of their arrival, whosever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from extproc.scheduling import sections
from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from extproc.scheduling.flow import Prices


class GlobalStrictFairnessPolicy:
    """The oldest request of the band is next: tenants do not count, so that one that floods delays all others.

    Source: llm-d's global-strict-fairness-policy, its default.
    """

    TYPE = "global-strict-fairness-policy"
    SERVES = sections.FAIRNESS

    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def prices(self) -> Prices | None:
        """Return what counts: nothing."""
        return None
