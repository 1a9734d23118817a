"""`predicted-latency-producer`: the learning of latencies, which always happens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from extproc.scheduling.framework import parameter


class PredictedLatencyProducer:
    """Named in upstream's configurations; here settled requests teach the table for every profile, in the picker itself.

    Upstream's other parameters steer its prediction service, and are refused. `streamingMode` false: upstream's; both
    kinds of answers are learned from, each for what it tells, so that either value describes this picker.
    Source: llm-d's predicted-latency-producer; what is learned is in `extproc/scheduling/latency.py`.
    """

    TYPE = "predicted-latency-producer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """One of upstream's parameters."""

        LACKS: ClassVar = dict.fromkeys(
            ("sloBufferFactor", "contextTTL", "endpointRoleLabel", "predictInProduce", "useEncoderCacheFeatures"),
            "it steers llm-d's prediction service, which is not asked here",
        )

        streaming_mode: bool = parameter(default=False)

    def __init__(self, params: Params) -> None:
        self.params = params
