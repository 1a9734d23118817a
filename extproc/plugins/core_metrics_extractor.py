"""`core-metrics-extractor`: what is read of the engines' metrics pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from extproc.scheduling import sections
from extproc.scheduling.framework import parameter

_PAIR = r"\w+\s*=[^,{}]*"
SPEC = re.compile(rf"([A-Za-z_:][\w:]*)\s*(?:\{{\s*((?:{_PAIR}(?:,\s*{_PAIR})*)?,?\s*)\}})?")
_NAMES = "requests, cache and adapters are read by the engine's own names"


@dataclass(frozen=True, slots=True)
class CustomMetric:
    """A metric of one's own, and what it is called here."""

    attribute_key: str
    metric_spec: str
    optional: bool = parameter(default=True)

    def __post_init__(self) -> None:
        if not self.attribute_key:
            raise ValueError("attributeKey must be a name")
        if not SPEC.fullmatch(self.metric_spec.strip()):
            raise ValueError(f"metricSpec must be name or name{{label=value,...}}, not {self.metric_spec!r}")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What is read of one kind of engine."""

    LACKS: ClassVar = dict.fromkeys(
        ("queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec", "loraSpec", "cacheInfoSpec"), _NAMES
    )

    name: Literal["vllm", "sglang"]
    custom_metrics: tuple[CustomMetric, ...] = ()


class CoreMetricsExtractor:
    """Requests waiting and running, the KV cache and adapters are always read; metrics of one's own are named here.

    `engineConfigs`: none by default; for an engine (`name` vllm or sglang) its `customMetrics`, each with `attributeKey`,
    the name by which endpoint-attribute-scorer and -filter know it, and `metricSpec`, name or name{label=value,...}; the
    sum over its lines counts. A metric that is not on the page is not known of that endpoint (`optional` is true in
    effect). Upstream's engineLabelKey and defaultEngine are refused: a ModelServer's inferenceEngine says which engine it is.
    Source: llm-d's core-metrics-extractor.
    """

    TYPE = "core-metrics-extractor"
    SERVES = sections.EXTRACTOR

    @dataclass(frozen=True, slots=True)
    class Params:
        """Of upstream's."""

        LACKS: ClassVar = dict.fromkeys(
            ("engineLabelKey", "defaultEngine"), "a ModelServer's inferenceEngine says which engine it is"
        )

        engine_configs: tuple[EngineConfig, ...] = ()

        @property
        def offers(self) -> tuple[str, ...]:
            """Names of the metrics of one's own."""
            return tuple(one.attribute_key for engine in self.engine_configs for one in engine.custom_metrics)

    def __init__(self, params: Params) -> None:
        self.params = params
