"""`prefix-based-pd-decider`: a prefill leg where enough of the prompt has to be computed."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.scheduling.disaggregation import Verdict
from extproc.scheduling.framework import parameter


class PrefixBasedPdDecider:
    """Disaggregate if `uncached >= nonCachedTokens` and `prompt >= promptTokens`.

    `uncached` are the prompt's tokens that the decode endpoint, which was chosen first, does not hold. A few uncached
    tokens ride along in a decode step at next to no cost; a transfer costs a second exchange and moves all blocks.

    - `nonCachedTokens` (default 0: never disaggregate)
    - `promptTokens` (default 0: any length)

    Source: llm-d's prefix-based-pd-decider.
    """

    TYPE = "prefix-based-pd-decider"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Thresholds in tokens."""

        non_cached_tokens: int = parameter(0, minimum=0)
        prompt_tokens: int = parameter(0, minimum=0)

    def __init__(self, params: Params) -> None:
        self.params = params

    def verdict(self, prompt_tokens: int, cached_tokens: int) -> Verdict:
        """Compare with the thresholds."""
        least, shortest = self.params.non_cached_tokens, self.params.prompt_tokens
        uncached = max(prompt_tokens - cached_tokens, 0)
        if not least:
            return Verdict(False, "off", "nonCachedTokens is 0")
        if prompt_tokens < shortest:
            return Verdict(False, "short-prompt", f"{prompt_tokens} tokens, fewer than {shortest}")
        if uncached < least:
            return Verdict(False, "cached", f"{uncached} tokens uncached, fewer than {least}")
        return Verdict(True, "uncached", f"{uncached} tokens uncached, {least} or more")
