"""ExternalModelProviders to IR: where each is, and the credential and authority out of their Secrets. Pure.

A provider whose Secret is missing or unusable is left out: requests never go without the credential that they were to have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from controllers import ir
from controllers.gateway import access
from matrixinfer.api import networking

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matrixinfer.api.meta import Manifest

Name = tuple[str, str]

_SHORTEST_S, _LONGEST_S = 0.001, 86_400.0  # spans that a proxy's timers can keep
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_RETRY: Final = ir.Retry(attempts=2, interval_s=0.25)  # a service that is busy for one is busy for many


@dataclass(frozen=True, slots=True)
class Providers:
    """What became of the providers."""

    backends: tuple[ir.Provider, ...] = ()  # those that can be used
    resources: Mapping[Name, networking.ExternalModelProvider] = field(default_factory=dict)
    missing: Mapping[Name, str] = field(default_factory=dict)  # what is missing, and what to change


def translate(providers: Iterable[networking.ExternalModelProvider], secrets: Mapping[Name, Manifest]) -> Providers:
    """Put the providers together with their secrets."""
    resources: dict[Name, networking.ExternalModelProvider] = {}
    made: list[ir.Provider] = []
    missing: dict[Name, str] = {}
    for one in providers:
        name = one.metadata.namespace, one.metadata.name
        resources[name] = one
        try:
            made.append(_provider(one, secrets))
        except _Missing as problem:
            missing[name] = str(problem)
    return Providers(tuple(sorted(made, key=lambda one: (one.namespace, one.name))), resources, missing)


class _Missing(Exception):
    """What a provider names cannot be used; the message never holds what is in the Secret."""


def _provider(one: networking.ExternalModelProvider, secrets: Mapping[Name, Manifest]) -> ir.Provider:
    spec, namespace = one.spec, one.metadata.namespace
    policy = spec.traffic_policy or networking.TrafficPolicy()
    host, port = spec.address
    ca = ""
    if spec.ca_secret_ref is not None:
        ca = "\n".join(_CERTIFICATE.findall(_entry(spec.ca_secret_ref, namespace, secrets)))
        if not ca:
            raise _Missing(
                f"the entry {spec.ca_secret_ref.key!r} of Secret {spec.ca_secret_ref.name!r} holds no certificate (PEM)"
            )
    retry = policy.retry
    return ir.Provider(
        namespace=namespace,
        name=one.metadata.name,
        host=host,
        port=port,
        tls=spec.url.scheme == "https",
        verify=not spec.insecure_skip_verify,
        ca=ca,
        credential=_credential(spec, namespace, secrets),
        timeout_s=_bounded(policy.timeout.seconds) if policy.timeout is not None else None,
        retry=_RETRY
        if retry is None
        else ir.Retry(retry.attempts, _bounded(retry.retry_interval.seconds), retry.retry_on),
        most_requests=spec.max_concurrent_requests,
    )


def _credential(
    spec: networking.ExternalModelProviderSpec, namespace: str, secrets: Mapping[Name, Manifest]
) -> ir.Credential | None:
    if spec.auth is None:
        return None
    ref = spec.auth.secret_ref
    value = _entry(ref, namespace, secrets)
    if not value.isascii() or not value.isprintable():
        raise _Missing(
            f"the entry {ref.key!r} of Secret {ref.name!r} is no credential: it must be one line of plain text"
        )
    scheme = spec.auth.scheme or ("APIKey" if spec.provider_type == "Anthropic" else "Bearer")
    return ir.Credential("x-api-key", value) if scheme == "APIKey" else ir.Credential("authorization", value, "Bearer ")


def _entry(ref: networking.SecretKeyRef, namespace: str, secrets: Mapping[Name, Manifest]) -> str:
    secret = secrets.get((namespace, ref.name))
    if secret is None:
        raise _Missing(f"no Secret {ref.name!r} in namespace {namespace}")
    entries = access.entries(secret)
    if ref.key not in entries:
        raise _Missing(f"Secret {ref.name!r} has no entry {ref.key!r}")
    if not entries[ref.key]:
        raise _Missing(f"the entry {ref.key!r} of Secret {ref.name!r} is empty, or no text")
    return entries[ref.key]


def _bounded(seconds: float) -> float:
    return min(max(seconds, _SHORTEST_S), _LONGEST_S)
