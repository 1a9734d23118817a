"""Failover over targets: the endpoints of further ModelServers behind those of a request's own, then the relay; copies for mirrors.

Envoy walks one list. Its head are the endpoints that the scheduler chose, as many as the target's retries reach; behind
them stand, for each further target of the rule that is ready, the endpoints with the least to do. The body is written for
the first target: whoever knows the model by another name is listed with it, and Envoy puts it in. The relay is last, where
an external provider overflows: by it Envoy asks for the provider's words (`extproc.providers.relay`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from matrixinfer.api import dataplane, networking

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.traffic.pools import Pools
    from extproc.traffic.routes import Placement
    from extproc.types import InferenceRequest
    from matrixinfer.api.networking import ModelServer


class Shared(NamedTuple):
    """What of a request is others' as well."""

    endpoints: tuple[str, ...]  # in the order in which they are tried
    headers: tuple[tuple[str, str], ...] = ()  # what Envoy is told of it
    further: Mapping[str, str] = {}  # endpoints that are not of the target itself, and of whom: "namespace/name"
    names: tuple[tuple[str, str], ...] = ()  # endpoint or mirror's cluster, and its name of the model as JSON


class Others(NamedTuple):
    """Where further targets and mirrors are looked up."""

    servers: Mapping[str, ModelServer]
    pools: Pools
    table: EndpointTable
    divided: Callable[[str], bool]  # prefill and decode of this ModelServer run in different pods
    now: float


def shared(  # noqa: PLR0913 - of one request
    placement: Placement,
    endpoints: tuple[str, ...],
    request: InferenceRequest,
    others: Others,
    *,
    alone: bool,
    provider: str = "",
) -> Shared:
    """Return who else may get a request that was placed at `endpoints`.

    `alone`: the body is for these endpoints only, as where they get a cache that another pod has computed. `provider`: TARGET of
    one that may get it when all have failed; "" for none.
    """
    handling = placement.handling
    if handling is None:
        return Shared(endpoints)
    idle = request.stream and handling.policy is not None and handling.policy.idle_timeout is not None
    said = handling.key + (dataplane.STREAM if idle else "")
    if alone:
        return Shared(endpoints, ((dataplane.HANDLING, said + dataplane.ALONE),))
    names = _copies(placement, handling, request.model, others.servers)
    listed = endpoints
    further: dict[str, str] = {}
    if placement.then and request.subset is None:
        listed, further = _listed(placement, handling, endpoints, others)
        known = dict(placement.then)
        names |= {address: json.dumps(known[key]) for address, key in further.items() if known[key] != placement.model}
    if provider and handling.relayed and request.subset is None:
        own = _own(placement, handling, others)
        if own > 1:
            listed = (*(listed if placement.then else listed[:own]), dataplane.RELAY_ENDPOINT)
            further[dataplane.RELAY_ENDPOINT] = provider
            said += dataplane.RELAYED
    return Shared(listed, ((dataplane.HANDLING, said),), further, tuple(names.items()))


def _own(placement: Placement, handling: networking.Handling, others: Others) -> int:
    """Return how often a request is tried at its own target; once means that it is tried nowhere else."""
    retry = networking.retry_of(handling.policy, others.servers.get(placement.server))
    return 1 + (networking.DEFAULT_ATTEMPTS if retry is None else retry.attempts)


def _listed(
    placement: Placement, handling: networking.Handling, endpoints: tuple[str, ...], others: Others
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the list, and those in it that are of further targets."""
    own, most = networking.tries(_own(placement, handling, others) - 1, len(handling.together) - 1)
    if most == own:
        return endpoints, {}
    queues = [(key, _in_order(key, placement, others)) for key, _ in placement.then if not others.divided(key)]
    listed = dict.fromkeys(endpoints[:own])
    further: dict[str, str] = {}

    def enter(key: str, addresses: Sequence[str]) -> None:
        for address in addresses:
            if len(listed) < most and address not in listed and address not in endpoints:
                listed[address] = None
                further[address] = key

    for key, queue in queues:
        enter(key, queue[: networking.TRIES_EACH])
    # Where there are fewer endpoints than tries, others get these: beyond the list Envoy would choose by itself.
    listed |= dict.fromkeys(endpoints[own : own + most - len(listed)])
    for key, queue in queues:
        enter(key, queue)
    return tuple(listed), further


def _copies(
    placement: Placement, handling: networking.Handling, asked: str, servers: Mapping[str, ModelServer]
) -> dict[str, str]:
    """Return the names of mirrors that know the model by another one than the body says."""
    names: dict[str, str] = {}
    if placement.adapter:
        return names  # an adapter has one name everywhere
    for mirror, _ in handling.mirrors:
        server = servers.get(f"{handling.namespace}/{mirror}")
        name = asked if server is None else server.spec.model or asked
        if name != placement.model:
            names[dataplane.mirror_name(handling.namespace, mirror)] = json.dumps(name)
    return names


def _in_order(key: str, placement: Placement, others: Others) -> list[str]:
    """Return the endpoints of a ModelServer that are ready, those with the least to do first."""
    table = others.table
    rows = others.pools.ready(key)
    if placement.adapter:
        loaded = [row for row in rows.tolist() if placement.model in table.models[row]]
        rows = np.array(loaded, dtype=np.intp) if loaded else rows
    order = np.lexsort((table.inflight[rows], table.avoid_until[rows] > others.now))
    addresses: list[str] = table.addresses[rows[order]].tolist()
    return addresses
