"""`topology-affinity-scorer`: prefer endpoints that stand near: to the request's other endpoint, to a place, to the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from extproc.plugins.topology_extractor import DEFAULT, Labels
from extproc.scheduling import topology
from extproc.scheduling.topology import FAR, NOWHERE, Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import Endpoint
    from extproc.scheduling.framework import Cycle

MANY: Final = 65_536  # places that are remembered
_SCORES: Final = (1.0, 0.2, 0.05, 0.02, 0.0)  # same host, rack, zone, region; none of them


class TopologyAffinityScorer:
    """Score 1 on the same host, 0.2 in the same rack, 0.05 in the same zone, 0.02 in the same region, else 0.

    The same as what: as the endpoint that another profile has chosen for this request (decode, when prefill is placed);
    without one, as the header `peerTopologyHeader` says, in the form host=a,rack=b,zone=c,region=d, any of them; without
    one, as the picker's own place (`--topology`, in the same form). Where nothing is known, all score 0.
    An endpoint stands where its pod's labels say; its host is the pod's node if no label tells it. What is not known is
    the same as nothing. Host outweighs rack 5:1 and zone 20:1, for that is how fast KV blocks travel.
    `peerTopologyHeader`: none by default; a client could send it, so it is for requests that come through something that sets
    it. `labels` (of ours): `hostname` kubernetes.io/hostname, `rack`, `zone`, `region` topology.kubernetes.io/...
    `topologyProducerName`: there is one, so it can be named, not chosen.
    Source: llm-d's topology-affinity-scorer; the picker's own place is ours.
    """

    TYPE = "topology-affinity-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters, and one of ours."""

        topology_producer_name: Literal["", "topology-extractor"] = ""
        peer_topology_header: str = ""
        labels: Labels = DEFAULT

    def __init__(self, params: Params) -> None:
        self.params = params
        self._nearness = Nearness(params.labels, params.peer_topology_header)

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return np.array([_SCORES[level] for level in self._nearness.levels(cycle)])


class Nearness:
    """How near each candidate is to what the request should be near to."""

    def __init__(self, labels: Labels, header: str) -> None:
        self._names = Place(labels.hostname, labels.rack, labels.zone, labels.region)
        self._header = header.lower()
        self._places: dict[str, tuple[Endpoint, Place]] = {}  # by address

    def levels(self, cycle: Cycle) -> list[int]:
        """Return the tightest level in common with each candidate, n indexes of `topology.LEVELS`, or FAR."""
        centre = self.centre(cycle)
        if centre == NOWHERE:
            return [FAR] * len(cycle.rows)
        endpoints = cycle.table.endpoints
        places = [self._place(endpoints[row]) for row in cycle.rows.tolist()]
        known = {place: topology.level(centre, place) for place in set(places)}
        return [known[place] for place in places]

    def centre(self, cycle: Cycle) -> Place:
        """Return the place to be near to; NOWHERE if there is none."""
        if cycle.peer is not None and (place := self._place(cycle.table.endpoints[cycle.peer])) != NOWHERE:
            return place
        if self._header and (place := topology.read(cycle.request.headers.get(self._header, ""))) != NOWHERE:
            return place
        return cycle.table.home

    def _place(self, endpoint: Endpoint | None) -> Place:
        if endpoint is None:
            return NOWHERE
        known = self._places.get(endpoint.address)
        if known is None or known[0] is not endpoint:
            if len(self._places) > MANY:  # of endpoints that left
                self._places.clear()
            known = self._places[endpoint.address] = (
                endpoint,
                topology.place(endpoint.labels, self._names, endpoint.node),
            )
        return known[1]
