"""The route table: from a request's model, headers and path to the ModelServer that serves it.

Immutable, rebuilt from all routes and servers when one of them changes, indexed by the model's name. Routes of one name
are tried oldest first; in a route the first rule that fits counts; in a rule a target is drawn by weight, and the
others of the rule follow when it has no endpoint. Nothing found in one route means that the next is tried.

A model found among the base names is looked for there first; an adapter keeps its name on the way to the engine, a base
model gets the name that its ModelServer gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc import errors
from extproc.traffic.limits import rules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from extproc.types import InferenceRequest
    from matrixinfer.api import networking

_SHOWN: Final = 200  # characters of a client's model name that a message repeats
_RETRY_AFTER_S: Final = 5  # a pod becomes ready in seconds to minutes; asking more often than this brings nothing
_BELOW_ONE: Final = math.nextafter(1.0, 0.0)


class Placement(NamedTuple):
    """What routing decided."""

    route: str
    rule: str  # its name; "" if it has none
    server: str  # ModelServer "namespace/name"
    model: str  # the name that goes to the engine
    adapter: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A model that clients may ask for."""

    name: str
    created: float
    parent: str | None = None  # of an adapter: the base model of its route


@dataclass(frozen=True, slots=True)
class Route:
    """One ModelRoute in the table."""

    key: str  # "namespace/name"
    namespace: str
    created: float  # seconds since the epoch
    spec: networking.ModelRouteSpec


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes and the ModelServers that they name."""

    routes: tuple[Route, ...] = ()  # oldest first
    skipped: Mapping[str, str] = field(default_factory=dict)  # route -> why it is not served
    servers: Mapping[str, networking.ModelServer] = field(default_factory=dict)  # by "namespace/name"
    limits: Mapping[str, rules.Limits] = field(default_factory=dict)  # by route; those that have some
    _bases: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    _adapters: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)

    @classmethod
    def build(cls, routes: Iterable[networking.ModelRoute], servers: Iterable[networking.ModelServer]) -> RouteTable:
        """Return the table of these routes.

        A route with `parentRefs` asks for certain Gateways and no others. There is no Gateway here, so it is left out:
        a model must not appear at a door that its owner did not name.
        """
        taken: list[Route] = []
        skipped: dict[str, str] = {}
        for resource in routes:
            meta = resource.metadata
            key = f"{meta.namespace}/{meta.name}"
            if resource.spec.parent_refs:
                skipped[key] = "parentRefs name a Gateway, and this gateway is none: remove parentRefs to serve it here"
            else:
                taken.append(Route(key, meta.namespace, _epoch(meta.creation_timestamp), resource.spec))
        ordered = tuple(sorted(taken, key=lambda route: (route.created, route.key)))
        bases: dict[str, tuple[Route, ...]] = {}
        adapters: dict[str, tuple[Route, ...]] = {}
        for route in ordered:
            if route.spec.model_name:
                bases[route.spec.model_name] = (*bases.get(route.spec.model_name, ()), route)
            for adapter in route.spec.lora_adapters:
                adapters[adapter] = (*adapters.get(adapter, ()), route)
        named = {f"{server.metadata.namespace}/{server.metadata.name}": server for server in servers}
        limits = {
            route.key: found
            for route in ordered
            if (found := rules.of_route(route.key, route.spec.rate_limit)) is not None
        }
        return cls(ordered, skipped, named, limits, bases, adapters)

    def knows(self, model: str) -> bool:
        """Tell whether a route names `model`."""
        return model in self._bases or model in self._adapters

    def models(self) -> list[Listed]:
        """Return the models and adapters of all routes, by name; of one name the oldest."""
        found = {name: Listed(name, routes[0].created) for name, routes in self._bases.items()}
        for name, routes in self._adapters.items():
            if name not in found:
                found[name] = Listed(name, routes[0].created, routes[0].spec.model_name or None)
        return sorted(found.values(), key=lambda listed: listed.name)

    def resolve(self, request: InferenceRequest, *, draw: float, has_endpoints: Callable[[str], bool]) -> Placement:
        """Return where the request goes; `draw` in [0, 1) chooses among weights. Raises UnknownModel, NoEndpoints."""
        model = request.model
        empty: list[str] = []
        for index, is_adapter in ((self._bases, False), (self._adapters, True)):
            for route in index.get(model, ()):
                rule = route.spec.match(headers=request.headers, path=request.path, model=model)
                if rule is None:
                    continue
                for target in drawn(rule.target_models, draw):
                    key = f"{route.namespace}/{target.model_server_name or target.external_model_provider_name}"
                    server = self.servers.get(key) if target.model_server_name else None
                    if server is not None and has_endpoints(key):
                        name = model if is_adapter else server.spec.model or model
                        return Placement(route.key, rule.name, key, name, adapter=is_adapter)
                    empty.append(key if target.model_server_name else f"external {key}")
        raise self._nothing(model, empty)

    def _nothing(self, model: str, empty: list[str]) -> errors.Rejection:
        if empty:
            problems = "; ".join(self._problem(target) for target in dict.fromkeys(empty))
            return errors.NoEndpoints(problems, retry_after_s=_RETRY_AFTER_S)
        name = repr(model[:_SHOWN])
        if self.knows(model):
            return errors.UnknownModel(
                f"no rule of the routes for model {name} fits this request's headers and path", param="model"
            )
        return errors.UnknownModel(
            f"the model {name} does not exist; GET /v1/models lists what is served", param="model"
        )

    def _problem(self, target: str) -> str:
        if target.startswith("external "):
            return f"ExternalModelProvider {target.removeprefix('external ')} cannot be reached: only ModelServers are"
        if target in self.servers:
            return f"ModelServer {target} has no endpoint that is ready"
        return f"ModelServer {target} does not exist"


def drawn(targets: Sequence[networking.TargetModel], draw: float) -> Iterator[networking.TargetModel]:
    """Yield the target that `draw` chooses by weight, then the others by weight in turn; never one of weight 0."""
    if len(targets) == 1:
        yield targets[0]
        return
    left = [target for target in targets if target.weight > 0]
    while left:
        point = draw * sum(target.weight for target in left)
        chosen = len(left) - 1
        for position, target in enumerate(left):
            if point < target.weight:
                chosen = position
                break
            point -= target.weight
        target = left.pop(chosen)
        draw = min(point / target.weight, _BELOW_ONE)  # what is left of the chance decides who is next
        yield target


def _epoch(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0
