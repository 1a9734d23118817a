"""Manifests to IR. Pure. An object that cannot be used is left out, with the reason; all others are served.

The same reading of routes as the picker's: without a Gateway, routes that name one in `parentRefs` are left out; routes
of one model are tried oldest first; base names before adapters.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from controllers import ir
from controllers.gateway import access, overlaps
from controllers.gateway import providers as external
from matrixinfer.api import core, dataplane, networking, validation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matrixinfer.api.meta import Manifest

Name = tuple[str, str]  # namespace, name
View = TypeVar(
    "View",
    core.Pod,
    networking.ModelServer,
    networking.ModelRoute,
    networking.AccessPolicy,
    networking.ExternalModelProvider,
)

SHORTEST_S, LONGEST_S = 0.001, 86_400.0  # spans that a proxy's timers can keep; beyond them is as good as at them


@dataclass(frozen=True, slots=True)
class Server:
    """One ModelServer and the pods that it selects."""

    resource: networking.ModelServer
    pods: int  # that the selector matches
    endpoints: tuple[ir.Endpoint, ...]  # those with an address
    ready: tuple[ir.Endpoint, ...]  # those of them that may get requests
    answering: tuple[ir.Endpoint, ...]  # those of them that Envoy may send requests to: no pod that only prefills
    bad_ports: tuple[str, ...]  # pods whose port annotation is no port


@dataclass(frozen=True, slots=True)
class Translation:
    """What Envoy has to do, and what was found on the way."""

    config: ir.IR
    servers: Mapping[Name, Server] = field(default_factory=dict)
    routes: Mapping[Name, networking.ModelRoute] = field(default_factory=dict)
    access: access.Policies = field(default_factory=access.Policies)
    providers: external.Providers = field(default_factory=external.Providers)
    invalid: Mapping[tuple[str, str, str], str] = field(default_factory=dict)  # kind, namespace, name -> what to change
    claimed: Mapping[Name, tuple[str, ...]] = field(default_factory=dict)  # by route: its names that are others' first
    shared: Mapping[Name, tuple[str, ...]] = field(default_factory=dict)  # by ModelServer: who else selects its pods


class Views:
    """Typed views of manifests. Remembers those of the last round, so that only what changed is parsed again."""

    def __init__(self) -> None:
        self._last: dict[tuple[type, str, str, str], object] = {}
        self._seen: dict[tuple[type, str, str, str], object] = {}

    def of(self, kind: type[View], manifest: Manifest) -> View:
        """Parse, or recall. Raises ValidationError."""
        meta = manifest["metadata"]
        key = (kind, meta.get("namespace", ""), meta["name"], meta.get("resourceVersion", ""))
        found = self._last.get(key) if key[3] else None
        view = found if isinstance(found, kind) else kind.model_validate(manifest)
        self._seen[key] = view
        return view

    def end_round(self) -> None:
        """Forget what was not asked for since the last call."""
        self._last, self._seen = self._seen, {}


def translate(  # noqa: PLR0913 - one for each kind that is read
    gateway: ir.Gateway,
    *,
    servers: Iterable[Manifest],
    routes: Iterable[Manifest],
    pods: Iterable[Manifest],
    policies: Sequence[Manifest] = (),
    providers: Iterable[Manifest] = (),
    secrets: Iterable[Manifest] = (),
    views: Views | None = None,
) -> Translation:
    """Make of these objects what Envoy has to do."""
    views = views or Views()
    invalid: dict[tuple[str, str, str], str] = {}
    by_namespace: defaultdict[str, list[core.Pod]] = defaultdict(list)
    for pod in _parsed(views, core.Pod, pods, invalid):
        by_namespace[pod.metadata.namespace].append(pod)
    found = {
        _name(server): _server(server, by_namespace[server.metadata.namespace])
        for server in _parsed(views, networking.ModelServer, servers, invalid)
    }
    taken = {_name(route): route for route in _parsed(views, networking.ModelRoute, routes, invalid)}
    known = list(_parsed(views, networking.AccessPolicy, policies, invalid))
    entries = {_of(one): one for one in secrets}
    outside = external.translate(_parsed(views, networking.ExternalModelProvider, providers, invalid), entries)
    views.end_round()
    served = [route for route in taken.values() if not route.spec.parent_refs]
    order = _order(served)
    config = ir.IR(
        gateway=gateway,
        backends=tuple(_backend(server) for _, server in sorted(found.items())),
        providers=outside.backends,
        models=_models(order, found),
        handlings=_handlings(served, found),
        limited=any(route.spec.rate_limit is not None for route in taken.values()),
    )
    guarded = access.translate(
        known,
        broken=[one for one in policies if ("AccessPolicy", *_of(one)) in invalid],
        secrets=entries.values(),
        routes=taken,
        served=(model.name for model in config.models),
    )
    return Translation(
        replace(config, access=guarded.access),
        found,
        taken,
        guarded,
        outside,
        invalid,
        claimed=overlaps.claims({model: [_name(route) for route in claimants] for model, claimants in order.items()}),
        shared=overlaps.shared((name, server.endpoints) for name, server in found.items()),
    )


def _parsed(
    views: Views, kind: type[View], manifests: Iterable[Manifest], invalid: dict[tuple[str, str, str], str]
) -> Iterable[View]:
    for manifest in manifests:
        try:
            yield views.of(kind, manifest)
        except ValidationError as error:
            meta = manifest["metadata"]
            problems = [str(problem) for problem in validation.validate(manifest) if problem.severity == "error"]
            invalid[kind.__name__, meta.get("namespace", ""), meta["name"]] = "; ".join(problems) or str(error)


def _of(manifest: Manifest) -> Name:
    return manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _name(view: networking.ModelServer | networking.ModelRoute) -> Name:
    return view.metadata.namespace, view.metadata.name


def _server(server: networking.ModelServer, pods: list[core.Pod]) -> Server:
    matched = [pod for pod in pods if server.selects(pod)]
    endpoints: dict[ir.Endpoint, bool] = {}
    answers: set[ir.Endpoint] = set()
    bad_ports: list[str] = []
    for pod in matched:
        text = pod.metadata.annotations.get(dataplane.PORT_ANNOTATION)
        port = server.spec.workload_port.port if text is None else networking.port_number(text)
        if port is None:
            bad_ports.append(pod.metadata.name)
        elif _is_address(pod.status.pod_ip):
            endpoint = ir.Endpoint(pod.status.pod_ip, port)
            ready = pod.ready and not pod.terminating
            endpoints[endpoint] = ready or endpoints.get(endpoint, False)
            if server.answers(pod):
                answers.add(endpoint)
    return Server(
        resource=server,
        pods=len(matched),
        endpoints=tuple(sorted(endpoints)),
        ready=tuple(sorted(endpoint for endpoint, ready in endpoints.items() if ready)),
        answering=tuple(sorted(endpoint for endpoint, ready in endpoints.items() if ready and endpoint in answers)),
        bad_ports=tuple(sorted(bad_ports)),
    )


def _backend(server: Server) -> ir.Backend:
    spec = server.resource.spec
    policy = spec.traffic_policy or networking.TrafficPolicy()
    timeout = policy.timeout
    return ir.Backend(
        namespace=server.resource.metadata.namespace,
        name=server.resource.metadata.name,
        endpoints=server.answering,
        timeout_s=_bounded(timeout.seconds) if timeout is not None else None,
        retry=_retry(policy.retry) or ir.Retry(),
        tls=spec.workload_port.protocol == "https",
    )


def _retry(retry: networking.Retry | None) -> ir.Retry | None:
    if retry is None:
        return None
    return ir.Retry(retry.attempts, _bounded(retry.retry_interval.seconds), retry.retry_on)


def _policy(policy: networking.RouteTrafficPolicy | None) -> ir.Policy:
    if policy is None:
        return ir.Policy()
    timeout, idle = policy.timeout, policy.idle_timeout
    return ir.Policy(
        _bounded(timeout.seconds) if timeout is not None else None,
        _bounded(idle.seconds) if idle is not None else None,
        _retry(policy.retry),
    )


def _handlings(routes: Iterable[networking.ModelRoute], servers: Mapping[Name, Server]) -> tuple[ir.Handling, ...]:
    """Give what rules ask for beyond their targets, each once; ModelServers that do not exist are left out."""
    found: dict[str, ir.Handling] = {}
    for route in routes:
        namespace = route.metadata.namespace
        for rule, asked in zip(route.spec.rules, route.handlings, strict=True):
            if asked is None:
                continue
            named = {one.model_server_name for one in rule.target_models if one.model_server_name and one.weight}
            targets = {name for name in named if (namespace, name) in servers}
            together = tuple(name for name in asked.together if name in targets)
            before = found.get(asked.key)
            found[asked.key] = ir.Handling(
                asked.key,
                namespace,
                tuple(sorted(targets | set(before.targets if before is not None else ()))),
                together if len(together) > 1 else (),
                tuple(ir.Mirror(name, percent) for name, percent in asked.mirrors if (namespace, name) in servers),
                _policy(asked.policy),
                relayed=asked.relayed,
            )
    return tuple(found[key] for key in sorted(found))


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _order(routes: list[networking.ModelRoute]) -> dict[str, list[networking.ModelRoute]]:
    """Give the routes of each model name in the order in which requests try them."""
    routes.sort(key=lambda route: (route.metadata.creation_timestamp, *_name(route)))
    bases: defaultdict[str, list[networking.ModelRoute]] = defaultdict(list)
    adapters: defaultdict[str, list[networking.ModelRoute]] = defaultdict(list)
    for route in routes:
        if route.spec.model_name:
            bases[route.spec.model_name].append(route)
        for adapter in route.spec.lora_adapters:
            adapters[adapter].append(route)
    return {name: [*bases.get(name, ()), *adapters.get(name, ())] for name in sorted(bases.keys() | adapters.keys())}


def _models(order: Mapping[str, list[networking.ModelRoute]], servers: Mapping[Name, Server]) -> tuple[ir.Model, ...]:
    return tuple(
        ir.Model(
            name,
            tuple(
                found
                for route in routes
                for rule in route.spec.rules
                if (found := _rule(name, rule, route, servers)) is not None
            ),
            outside=any(
                target.external_model_provider_name
                for route in routes
                for rule in route.spec.rules
                for target in rule.target_models
            ),
        )
        for name, routes in order.items()
    )


def _rule(
    model: str, rule: networking.RouteRule, route: networking.ModelRoute, servers: Mapping[Name, Server]
) -> ir.Rule | None:
    """Translate one rule; None if no request for `model` can go by it."""
    namespace = route.metadata.namespace
    match = rule.model_match
    if match is not None and match.body is not None and match.body.model not in (None, model):
        return None
    named = [
        (target.overflow, ir.Share(namespace, target.model_server_name, target.weight))
        for target in rule.target_models
        if target.model_server_name and target.weight and (namespace, target.model_server_name) in servers
    ]
    shares = [share for overflow, share in named if not overflow] or [share for _, share in named]
    # Targets without endpoints stand back for those that have some.
    ready = [(overflow, share) for overflow, share in named if servers[share.namespace, share.name].ready]
    alive = [share for overflow, share in ready if not overflow] or [share for _, share in ready]
    if not shares:
        return None
    headers = match.headers if match is not None else {}
    uri = match.uri if match is not None else None
    return ir.Rule(
        shares=tuple(alive or shares),
        headers=tuple(
            (name.lower(), text) for name, one in sorted(headers.items()) if (text := _text(one)) is not None
        ),
        path=_text(uri) if uri is not None else None,
        policy=_policy(route.spec.traffic_policy),
    )


def _text(match: networking.StringMatch) -> ir.TextMatch | None:
    """Translate one condition; None if it holds for everything."""
    if match.exact is not None:
        return ir.TextMatch(ir.Match.EXACT, match.exact)
    if match.prefix is not None:
        return ir.TextMatch(ir.Match.PREFIX, match.prefix)
    if match.regex is not None:
        return ir.TextMatch(ir.Match.REGEX, match.regex)
    return None
