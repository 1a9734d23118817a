"""`never-disagg-pd-decider`: decode endpoints compute their prompts themselves."""

from __future__ import annotations

from extproc.scheduling.disaggregation import Verdict
from extproc.scheduling.framework import NoParams

_NO = Verdict(False, "never")


class NeverDisaggPdDecider:
    """No prefill leg, ever: to switch disaggregation off without touching pods. No parameters. Source: our own."""

    TYPE = "never-disagg-pd-decider"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:  # noqa: ARG002 - the deciders' signature
        """Return no."""
        return _NO
