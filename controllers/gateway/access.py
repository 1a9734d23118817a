"""AccessPolicies to IR: whose credentials are known, and which grants stand for which model. Pure.

A policy with a mistake, or one that contradicts an older one, grants nothing to anybody: what it was to protect stays
protected.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from controllers import ir
from matrixinfer.api import networking

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from matrixinfer.api.meta import Manifest

Name = tuple[str, str]

_ENTRY: Final = re.compile("[-._a-zA-Z0-9]+")  # as Kubernetes has it, too
_KINDS: Final = ("Model", "ModelRoute", "Gateway")  # the narrowest first


@dataclass(frozen=True, slots=True)
class Policies:
    """What became of the policies."""

    access: ir.Access | None = None
    policies: Mapping[Name, networking.AccessPolicy] = field(default_factory=dict)
    conflicts: Mapping[Name, str] = field(default_factory=dict)  # what to change
    missing: Mapping[Name, str] = field(default_factory=dict)  # what a policy names that is not there


@dataclass(slots=True)
class _Found:
    """Credentials of all policies, the oldest policy first, and what each policy has wrong."""

    issuers: dict[str, ir.Issuer] = field(default_factory=dict)
    keys: dict[str, tuple[str, list[str]]] = field(default_factory=dict)  # key -> client, policies
    conflicts: dict[Name, str] = field(default_factory=dict)
    missing: dict[Name, str] = field(default_factory=dict)


def translate(
    policies: Sequence[networking.AccessPolicy],
    *,
    broken: Iterable[Manifest],
    secrets: Iterable[Manifest],
    routes: Mapping[Name, networking.ModelRoute],
    served: Iterable[str],
) -> Policies:
    """Put together what all policies say; `broken` are those that cannot be read."""
    broken = list(broken)
    if not policies and not broken:
        return Policies()
    by_name = {(one["metadata"].get("namespace", ""), one["metadata"]["name"]): one for one in secrets}
    ordered = sorted(policies, key=lambda one: (one.metadata.creation_timestamp, *_name(one)))
    found = _Found()
    for policy in ordered:
        _credentials(policy, by_name, found)
    guards: dict[tuple[str, str], list[tuple[networking.AccessPolicy | None, str]]] = {}
    for policy in ordered:
        for ref in policy.spec.target_refs:
            for target in _targets(ref, policy, routes, found):
                guards.setdefault(target, []).append((policy, "/".join(_name(policy))))
    for manifest in broken:
        for target in _broken_targets(manifest, routes):
            guards.setdefault(target, []).append((None, ""))
    names = {*served, *(name for _, name in guards if name)}
    for policy in ordered:
        names.update(model for rule in policy.spec.rules for model in rule.models)
    access = ir.Access(
        issuers=tuple(found.issuers.values()),
        keys=tuple(ir.ApiKey(key, client, tuple(of)) for key, (client, of) in sorted(found.keys.items())),
        takes_keys=any(one.spec.api_keys is not None for one in ordered),
        forward_keys=all(one.spec.api_keys.forward for one in ordered if one.spec.api_keys is not None),
        certificates=any(one.spec.client_certificates for one in ordered),
        models=tuple((name, _grants(name, guards, found)) for name in sorted(names)),
        otherwise=_grants("", guards, found),
    )
    return Policies(access, {_name(one): one for one in ordered}, found.conflicts, found.missing)


def _name(policy: networking.AccessPolicy) -> Name:
    return policy.metadata.namespace, policy.metadata.name


def _credentials(policy: networking.AccessPolicy, secrets: Mapping[Name, Manifest], found: _Found) -> None:
    """Enter whose tokens and which keys a policy takes, unless an older one says something else of them."""
    name = _name(policy)
    issuers = [_issuer(one) for one in policy.spec.jwt]
    keys = list(_keys(policy, secrets, found))
    taken: dict[str, ir.Issuer] = {}
    for issuer in issuers:
        known = found.issuers.get(issuer.issuer) or taken.setdefault(issuer.issuer, issuer)
        if known != issuer:
            found.conflicts[name] = (
                f"the issuer {issuer.issuer} stands in another place with other keys, tenantClaim or forward:"
                " write the same in both"
            )
            return
    clients: dict[str, str] = {}
    for key, client in keys:
        known_client = found.keys[key][0] if key in found.keys else clients.setdefault(key, client)
        if known_client != client:
            found.conflicts[name] = (
                f"the API key of {client} is the same as that of {known_client}: give each a key of its own"
            )
            return
    found.issuers |= taken
    for key, client in keys:
        of = found.keys.setdefault(key, (client, []))[1]
        if "/".join(name) not in of:
            of.append("/".join(name))


def _issuer(one: networking.TokenIssuer) -> ir.Issuer:
    keys = one.jwks
    jwks = ir.Jwks(keys.inline or "", keys.file or "", keys.url or "", keys.cache_duration.seconds)
    return ir.Issuer(one.issuer, jwks, one.tenant_claim, one.forward)


def _keys(
    policy: networking.AccessPolicy, secrets: Mapping[Name, Manifest], found: _Found
) -> Iterator[tuple[str, str]]:
    """Give keys and whose they are."""
    namespace = policy.metadata.namespace
    for ref in policy.spec.api_keys.secret_refs if policy.spec.api_keys is not None else ():
        secret = secrets.get((namespace, ref.name))
        if secret is None:
            found.missing[_name(policy)] = f"no Secret {ref.name!r} in namespace {namespace}: its keys are not known"
            continue
        for client, key in sorted(entries(secret).items()):
            if key and key.isascii() and key.isprintable() and _ENTRY.fullmatch(client):
                yield key, client
            else:
                found.missing[_name(policy)] = (
                    f"the entry {client!r} of Secret {ref.name!r} is no key: it is empty or no plain text, or its name has"
                    " more than letters, digits, '-', '_' and '.'"
                )


def entries(secret: Manifest) -> dict[str, str]:
    """Decode the entries of a Secret; what is no text becomes ""."""
    decoded: dict[str, str] = {}
    data: dict[str, Any] = secret.get("data") or {}
    for name, value in data.items():
        try:
            decoded[name] = base64.b64decode(value, validate=True).decode().strip()
        except (binascii.Error, ValueError, TypeError):
            decoded[name] = ""
    return decoded | {name: str(value).strip() for name, value in (secret.get("stringData") or {}).items()}


def _targets(
    ref: networking.TargetRef,
    policy: networking.AccessPolicy,
    routes: Mapping[Name, networking.ModelRoute],
    found: _Found,
) -> list[tuple[str, str]]:
    """Give what a reference protects: kind, and a model's name, "" for the gateway."""
    if ref.kind == "Gateway":
        return [("Gateway", "")]
    name = ref.name or ""
    if ref.kind == "Model":
        return [("Model", name)]
    namespace = policy.metadata.namespace
    route = routes.get((namespace, name))
    if route is None:
        found.missing[_name(policy)] = (
            f"no valid ModelRoute {name!r} in namespace {namespace}: nothing of it is protected"
        )
        return []
    return [("ModelRoute", model) for model in (route.spec.model_name, *route.spec.lora_adapters) if model]


