"""Checks of manifests that belong together: what one object says of another, and what two say of the same thing.

Objects that exist elsewhere are out of sight here, so most findings are warnings; a controller says the last word in the
object's conditions. An object with mistakes of its own still counts as existing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import core, kinds, workload
from matrixinfer.api.networking import AccessPolicy, ExternalModelProvider, ModelRoute, ModelServer
from matrixinfer.api.objectives import InferenceObjective
from matrixinfer.api.validation.objects import Problem, kind_of, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matrixinfer.api.kinds import Kind
    from matrixinfer.api.networking import ParentReference
    from matrixinfer.api.validation.objects import Severity
    from matrixinfer.api.validation.shape import Loc

DEFAULT_NAMESPACE: Final = "default"

Parent = tuple[str, str, str, str]  # group, kind, namespace, name


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of one manifest of a set."""

    index: int  # position in the sequence that was checked
    subject: str  # "ModelRoute default/demo", as far as the manifest says
    problem: Problem

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


@dataclass(slots=True)
class _World:
    """The objects of a set by what they are; `names` holds unsound ones, too."""

    names: dict[tuple[Kind, str, str], int] = field(default_factory=dict)
    parents: set[Parent] = field(default_factory=set)
    servers: list[tuple[int, ModelServer]] = field(default_factory=list)
    routes: list[tuple[int, ModelRoute]] = field(default_factory=list)
    policies: list[tuple[int, AccessPolicy]] = field(default_factory=list)
    providers: list[tuple[int, ExternalModelProvider]] = field(default_factory=list)
    objectives: list[tuple[int, InferenceObjective]] = field(default_factory=list)
    pods: list[core.Pod] = field(default_factory=list)


def validate_set(manifests: Sequence[object]) -> list[Finding]:
    """Check each manifest by itself and all of them together; in the order of the manifests."""
    world = _World()
    found: list[tuple[int, Problem]] = []
    for index, manifest in enumerate(manifests):
        problems = validate(manifest)
        found.extend((index, problem) for problem in problems)
        if isinstance(manifest, dict):
            found.extend(_enter(world, index, manifest, sound=not problems))
    found.extend(_unselected(world))
    found.extend(_dangling(world))
    found.extend(_shadowed(world))
    found.extend(_unknown(world))
    found.extend(_without_effect(world))
    found.extend(_for_nobody(world))
    return [
        Finding(index, _subject(manifests[index]), problem)
        for index, problem in sorted(found, key=lambda pair: pair[0])
    ]


def _enter(world: _World, index: int, manifest: dict[str, Any], *, sound: bool) -> Iterator[tuple[int, Problem]]:
    """Add a manifest to the world; a name that is taken is a problem."""
    kind = kind_of(manifest)
    namespace, name = _name(manifest)
    if not name:
        return
    if kind is None:
        group = str(manifest.get("apiVersion")).rpartition("/")[0]
        world.parents.add((group, str(manifest.get("kind")), namespace, name))
        return
    key = (kind, namespace if kind.namespaced else "", name)
    if key in world.names:
        yield (
            index,
            _problem(("metadata", "name"), f"{_subject(manifest)} is defined before: remove or rename one", "error"),
        )
        return
    world.names[key] = index
    if not sound:
        return
    _take(world, index, kind, manifest | {"metadata": manifest["metadata"] | {"namespace": namespace}})


def _take(world: _World, index: int, kind: Kind, manifest: dict[str, Any]) -> None:
    """Add a sound manifest, with its namespace, by what it is."""
    if kind == kinds.MODEL_SERVER:
        world.servers.append((index, ModelServer.model_validate(manifest)))
    elif kind == kinds.MODEL_ROUTE:
        world.routes.append((index, ModelRoute.model_validate(manifest)))
    elif kind == kinds.ACCESS_POLICY:
        world.policies.append((index, AccessPolicy.model_validate(manifest)))
    elif kind == kinds.EXTERNAL_MODEL_PROVIDER:
        world.providers.append((index, ExternalModelProvider.model_validate(manifest)))
    elif kind in (kinds.INFERENCE_OBJECTIVE, kinds.OLD_INFERENCE_OBJECTIVE):
        world.objectives.append((index, InferenceObjective.model_validate(manifest)))
    elif kind == kinds.POD:
        world.pods.append(core.Pod.model_validate(manifest))
    elif kind == kinds.MODEL_INFER:
        world.pods.extend(workload.pods_of(workload.ModelInfer.model_validate(manifest)))


