"""The route table: from a request's model, headers and path to the ModelServer or external provider that serves it.

Immutable, rebuilt from all routes and servers when one of them changes, indexed by the model's name. Routes of one name
are tried oldest first; in a route the first rule that fits counts; in a rule a target is drawn by weight, and the
others of the rule follow when it has no endpoint, and those that overflow come last. Nothing found in one route means that
the next is tried. A provider is taken for ready unless a condition of it is False.

A model found among the base names is looked for there first; an adapter keeps its name on the way to the engine, a base
model gets the name that its ModelServer gives.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc import errors
from extproc.traffic import targets
from extproc.traffic.limits import rules
from matrixinfer.api import dataplane, networking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from extproc.types import InferenceRequest

_SHOWN: Final = 200  # characters of a client's model name that a message repeats
_RETRY_AFTER_S: Final = 5  # a pod becomes ready in seconds to minutes; asking more often than this brings nothing


class Placement(NamedTuple):
    """What routing decided."""

    route: str
    rule: str  # its name; "" if it has none
    server: str  # ModelServer "namespace/name", or the provider's TARGET
    model: str  # the name that goes to the engine
    adapter: bool = False
    provider: networking.ExternalModelProvider | None = None  # None: a ModelServer
    spare: networking.ExternalModelProvider | None = None  # takes what the ModelServer's endpoints have no place for
    handling: networking.Handling | None = None  # None: as the ModelServer says
    then: tuple[tuple[str, str], ...] = ()  # further ModelServers with endpoints, in turn, and their names of the model
    relief: tuple[str, str] | None = None  # one of these that takes what the ModelServer's endpoints have no place for


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
    handlings: Mapping[int, networking.Handling] = field(default_factory=dict)  # by the rule's identity; of some rules


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All routes and the ModelServers that they name."""

    routes: tuple[Route, ...] = ()  # oldest first
    skipped: Mapping[str, str] = field(default_factory=dict)  # route -> why it is not served
    servers: Mapping[str, networking.ModelServer] = field(default_factory=dict)  # by "namespace/name"
    providers: Mapping[str, networking.ExternalModelProvider] = field(default_factory=dict)  # by "namespace/name"
    limits: Mapping[str, rules.Limits] = field(default_factory=dict)  # by route; those that have some
    handled: frozenset[str] = frozenset()  # keys of all handlings
    _bases: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    _adapters: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)

    @classmethod
    def build(
        cls,
        routes: Iterable[networking.ModelRoute],
        servers: Iterable[networking.ModelServer],
        providers: Iterable[networking.ExternalModelProvider] = (),
    ) -> RouteTable:
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
                created = _epoch(meta.creation_timestamp)
                both = zip(resource.spec.rules, resource.handlings, strict=True)
                handled = {id(rule): handling for rule, handling in both if handling is not None}
                taken.append(Route(key, meta.namespace, created, resource.spec, handled))
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
        abroad = {f"{one.metadata.namespace}/{one.metadata.name}": one for one in providers}
        keys = frozenset(handling.key for route in ordered for handling in route.handlings.values())
        return cls(ordered, skipped, named, abroad, limits, keys, bases, adapters)

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

    def resolve(
        self,
        request: InferenceRequest,
        *,
        draw: float,
        has_endpoints: Callable[[str], bool],
        tenant: str = "",
        key: str = "",
    ) -> Placement:
        """Return where the request goes; `draw` in [0, 1) chooses among weights. Raises UnknownModel, NoEndpoints.

        `tenant` and `key` are of the caller, as the gateway vouches for them.
        """
        model = request.model
        empty: list[str] = []
        for index, is_adapter in ((self._bases, False), (self._adapters, True)):
            for route in index.get(model, ()):
                rule = route.spec.match(headers=request.headers, path=request.path, model=model)
                if rule is None:
                    continue
                value = targets.value_of(rule.sticky_by, request.headers, tenant=tenant, key=key)
                turns = targets.in_turn(rule.target_models, draw, value=value, salt=route.key)
                for target in turns:
                    if target.external_model_provider_name:
                        provider = self._usable(route, target)
                        if provider is not None:
                            return outside(Placement(route.key, rule.name, "", model), provider)
                        empty.append(f"external {route.namespace}/{target.external_model_provider_name}")
                        continue
                    placed = f"{route.namespace}/{target.model_server_name}"
                    server = self.servers.get(placed)
                    if server is None or not has_endpoints(placed):
                        empty.append(placed)
                        continue
                    handling = route.handlings.get(id(rule))
                    further: tuple[tuple[str, str], ...] = ()
                    if handling is not None and handling.together:
                        others = self._further(route, turns, has_endpoints, model=model, adapter=is_adapter)
                        further = tuple((server, name) for server, name in others.items() if server != placed)
                    return Placement(
                        route.key,
                        rule.name,
                        placed,
                        model if is_adapter else server.spec.model or model,
                        adapter=is_adapter,
                        spare=self._spare(route, rule),
                        handling=handling,
                        then=further[: networking.FURTHER_TARGETS],
                        relief=self._relief(route, rule, further, placed),
                    )
        raise self._nothing(model, empty)

    def _further(
        self,
        route: Route,
        turns: Iterator[networking.TargetModel],
        has_endpoints: Callable[[str], bool],
        *,
        model: str,
        adapter: bool,
    ) -> dict[str, str]:
        """Return the ModelServers of the turns that are left and may be sent requests, with their names of the model."""
        found: dict[str, str] = {}
        for target in turns:
            key = f"{route.namespace}/{target.model_server_name}"
            server = self.servers.get(key) if target.model_server_name else None
            if server is not None and has_endpoints(key):
                found[key] = model if adapter else server.spec.model or model
        return found

    def _relief(
        self, route: Route, rule: networking.RouteRule, further: tuple[tuple[str, str], ...], placed: str
    ) -> tuple[str, str] | None:
        """Return the further ModelServer that overflows, unless the request is at one already."""
        spares = {f"{route.namespace}/{one.model_server_name}" for one in rule.target_models if one.overflow}
        if not spares or placed in spares:
            return None
        return next((one for one in further if one[0] in spares), None)

    def usable(self, name: str) -> networking.ExternalModelProvider | None:
        """Return the provider `namespace/name`, if there is one and it can be sent requests."""
        provider = self.providers.get(name)
        return provider if provider is not None and not unmet(provider) else None

    def _usable(self, route: Route, target: networking.TargetModel) -> networking.ExternalModelProvider | None:
        """Return the provider of a target, likewise."""
        return self.usable(f"{route.namespace}/{target.external_model_provider_name}")

    def _spare(self, route: Route, rule: networking.RouteRule) -> networking.ExternalModelProvider | None:
        """Return the provider that takes what a rule's ModelServers have no place for."""
        for target in rule.target_models:
            if target.overflow and target.weight and target.external_model_provider_name:
                provider = self._usable(route, target)
                if provider is not None:
                    return provider
        return None

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
            name = target.removeprefix("external ")
            provider = self.providers.get(name)
            if provider is None:
                return f"ExternalModelProvider {name} does not exist"
            return f"ExternalModelProvider {name} cannot be used: its condition {unmet(provider)} does not hold"
        if target in self.servers:
            return f"ModelServer {target} has no endpoint that is ready"
        return f"ModelServer {target} does not exist"


def unmet(provider: networking.ExternalModelProvider) -> str:
    """Return the type of a condition that keeps requests from a provider; "" if there is none."""
    conditions = provider.status.conditions if provider.status is not None else ()
    return next((one.type for one in conditions if one.status == "False"), "")


def outside(placement: Placement, provider: networking.ExternalModelProvider) -> Placement:
    """Return the placement with this provider as its target."""
    return placement._replace(server=target_of(provider), provider=provider, spare=None)


def target_of(provider: networking.ExternalModelProvider) -> str:
    """Return the TARGET that stands for a provider."""
    return dataplane.provider_name(provider.metadata.namespace, provider.metadata.name)


def to_spare(placement: Placement) -> Placement:
    """Return the placement at the provider that takes what overflows."""
    assert placement.spare is not None  # noqa: S101 - for the types: callers ask before
    return outside(placement, placement.spare)


def to_relief(placement: Placement) -> Placement:
    """Return the placement at the ModelServer that takes what overflows."""
    assert placement.relief is not None  # noqa: S101 - for the types: callers ask before
    server, model = placement.relief
    back = ((placement.server, placement.model),)
    return placement._replace(server=server, model=model, then=back, relief=None)


def _epoch(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0
