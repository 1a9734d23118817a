"""Conditions of ModelServers and ModelRoutes: what holds, and where it does not, what to change. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from matrixinfer.api import networking

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controllers import ir
    from controllers.gateway.translate import Name, Server, Translation
    from matrixinfer.api.meta import Manifest

_LONGEST: Final = 4096  # characters of a message; the API allows eight times as many, and nobody reads them


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition before it has a time."""

    type: str
    holds: bool | None  # None: not known yet
    reason: str
    message: str

    @property
    def status(self) -> Literal["True", "False", "Unknown"]:
        """The word on the wire."""
        return "Unknown" if self.holds is None else "True" if self.holds else "False"


def of_server(name: Name, made: Translation, delivery: ir.Delivery) -> tuple[dict[str, Any], list[Finding]]:
    """Status fields and conditions of a ModelServer."""
    problem = made.invalid.get(("ModelServer", *name))
    if problem is not None:
        return {"endpoints": 0, "readyEndpoints": 0}, _rejected("Invalid", problem)
    server = made.servers[name]
    counts = {"endpoints": len(server.endpoints), "readyEndpoints": len(server.ready)}
    found = [
        Finding(networking.ACCEPTED, True, "Accepted", "The ModelServer is valid."),
        _pods(server, made.shared.get(name, ())),
        _programmed(made.config, delivery, backends=frozenset((name,))),
        _ready(len(server.ready), "A pod of this ModelServer is ready.", "No pod of this ModelServer is ready."),
    ]
    return counts, found


def of_route(name: Name, made: Translation, delivery: ir.Delivery) -> tuple[dict[str, Any], list[Finding]]:
    """Status fields and conditions of a ModelRoute."""
    problem = made.invalid.get(("ModelRoute", *name))
    if problem is not None:
        return {}, _rejected("Invalid", problem)
    route = made.routes[name]
    if route.spec.parent_refs:
        why = "parentRefs name a Gateway, and there is none here: remove parentRefs to have the route served"
        return {}, _rejected("NoMatchingParent", why)
    providers = {
        (name[0], target.external_model_provider_name)
        for rule in route.spec.rules
        for target in rule.target_models
        if target.external_model_provider_name
    }
    names = {target.model_server_name for rule in route.spec.rules for target in rule.target_models}
    targets = [(name[0], one) for one in sorted(one for one in names if one)]
    mirrors = {(name[0], mirror.model_server_name) for rule in route.spec.rules for mirror in rule.mirrors}
    models = frozenset((*([route.spec.model_name] if route.spec.model_name else []), *route.spec.lora_adapters))
    ready = sum(len(made.servers[target].ready) for target in targets if target in made.servers)
    ready += sum((one.namespace, one.name) in providers for one in made.providers.backends)
    found = [
        _accepted(made.claimed.get(name, ())),
        _targets(
            route,
            sorted({*targets, *mirrors} - made.servers.keys()),
            sorted(providers - made.providers.resources.keys()),
        ),
        _programmed(made.config, delivery, backends=frozenset(targets), models=models, providers=frozenset(providers)),
        _ready(ready, "A target can be reached.", "No target has a ready pod."),
    ]
    return {}, found


def of_policy(name: Name, made: Translation, delivery: ir.Delivery) -> tuple[dict[str, Any], list[Finding]]:
    """Status fields and conditions of an AccessPolicy."""
    closed = "Until then nobody is let in to what it protects."
    problem = made.invalid.get(("AccessPolicy", *name))
    if problem is not None:
        return {}, [Finding(networking.ACCEPTED, False, "Invalid", f"{problem}. {closed}")]
    conflict = made.access.conflicts.get(name)
    missing = made.access.missing.get(name)
    return {}, [
        Finding(networking.ACCEPTED, False, "Conflicted", f"An older policy contradicts: {conflict}. {closed}")
        if conflict is not None
        else Finding(networking.ACCEPTED, True, "Accepted", "The AccessPolicy is valid."),
        Finding(networking.RESOLVED_REFS, False, "NotFound", f"{missing}.")
        if missing is not None
        else Finding(networking.RESOLVED_REFS, True, "ResolvedRefs", "Everything that it names exists."),
        _guarded(made.config, delivery),
    ]


