"""How requests of a rule are handled, as one value that both sides of the data path derive.

The picker names its key to Envoy, and the control plane gives Envoy what stands behind the key.

The key is made of the content. A picker that is ahead of Envoy, or behind it, never names something else than it means:
Envoy knows the key, or handles the request as its ModelServer says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matrixinfer.api.networking.model_route import ModelRouteSpec, RouteRule
    from matrixinfer.api.networking.model_server import ModelServer, Retry
    from matrixinfer.api.networking.traffic import RouteTrafficPolicy

DEFAULT_ATTEMPTS: Final = 2  # further tries where nobody says how many
FURTHER_TARGETS: Final = (
    2  # that a request tries when its own has failed: a third would be met by a client that gave up
)
TRIES_EACH: Final = 2  # at a further target, each on another endpoint


@dataclass(frozen=True, slots=True)
class Handling:
    """What a rule asks for beyond its targets."""

    namespace: str
    together: tuple[str, ...]  # ModelServers that a request may fail over to one another; two or more, or none
    mirrors: tuple[tuple[str, int], ...]  # ModelServer, percent
    policy: RouteTrafficPolicy | None
    key: str = ""  # names all of it
    relayed: bool = False  # what all endpoints have failed may go on to an external provider


def handling(namespace: str, spec: ModelRouteSpec, rule: RouteRule) -> Handling | None:
    """Say how requests of a rule are handled; None if as their ModelServer says."""
    servers = {target.model_server_name for target in rule.target_models if target.model_server_name and target.weight}
    together = tuple(sorted(servers)) if len(servers) > 1 else ()
    mirrors = tuple(sorted((mirror.model_server_name, mirror.percent) for mirror in rule.mirrors))
    policy = spec.traffic_policy
    relayed = bool(servers) and any(
        target.overflow and target.weight and target.external_model_provider_name for target in rule.target_models
    )
    if not together and not mirrors and policy is None and not relayed:
        return None
    said = policy.model_dump(mode="json", exclude_none=True) if policy is not None else None
    text = json.dumps([namespace, together, mirrors, said, *(["relayed"] if relayed else [])], sort_keys=True)
    key = hashlib.blake2b(text.encode(), digest_size=9).hexdigest()
    return Handling(namespace, together, mirrors, policy, key, relayed)


def retry_of(policy: RouteTrafficPolicy | None, server: ModelServer | None) -> Retry | None:
    """Give the retries that count for a target of a route; None: nobody says."""
    if policy is not None and policy.retry is not None:
        return policy.retry
    if server is not None and server.spec.traffic_policy is not None:
        return server.spec.traffic_policy.retry
    return None


def tries(attempts: int, further: int) -> tuple[int, int]:
    """Give how often a request is tried at its own target, and in all; `further`: other targets that it may go to.

    Without retries there is no second try anywhere.
    """
    own = 1 + attempts
    return own, own + (min(further, FURTHER_TARGETS) * TRIES_EACH if attempts else 0)
