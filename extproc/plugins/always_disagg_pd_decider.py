"""`always-disagg-pd-decider`: every request that can be served in two legs is."""

from __future__ import annotations

from extproc.scheduling.disaggregation import Verdict
from extproc.scheduling.framework import NoParams

_YES = Verdict(True, "always")


class AlwaysDisaggPdDecider:
    """Prefill in a pod of its own, always. No parameters. Source: llm-d's always-disagg-pd-decider."""

    TYPE = "always-disagg-pd-decider"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:  # noqa: ARG002 - the deciders' signature
        """Return yes."""
        return _YES
