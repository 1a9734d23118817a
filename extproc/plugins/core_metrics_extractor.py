"""`core-metrics-extractor`: what is read of the engines' metrics pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from extproc.scheduling import sections


class CoreMetricsExtractor:
    """Named in upstream's configurations; here requests waiting and running, the KV cache and adapters are always read.

    Which engine a pod runs says the ModelServer's inferenceEngine, so that upstream's engineLabelKey, defaultEngine and
    engineConfigs are refused. No parameters. Source: llm-d's core-metrics-extractor.
    """

    TYPE = "core-metrics-extractor"
    SERVES = sections.EXTRACTOR

    @dataclass(frozen=True, slots=True)
    class Params:
        """None of upstream's."""

        LACKS: ClassVar = {
            **dict.fromkeys(
                ("engineLabelKey", "defaultEngine"), "a ModelServer's inferenceEngine says which engine it is"
            ),
            **dict.fromkeys(("engineConfigs", "customMetrics"), "metrics of one's own are not scraped"),
        }

    def __init__(self, params: Params) -> None:
        self.params = params