def _broken_targets(manifest: Manifest, routes: Mapping[Name, networking.ModelRoute]) -> list[tuple[str, str]]:
    """Read what a policy that cannot be read was to protect; everything, if even that is unreadable."""
    spec = manifest.get("spec")
    refs = spec.get("targetRefs") if isinstance(spec, dict) else None
    targets = []
    for ref in refs if isinstance(refs, list) and refs else [None]:
        kind, name = (ref.get("kind"), ref.get("name")) if isinstance(ref, dict) else (None, None)
        route = routes.get((manifest["metadata"].get("namespace", ""), str(name)))
        if kind == "Model" and isinstance(name, str) and name:
            targets.append(("Model", name))
        elif kind == "ModelRoute" and route is not None:
            targets += [("ModelRoute", one) for one in (route.spec.model_name, *route.spec.lora_adapters) if one]
        else:
            targets.append(("Gateway", ""))
    return targets


def _grants(
    model: str,
    guards: Mapping[tuple[str, str], Sequence[tuple[networking.AccessPolicy | None, str]]],
    found: _Found,
) -> ir.Grants:
    """Give the grants for a model, "" for one that nobody names; None if no policy protects it."""
    for kind in _KINDS:
        applying = guards.get((kind, "" if kind == "Gateway" else model)) if kind == "Gateway" or model else None
        if applying is not None:
            return tuple(
                dict.fromkeys(
                    grant
                    for policy, name in applying
                    if policy is not None and _name(policy) not in found.conflicts
                    for grant in _of_policy(policy, name, model)
                )
            )
    return None


def _of_policy(policy: networking.AccessPolicy, name: str, model: str) -> Iterator[ir.Grant]:
    spec = policy.spec
    for rule in spec.rules or (networking.AccessRule(),):
        if not rule.models or model in rule.models:
            yield ir.Grant(
                policy=name,
                issuers=tuple((one.issuer, one.audiences) for one in spec.jwt),
                keys=spec.api_keys is not None,
                certificates=spec.client_certificates,
                tenants=rule.tenants,
                claims=tuple((one.name, one.values) for one in rule.claims),
            )
