"""Who asks, and how urgently: tenant, weight and priority of a request.

The tenant and the key are what the gateway vouches for. A header of the client's can only make its own request less urgent, unless
the configuration trusts headers because something before the gateway sets them. An InferenceObjective says more: upstream has
clients name it, so it counts up and down where the gateway itself says nothing of the caller's priority, nor of headers.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.scheduling.flow import FlowControl
    from extproc.types import HttpRequest

    Objective = tuple[str, str]  # ModelServer, name

# Upstream's request headers, each with its older name.
OBJECTIVE: Final = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID: Final = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
_LONGEST: Final = 256  # characters of a name that a header gives
_NONE: Final[Mapping[Objective, int]] = MappingProxyType({})


class Caller(NamedTuple):
    """In whose name a request waits."""

    tenant: str  # "" for all that are not known
    priority: int


def caller(
    rules: FlowControl, http: HttpRequest, *, server: str = "", stated: Mapping[Objective, int] = _NONE
) -> Caller:
    """Return who asks. `stated` are InferenceObjectives' priorities, at each ModelServer; `server` is the request's."""
    tenant = http.tenant
    if rules.trusted:
        tenant = _header(http.headers, FAIRNESS_ID) or tenant
    priority, free = 0, rules.trusted is None
    if rules.tenants:
        entry = rules.tenants.get(tenant) or rules.tenants.get("")
        if entry is not None:
            priority, free = entry.priority, False
    if http.key and http.key in rules.keys:
        priority, free = rules.keys[http.key], False
    if (rules.objectives or stated) and (name := objective(http.headers)):
        wanted = rules.objectives.get(name)
        if wanted is None:
            wanted = stated.get((server, name))
        else:
            free = False
        if wanted is not None:
            priority = wanted if free or rules.trusted else min(wanted, priority)
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
