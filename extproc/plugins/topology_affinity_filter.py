"""`topology-affinity-filter`: only endpoints that stand near enough, if one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from extproc.plugins.topology_affinity_scorer import Nearness
from extproc.plugins.topology_extractor import DEFAULT, Labels
from extproc.scheduling.topology import LEVELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle


class TopologyAffinityFilter:
    """Keep the endpoints in the same host, rack, zone or region (`minAffinity` or tighter); all of them if none is.

    The same as what, and where an endpoint stands: as in topology-affinity-scorer. Nearness is a preference: where
    nothing is known of it, and where nobody is near, nothing is left out.
    `minAffinity` host: upstream's; an NVLink domain is a host, in rack-scale machines the rack. `peerTopologyHeader`,
    `labels`, `topologyProducerName`: as in topology-affinity-scorer. Source: llm-d's topology-affinity-filter.
    """

    TYPE = "topology-affinity-filter"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and one of ours."""

        min_affinity: Literal["host", "rack", "zone", "region"] = "host"
        topology_producer_name: Literal["", "topology-extractor"] = ""
        peer_topology_header: str = ""
        labels: Labels = DEFAULT

    def __init__(self, params: Params) -> None:
        self.params = params
        self._farthest = LEVELS.index(params.min_affinity)
        self._nearness = Nearness(params.labels, params.peer_topology_header)

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        keep = np.array([level <= self._farthest for level in self._nearness.levels(cycle)], dtype=np.bool_)
        return keep if np.count_nonzero(keep) else np.ones(len(keep), dtype=np.bool_)
