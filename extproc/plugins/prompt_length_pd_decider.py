"""`prompt-length-pd-decider`: a prefill leg for long prompts, whatever is cached."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.scheduling.disaggregation import Verdict
from extproc.scheduling.framework import parameter


class PromptLengthPdDecider:
    """Disaggregate if `prompt >= minPromptTokens`.

    - `minPromptTokens` (default 512: a prompt below it takes about as long to compute as its transfer takes)

    Source: our own; AIBrix chooses by prompt length, too.
    """

    TYPE = "prompt-length-pd-decider"

    @dataclass(frozen=True, slots=True)
    class Params:
        """The threshold in tokens."""

        min_prompt_tokens: int = parameter(512, minimum=0)

    def __init__(self, params: Params) -> None:
        self.params = params

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:  # noqa: ARG002 - the deciders' signature
        """Compare with the threshold."""
        least = self.params.min_prompt_tokens
        if prompt_tokens < least:
            return Verdict(False, "short-prompt", f"{prompt_tokens} tokens, fewer than {least}")
        return Verdict(True, "long-prompt", f"{prompt_tokens} tokens, {least} or more")