def _unselected(world: _World) -> Iterator[tuple[int, Problem]]:
    for index, server in world.servers:
        if not any(server.selects(pod) for pod in world.pods):
            yield (
                index,
                _problem(
                    ("spec", "workloadSelector", "matchLabels"),
                    f"no Pod here in namespace {server.metadata.namespace} carries these labels",
                ),
            )


def _dangling(world: _World) -> Iterator[tuple[int, Problem]]:
    for index, route in world.routes:
        namespace = route.metadata.namespace
        for i, rule in enumerate(route.spec.rules):
            for j, target in enumerate(rule.target_models):
                loc: Loc = ("spec", "rules", i, "targetModels", j)
                server, provider = target.model_server_name, target.external_model_provider_name
                if server is not None and (kinds.MODEL_SERVER, namespace, server) not in world.names:
                    yield index, _problem((*loc, "modelServerName"), _no_server(world, namespace, server), "error")
                if provider is not None and (kinds.EXTERNAL_MODEL_PROVIDER, namespace, provider) not in world.names:
                    text = f"no ExternalModelProvider {provider!r} in namespace {namespace}"
                    yield index, _problem((*loc, "externalModelProviderName"), text, "error")
            for j, mirror in enumerate(rule.mirrors):
                server = mirror.model_server_name
                if (kinds.MODEL_SERVER, namespace, server) not in world.names:
                    at = ("spec", "rules", i, "mirrors", j, "modelServerName")
                    yield index, _problem(at, _no_server(world, namespace, server), "error")
        for i, parent in enumerate(route.spec.parent_refs):
            if _parent(parent, namespace) not in world.parents:
                named = f"{parent.kind} {parent.namespace or namespace}/{parent.name}"
                yield (
                    index,
                    _problem(("spec", "parentRefs", i), f"no {named} here: only that Gateway would serve the route"),
                )


def _without_effect(world: _World) -> Iterator[tuple[int, Problem]]:
    """Say where a rule asks for something that nothing here can give."""
    for index, route in world.routes:
        for i, rule in enumerate(route.spec.rules):
            loc: Loc = ("spec", "rules", i, "stickyBy")
            if rule.sticky_by is None:
                continue
            if sum(target.weight > 0 and not target.overflow for target in rule.target_models) == 1:
                yield index, _problem(loc, "has no effect: the rule has one target to choose from")
            elif rule.sticky_by.caller is not None and not world.policies:
                yield index, _problem(loc, "no AccessPolicy here says who asks: requests are drawn at random")


def _unknown(world: _World) -> Iterator[tuple[int, Problem]]:
    """Say which Secrets and routes that policies and providers name are not here."""
    for index, provider in world.providers:
        namespace = provider.metadata.namespace
        for path, entry in provider.spec.secrets():
            if (kinds.SECRET, namespace, entry.name) not in world.names:
                text = f"no Secret {entry.name!r} here in namespace {namespace}: the provider gets no requests"
                yield index, _problem(("spec", *path, "name"), text)
    for index, policy in world.policies:
        namespace = policy.metadata.namespace
        for i, ref in enumerate(policy.spec.api_keys.secret_refs if policy.spec.api_keys is not None else ()):
            if (kinds.SECRET, namespace, ref.name) not in world.names:
                text = f"no Secret {ref.name!r} here in namespace {namespace}: its keys let nobody in"
                yield index, _problem(("spec", "apiKeys", "secretRefs", i, "name"), text)
        for i, target in enumerate(policy.spec.target_refs):
            if target.kind == "ModelRoute" and (kinds.MODEL_ROUTE, namespace, target.name or "") not in world.names:
                text = f"no ModelRoute {target.name!r} here in namespace {namespace}: nothing of it is protected"
                yield index, _problem(("spec", "targetRefs", i, "name"), text)


