"""`virtual-token-counter-fairness-policy`: tenants that wait get equal shares of tokens, by their weights."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.scheduling import sections
from extproc.scheduling.flow import Prices
from extproc.scheduling.framework import parameter


class VirtualTokenCounterFairnessPolicy:
    """Each tenant of a band has a counter of what it was served; of those that wait, the one with the lowest is next.

    A request counts inputPrice * i + cachedPrice * c + outputPrice * o, divided by its tenant's weight: i prompt tokens that the
    engine computes, c that it finds in its cache, o generated ones. It is charged when it is dispatched, by what is expected
    (o: what its tenant's answers usually have, at most `max_tokens`), and corrected by the engine's figures when it ends. A tenant
    that comes back is lifted to the lowest counter of those that wait: who was away has saved nothing.
    `inputPrice` 1, `outputPrice` 2: the method's own figures: a generated token costs a step of the batch, a prompt token a share of one.
    `cachedPrice` 0.1: it is not computed, but takes its place in the KV cache; providers price it so.
    `localityTokens` 2048: among tenants whose counters are within so many tokens of the lowest, the request goes first whose
    prompt an endpoint with a place knows best; 0: never. It is added to the bound on what tenants may differ by.
    Source: VTC (arXiv 2401.00588); locality within a bounded deficit: DLPM (arXiv 2501.14312).
    """

    TYPE = "virtual-token-counter-fairness-policy"
    SERVES = sections.FAIRNESS

    @dataclass(frozen=True, slots=True)
    class Params:
        """Parameters of ours."""

        input_price: float = parameter(1.0, minimum=0)
        cached_price: float = parameter(0.1, minimum=0)
        output_price: float = parameter(2.0, minimum=0)
        locality_tokens: int = parameter(2048, minimum=0)

        def __post_init__(self) -> None:
            if not self.input_price + self.output_price:
                raise ValueError("inputPrice or outputPrice must be more than 0, or nothing counts")

    def __init__(self, params: Params) -> None:
        self.params = params

    def prices(self) -> Prices | None:
        """Return what counts."""
        params = self.params
        return Prices(0.0, params.input_price, params.cached_price, params.output_price, params.locality_tokens)
