"""`concurrency-detector`: an endpoint is full when this picker has sent it as much as it may have at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from extproc.scheduling import sections
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.scheduling.endpoints import EndpointTable


class ConcurrencyDetector:
    """Places of an endpoint: what it may have at once, less what this picker has sent it and not settled.

    Own work only, so right at every moment and never stale; work that other pickers send is not seen.
    `concurrencyMode` requests: requests count; tokens: their prompt tokens; hybrid: both, and the scarcer one decides.
    `maxConcurrency` 100 requests, `maxTokenConcurrency` 1000000 tokens: of each endpoint, upstream's figures; the size of
    an engine's batch (`--max-num-seqs`) and a few more is what keeps it busy without a queue of its own. `headroom` 0: share
    of these bounds that is added to them.
    Source: llm-d's concurrency-detector, which compares the sums over the pool; here no single endpoint gets more.
    """

    TYPE = "concurrency-detector"
    SERVES = sections.DETECTOR

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        LACKS: ClassVar = {
            "inFlightLoadProducerName": "what was sent and not settled is always counted",
        }

        concurrency_mode: Literal["requests", "tokens", "hybrid"] = "requests"
        max_concurrency: int = parameter(100, minimum=1)
        max_token_concurrency: int = parameter(1_000_000, minimum=1)
        headroom: float = parameter(0.0, minimum=0)

    def __init__(self, params: Params) -> None:
        self.params = params
        bounded = params.concurrency_mode != "tokens"
        self._most = int(params.max_concurrency * (1 + params.headroom)) if bounded else math.inf
        self._most_tokens = params.max_token_concurrency * (1 + params.headroom)

    def places(self, table: EndpointTable, rows: Sequence[int], now: float) -> list[float]:  # noqa: ARG002 - a detector's signature
        """Return how many more requests each of the endpoints takes."""
        params, inflight = self.params, table.view["inflight"]
        most, most_tokens = self._most, self._most_tokens
        if params.concurrency_mode == "requests":
            return [most - inflight[row] for row in rows]
        tokens = table.view["inflight_tokens"]
        # of requests whose size is not known yet, one at a time
        by_tokens = [1.0 if tokens[row] < most_tokens else 0.0 for row in rows]
        return [min(place, most - inflight[row]) for place, row in zip(by_tokens, rows, strict=True)]
