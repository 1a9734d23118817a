"""Candidates: where a request may go, which endpoints there may take it, and what each knows of its prompt.

Reads the world, the routes and the gate; decides nothing between endpoints, which is scheduling's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np

from extproc import errors
from extproc.kvcache.exact import homeless
from extproc.providers.outward import knows
from extproc.scheduling.framework import Cycle
from extproc.traffic import failover
from extproc.traffic.failover import Shared
from extproc.traffic.flow.gate import Gate
from extproc.traffic.routes import RouteTable, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from extproc.kvcache.exact import ExactIndex
    from extproc.kvcache.index import PrefixIndex
    from extproc.prefilling.story import Prefilling
    from extproc.scheduling.disaggregation import Disaggregation, Roles
    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Draw
    from extproc.scheduling.scheduler import Result
    from extproc.traffic.ledger import Ledger
    from extproc.traffic.pools import Pools
    from extproc.traffic.routes import Placement
    from extproc.types import HttpRequest, InferenceRequest, Prefix

_FALLBACKS: Final = 4  # endpoints that a request may be tried at, as the built-in picker has it


@dataclass(frozen=True, slots=True)
class World:
    """What the picker knows of endpoints; others write it."""

    table: EndpointTable
    pools: Pools
    ledger: Ledger
    index: PrefixIndex  # learned from decisions
    exact: ExactIndex | None = None  # what engines tell; None: nobody listens


class Candidates:
    """Finds candidates, by the routes and the disaggregation that were set last."""

    def __init__(self, world: World, prefilling: Prefilling, *, clock: Callable[[], float], draw: Draw) -> None:
        self.routes = RouteTable()
        self.disaggregation: Disaggregation | None = None
        self.relays = False  # the gateway is our Envoy, which asks again for requests that their endpoints have failed
        self.gate = Gate(world.table, self._stages, clock)
        self._world = world
        self._prefilling = prefilling
        self._clock = clock
        self._draw = draw

    def placement(self, request: InferenceRequest, http: HttpRequest) -> Placement:
        """Return where the request goes by the routes. Raises UnknownModel, NoEndpoints."""
        if request.subset is None:
            has_endpoints = self._serves
        else:
            allowed, pools = frozenset(request.subset), self._world.pools

            def has_endpoints(server: str) -> bool:
                return len(self._within(pools.ready(server), allowed)) > 0

        resolve = partial(self.routes.resolve, request, draw=self._draw.random(), tenant=http.tenant, key=http.key)
        try:
            return resolve(has_endpoints=has_endpoints)
        except errors.NoEndpoints:
            rules = self.gate.rules
            if rules is None or not rules.no_endpoint_ttl_s or request.subset is not None:
                raise
            return resolve(has_endpoints=lambda _server: True)  # it waits for one

    def still(self, placement: Placement) -> Placement:
        """Return the placement of a request that has waited, without a handling that no route has any more: nor has Envoy."""
        handling = placement.handling
        if handling is None or handling.key in self.routes.handled:
            return placement
        return placement._replace(handling=None, then=())

    def roles(self, server: str) -> Roles | None:
        """Return who prefills and who decodes at a ModelServer; None if every endpoint does both."""
        return self._prefilling.roles(server, self.routes.servers.get(server), self.disaggregation)

    def rows(self, request: InferenceRequest, placement: Placement) -> NDArray[np.intp]:
        """Rows of the target's endpoints that are ready, in the gateway's subset, and have the adapter if some do."""
        rows = self._able(request, placement)
        if self.gate.rules is None:
            return rows
        divided = self.roles(placement.server) is not None
        return rows if divided else self.gate.narrowed(rows, self._clock())

    def cycle(self, request: InferenceRequest, placement: Placement, prefix: Prefix) -> Cycle:
        """Return all that scoring the candidates needs, as it is now."""
        rows = self.rows(request, placement)
        index, exact, chain = self._world.index, self._world.exact, prefix.hashes
        weighted = cached = home = None
        if exact is None or not prefix.exact:
            matched = index.match(chain, rows)
        else:
            learned = None if exact.covers(rows) else index.match(chain, rows)
            words = chain if prefix.words is None else prefix.words
            matched, weighted, cached = exact.held(words, rows, tokens=prefix.tokens, learned=learned)
            if homeless(matched, len(chain)):
                home = index.match(chain, rows) if learned is None else learned
        return Cycle(
            request=request,
            table=self._world.table,
            rows=rows,
            matched=matched,
            weighted=weighted,
            cached_tokens=cached,
            home=home,
            blocks=len(chain),
            now=self._clock(),
            draw=self._draw,
            trunk=index.trunk(chain),
            engine_model=placement.model,
        )

    def known(self, request: InferenceRequest, placement: Placement, prefix: Prefix) -> int:
        """Return how many tokens of a prompt the endpoint has that knows it best, of those with a place."""
        matched = self.cycle(request, placement, prefix).matched
        return int(matched.max()) * prefix.block_tokens if len(matched) else 0

    def with_fallback(self, result: Result, request: InferenceRequest, placement: Placement) -> Result:
        """Add endpoints without a place behind the others, for a request whose first ones fail it."""
        missing = _FALLBACKS - len(result.addresses)
        if missing <= 0:
            return result
        table = self._world.table
        left = [row for row in self._able(request, placement).tolist() if row not in result.rows]
        left.sort(key=lambda row: (table.avoid_until[row], table.inflight[row]))
        more = tuple(table.address(row) for row in left[:missing])
        return result._replace(addresses=result.addresses + more) if more else result

    def shared(self, request: InferenceRequest, placement: Placement, result: Result, *, alone: bool) -> Shared:
        """Say who else may get the request: further targets if its own fails it, a provider after them, and mirrors."""
        if placement.handling is None:
            return Shared(result.addresses)
        world = self._world

        def divided(server: str) -> bool:
            return self.roles(server) is not None

        others = failover.Others(self.routes.servers, world.pools, world.table, divided, self._clock())
        spare = placement.spare
        provider = target_of(spare) if spare is not None and self.relays and knows(request, spare) else ""
        return failover.shared(placement, result.addresses, request, others, alone=alone, provider=provider)

    def _stages(self, server: str) -> tuple[NDArray[np.intp], ...]:
        """Return the endpoints that a request needs a place at: one of each."""
        roles = self.roles(server)
        if roles is None:
            return (self._world.pools.ready(server),)
        return (roles.prefill, roles.decode) if len(roles.prefill) else (roles.decode,)

    def _serves(self, server: str) -> bool:
        """Tell whether the ModelServer has an endpoint that may answer."""
        if not self._world.pools.has_endpoints(server):
            return False
        roles = self.roles(server)
        return roles is None or len(roles.decode) > 0

    def _able(self, request: InferenceRequest, placement: Placement) -> NDArray[np.intp]:
        rows = self._world.pools.ready(placement.server)
        if request.subset is not None:
            rows = self._within(rows, frozenset(request.subset))
        if placement.adapter:
            models = self._world.table.models
            loaded = [row for row in rows.tolist() if placement.model in models[row]]
            if loaded:
                return np.array(loaded, dtype=np.intp)
        return rows

    def _within(self, rows: NDArray[np.intp], allowed: frozenset[str]) -> NDArray[np.intp]:
        address = self._world.table.address
        return np.array([row for row in rows.tolist() if address(row) in allowed], dtype=np.intp)