def _for_nobody(world: _World) -> Iterator[tuple[int, Problem]]:
    """Say where an objective names pools that are not here: requests that name it there go as if they had not."""
    for index, objective in world.objectives:
        namespace, spec = objective.metadata.namespace, objective.spec
        for loc, reference in spec.references():
            name = reference.server
            if name is None:
                text = (
                    f"group {reference.group or ''!r}, kind {reference.kind} is no pool here: write group "
                    f"{kinds.NETWORKING_GROUP} and kind ModelServer, or leave both out"
                )
                yield index, _problem(("spec", *loc), text)
            elif (kinds.MODEL_SERVER, namespace, name) not in world.names:
                yield index, _problem(("spec", *loc, "name"), _no_server(world, namespace, name, "an objective"))
        selector = spec.pool_selector
        if selector is not None and not any(
            server.metadata.namespace == namespace and selector.selects(server.metadata.labels)
            for _, server in world.servers
        ):
            text = f"no ModelServer here in namespace {namespace} is selected"
            yield index, _problem(("spec", "poolSelector"), text)


def _no_server(world: _World, namespace: str, name: str, who: str = "a route") -> str:
    servers = [(place, known) for kind, place, known in world.names if kind == kinds.MODEL_SERVER]
    elsewhere = sorted(other for other, known in servers if known == name)
    if elsewhere:
        return (
            f"no ModelServer {name!r} in namespace {namespace}; there is one in {elsewhere[0]}, but {who} reaches only "
            "its own namespace"
        )
    similar = get_close_matches(name, [known for other, known in servers if other == namespace], n=1)
    return f"no ModelServer {name!r} in namespace {namespace}" + (f"; did you mean {similar[0]}?" if similar else "")


def _shadowed(world: _World) -> Iterator[tuple[int, Problem]]:
    """Say where two routes are for the same name, and share a gateway."""
    taken: dict[str, list[tuple[bool, ModelRoute]]] = {}
    for index, route, loc, name in sorted(_served(world.routes), key=_precedence):
        adapter = _is_adapter(loc)
        others = taken.setdefault(name, [])
        for base, other in others:
            if other is not route and _meet(route, other):
                rule = (
                    "a modelName goes before adapters of the same name"
                    if base and adapter
                    else "of two routes that match a request the older one decides, then the first by namespace and name"
                )
                owner = f"ModelRoute {other.metadata.namespace}/{other.metadata.name}"
                yield index, _problem(loc, f"{name!r} is served by {owner}, too: {rule}")
                break
        others.append((not adapter, route))


def _served(routes: Sequence[tuple[int, ModelRoute]]) -> Iterator[tuple[int, ModelRoute, Loc, str]]:
    """Give each name that a route serves, with the field that says so."""
    for index, route in routes:
        if route.spec.model_name:
            yield index, route, ("spec", "modelName"), route.spec.model_name
        for i, adapter in enumerate(route.spec.lora_adapters):
            yield index, route, ("spec", "loraAdapters", i), adapter


def _precedence(served: tuple[int, ModelRoute, Loc, str]) -> tuple[bool, str, str, str]:
    """Sort names as requests find them: base models before adapters, then by age."""
    _, route, loc, _ = served
    metadata = route.metadata
    made = metadata.creation_timestamp or "9"  # without a date: made now
    return _is_adapter(loc), made, metadata.namespace, metadata.name


def _is_adapter(loc: Loc) -> bool:
    return "loraAdapters" in loc


def _meet(one: ModelRoute, other: ModelRoute) -> bool:
    """Tell whether a gateway may serve both routes; a route without parents is served by its namespace's."""
    if not one.spec.parent_refs or not other.spec.parent_refs:
        return True
    mine, theirs = (
        {_parent(parent, route.metadata.namespace) for parent in route.spec.parent_refs} for route in (one, other)
    )
    return not mine.isdisjoint(theirs)


def _parent(reference: ParentReference, namespace: str) -> Parent:
    return reference.group, reference.kind, reference.namespace or namespace, reference.name


def _name(manifest: dict[str, Any]) -> tuple[str, str]:
    """Give namespace and name; the name is "" if there is none."""
    metadata = manifest.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return "", ""
    namespace = metadata.get("namespace")
    return namespace if isinstance(namespace, str) and namespace else DEFAULT_NAMESPACE, metadata["name"]


def _subject(manifest: object) -> str:
    if not isinstance(manifest, dict):
        return "document"
    kind = manifest.get("kind") if isinstance(manifest.get("kind"), str) else "object"
    known = kind_of(manifest)
    namespace, name = _name(manifest)
    if not name:
        return f"{kind} without a name"
    return f"{kind} {namespace}/{name}" if known is None or known.namespaced else f"{kind} {name}"


def _problem(loc: Loc, message: str, severity: Severity = "warning") -> Problem:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    return Problem(path, message, severity, loc)