def of_provider(name: Name, made: Translation, delivery: ir.Delivery) -> tuple[dict[str, Any], list[Finding]]:
    """Status fields and conditions of an ExternalModelProvider."""
    problem = made.invalid.get(("ExternalModelProvider", *name))
    if problem is not None:
        return {}, _rejected("Invalid", problem)
    accepted = Finding(networking.ACCEPTED, True, "Accepted", "The ExternalModelProvider is valid.")
    missing = made.providers.missing.get(name)
    if missing is not None:
        why = "No request is sent to it without its Secrets; see ResolvedRefs."
        return {}, [
            accepted,
            Finding(networking.RESOLVED_REFS, False, "SecretNotUsable", f"{missing}."),
            Finding(networking.PROGRAMMED, False, "NotResolved", why),
            Finding(networking.READY, False, "NotResolved", why),
        ]
    return {}, [
        accepted,
        Finding(networking.RESOLVED_REFS, True, "ResolvedRefs", "The Secrets that it names can be used."),
        _programmed(made.config, delivery, backends=frozenset(), providers=frozenset((name,))),
        Finding(networking.READY, True, "Ready", "Requests can be sent to it."),
    ]


def _guarded(config: ir.IR, delivery: ir.Delivery) -> Finding:
    """Say whether Envoy has what all policies come to."""
    if delivery.config is None or delivery.config.access != config.access:
        return Finding(networking.PROGRAMMED, None, "Pending", "Envoy has not answered yet.")
    for refusal in delivery.refusals:
        if refusal.backends is None and refusal.models is None:
            why = f"Envoy refused it and goes on with what it had: {refusal.message}"
            return Finding(networking.PROGRAMMED, False, "Refused", why)
    if not delivery.envoys:
        return Finding(networking.PROGRAMMED, None, "NoEnvoy", "No Envoy is connected.")
    if delivery.settled:
        return Finding(networking.PROGRAMMED, True, "Programmed", "Envoy has taken it.")
    return Finding(networking.PROGRAMMED, None, "Pending", "Envoy has not answered yet.")


def written(
    manifest: Manifest, fields: Mapping[str, Any], findings: Iterable[Finding], now: str
) -> dict[str, Any] | None:
    """Give the status to write; None if it stands already. A condition's time moves with its status only."""
    generation = manifest["metadata"].get("generation", 0)
    old = manifest.get("status") or {}
    before = {condition["type"]: condition for condition in old.get("conditions", ())}
    conditions = []
    for finding in findings:
        last = before.get(finding.type, {})
        since = last.get("lastTransitionTime") if last.get("status") == finding.status else None
        conditions.append(
            {
                "type": finding.type,
                "status": finding.status,
                "reason": finding.reason,
                "message": _cut(finding.message),
                "lastTransitionTime": since or now,
                "observedGeneration": generation,
            }
        )
    status = {"observedGeneration": generation, **fields, "conditions": conditions}
    ours = [before.get(condition["type"]) for condition in conditions]  # others may have conditions of their own beside
    return None if {key: old.get(key) for key in status} | {"conditions": ours} == status else status


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _rejected(reason: str, message: str) -> list[Finding]:
    not_in_use = "The object is not in use; see Accepted."
    return [
        Finding(networking.ACCEPTED, False, reason, message),
        Finding(networking.RESOLVED_REFS, None, "NotAccepted", not_in_use),
        Finding(networking.PROGRAMMED, False, "NotAccepted", not_in_use),
        Finding(networking.READY, False, "NotAccepted", not_in_use),
    ]


