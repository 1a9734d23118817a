"""`topology-extractor`: by which labels it is known where a pod stands."""

from __future__ import annotations

from dataclasses import dataclass

from extproc.scheduling.topology import Place

NAMES = Place(
    "kubernetes.io/hostname",
    "topology.kubernetes.io/rack",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
)


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of pod labels."""

    hostname: str = NAMES.host
    rack: str = NAMES.rack
    zone: str = NAMES.zone
    region: str = NAMES.region


DEFAULT = Labels()


class TopologyExtractor:
    """Named in upstream's configurations; here the topology plugins read the labels themselves.

    `hostname` kubernetes.io/hostname, `rack` topology.kubernetes.io/rack, `zone` topology.kubernetes.io/zone, `region`
    topology.kubernetes.io/region: upstream's defaults, and what stands here. Other names are given to the topology plugins,
    as their parameter labels. Source: llm-d's topology-extractor.
    """

    TYPE = "topology-extractor"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        hostname: str = NAMES.host
        rack: str = NAMES.rack
        zone: str = NAMES.zone
        region: str = NAMES.region

        def __post_init__(self) -> None:
            if (self.hostname, self.rack, self.zone, self.region) != NAMES:
                raise ValueError(
                    "other labels are told to the topology plugins: move these to their parameter `labels` and leave this empty"
                )

    def __init__(self, params: Params) -> None:
        self.params = params
