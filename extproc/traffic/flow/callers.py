"""Who asks, and how urgently: tenant, weight and priority of a request.

The tenant and the key are what the gateway vouches for. A header of the client's can only make its own request less urgent, unless
the configuration trusts headers because something before the gateway sets them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.scheduling.flow import FlowControl
    from extproc.types import HttpRequest

# Upstream's request headers, each with its older name.
OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
_LONGEST: Final = 256  # characters of a name that a header gives


class Caller(NamedTuple):
    """In whose name a request waits."""

    tenant: str  # "" for all that are not known
    priority: int


def caller(rules: FlowControl, http: HttpRequest) -> Caller:
    """Return who asks."""
    tenant = http.tenant
    if rules.trusted:
        tenant = _header(http.headers, FAIRNESS_ID) or tenant
    priority = 0
    if rules.tenants:
        entry = rules.tenants.get(tenant) or rules.tenants.get("")
        if entry is not None:
            priority = entry.priority
    if http.key and rules.keys:
        priority = rules.keys.get(http.key, priority)
    if rules.objectives:
        wanted = rules.objectives.get(objective(http.headers))
        if wanted is not None:
            priority = wanted if rules.trusted else min(wanted, priority)
    return Caller(tenant, priority)


def weight(rules: FlowControl, tenant: str) -> float:
    """Return the share of a tenant."""
    entry = rules.tenants.get(tenant) or rules.tenants.get("")
    return 1.0 if entry is None else entry.weight


def objective(headers: Mapping[str, str]) -> str:
    """Return what a request says of its own urgency, "" if nothing."""
    return _header(headers, OBJECTIVE)


def _header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    for name in names:
        value = headers.get(name)
        if value:
            return value[:_LONGEST]
    return ""