def _accepted(claimed: Sequence[str]) -> Finding:
    if claimed:
        why = f"The ModelRoute is valid. It gets what older routes leave: {'; '.join(claimed)}."
        return Finding(networking.ACCEPTED, True, "Overlapping", why)
    return Finding(networking.ACCEPTED, True, "Accepted", "The ModelRoute is valid.")


def _pods(server: Server, shared: Sequence[str]) -> Finding:
    labels = ", ".join(f"{k}={v}" for k, v in server.resource.spec.workload_selector.match_labels.items())
    if server.bad_ports:
        why = f"The port annotation of these pods is not a port number (1 to 65535): {', '.join(server.bad_ports)}."
        return Finding(networking.RESOLVED_REFS, False, "InvalidPort", why)
    if not server.pods:
        why = f"No pod in namespace {server.resource.metadata.namespace} has the labels {labels}."
        return Finding(networking.RESOLVED_REFS, False, "NoPods", why)
    if shared:
        why = f"Pods with the labels {labels} exist. These ModelServers select some of them, too: {', '.join(shared)}."
        return Finding(networking.RESOLVED_REFS, True, "SharedPods", why)
    return Finding(networking.RESOLVED_REFS, True, "ResolvedRefs", f"Pods with the labels {labels} exist.")


def _targets(route: networking.ModelRoute, missing: list[Name], outside: list[Name]) -> Finding:
    if missing:
        listed = ", ".join(name for _, name in missing)
        why = f"No valid ModelServer of this name in namespace {route.metadata.namespace}: {listed}."
        return Finding(networking.RESOLVED_REFS, False, "BackendNotFound", why)
    if outside:
        listed = ", ".join(name for _, name in outside)
        why = f"No valid ExternalModelProvider of this name in namespace {route.metadata.namespace}: {listed}."
        return Finding(networking.RESOLVED_REFS, False, "BackendNotFound", why)
    return Finding(networking.RESOLVED_REFS, True, "ResolvedRefs", "All targets exist.")


def _programmed(
    config: ir.IR,
    delivery: ir.Delivery,
    *,
    backends: frozenset[Name],
    models: frozenset[str] = frozenset(),
    providers: frozenset[Name] = frozenset(),
) -> Finding:
    if delivery.config is not None and _concerning(config, backends, models, providers) == _concerning(
        delivery.config, backends, models, providers
    ):
        for refusal in delivery.refusals:
            vague = refusal.backends is None and refusal.models is None
            named = backends & (refusal.backends or frozenset()) or models & (refusal.models or frozenset())
            if vague or named or providers & refusal.providers:
                why = f"Envoy refused it and goes on with what it had: {refusal.message}"
                return Finding(networking.PROGRAMMED, False, "Refused", why)
        if not delivery.envoys:
            return Finding(networking.PROGRAMMED, None, "NoEnvoy", "No Envoy is connected.")
        if delivery.settled:
            return Finding(networking.PROGRAMMED, True, "Programmed", "Envoy has taken it.")
    return Finding(networking.PROGRAMMED, None, "Pending", "Envoy has not answered yet.")


def _concerning(
    config: ir.IR, backends: frozenset[Name], models: frozenset[str], providers: frozenset[Name]
) -> tuple[object, ...]:
    """Cut out what the object is about; endpoints come and go without being news."""
    return (
        tuple(
            (one.namespace, one.name, one.timeout_s, one.retry, one.tls)
            for one in config.backends
            if (one.namespace, one.name) in backends
        ),
        tuple(one for one in config.providers if (one.namespace, one.name) in providers),
        tuple(one.name for one in config.models if one.name in models),
        tuple(one.rules for one in config.models if one.name in models),
        tuple(
            one
            for one in config.handlings
            if models and any((one.namespace, target) in backends for target in one.targets)
        ),
    )


def _ready(count: int, yes: str, no: str) -> Finding:
    if count:
        return Finding(networking.READY, True, "Ready", yes)
    return Finding(networking.READY, False, "NoReadyEndpoints", no)
