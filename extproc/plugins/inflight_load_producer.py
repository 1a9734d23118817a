"""`inflight-load-producer`: the counts of requests and tokens in flight, which are always kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from extproc.scheduling.framework import parameter

_OUTPUT = "only prompt tokens are counted"


class InflightLoadProducer:
    """Named in upstream's configurations; here the director counts for every profile.

    `addEstimatedOutputTokens` false: answers are not guessed at; true is refused. `prefixMatchInfoProducerName` as in
    prefix-cache-scorer. Source: llm-d's inflight-load-producer.
    """

    TYPE = "inflight-load-producer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        LACKS: ClassVar = {"outputRatio": _OUTPUT, "maxEstimatedOutputTokens": _OUTPUT}

        add_estimated_output_tokens: bool = parameter(default=False)
        prefix_match_info_producer_name: str = ""

        def __post_init__(self) -> None:
            if self.add_estimated_output_tokens:
                raise ValueError(f"addEstimatedOutputTokens must be false: {_OUTPUT}")

    def __init__(self, params: Params) -> None:
        self.params = params
