"""Which limits a request meets: those of its route, and those of its tenant and of its API key in that route.

A limit's bucket is named by whose it is and what it counts, not by its amount or unit, so that a changed limit goes on
with the count of the old one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from matrixinfer.api import networking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Kind(Enum):
    """What is counted."""

    REQUESTS = "requests"
    INPUT = "input"
    OUTPUT = "output"


class Limit(NamedTuple):
    """One bound."""

    key: str  # of its bucket; braces around the route keep a route's buckets together in a Redis Cluster
    kind: Kind
    amount: int  # at least 1
    unit: str
    rate: float  # amount / unit, per second
    whose: str  # as a message says it
    scope: str  # route, tenant, key
    shadow: bool = False
    stated: int = 0  # as it is declared, where `amount` is one picker's part of it; 0: the same


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one route."""

    route: str  # "namespace/name"
    always: tuple[Limit, ...] = ()
    tenants: Mapping[str, networking.CallerRateLimit] = field(default_factory=dict)  # "": all others
    keys: Mapping[str, networking.CallerRateLimit] = field(default_factory=dict)
    store: str = ""  # address of the Redis that counts for all gateway pods; "": each counts for itself

    def of(self, tenant: str, key: str) -> tuple[Limit, ...]:
        """Return what a request of this caller meets; "" is nobody known."""
        found = self.always
        for scope, name, entries in (("tenant", tenant, self.tenants), ("key", key, self.keys)):
            if name and entries:
                entry = entries.get(name) or entries.get("")
                if entry is not None:
                    found += tuple(_limits(entry, self.route, scope, name))
        return found


def of_route(route: str, spec: networking.RateLimit | None) -> Limits | None:
    """Return the limits that a route's `rateLimit` sets; None if there are none."""
    if spec is None:
        return None
    limits = Limits(
        route,
        tuple(_limits(spec, route, "route", "")),
        _by_name(spec.tenants),
        _by_name(spec.keys),
        spec.global_.redis.address if spec.global_ is not None else "",
    )
    return limits if limits.always or limits.tenants or limits.keys else None


def _by_name(entries: Sequence[networking.CallerRateLimit]) -> dict[str, networking.CallerRateLimit]:
    return {entry.name: entry for entry in entries}


def _limits(
    spec: networking.RateLimit | networking.CallerRateLimit, route: str, scope: str, name: str
) -> Iterator[Limit]:
    whose = f"{scope} {name!r} of route {route}" if name else f"route {route}"
    for kind, amount in (
        (Kind.REQUESTS, spec.requests_per_unit),
        (Kind.INPUT, spec.input_tokens_per_unit),
        (Kind.OUTPUT, spec.output_tokens_per_unit),
    ):
        if amount is not None:
            yield Limit(
                key=f"{{{route}}}/{scope}/{kind.value}/{name}",
                kind=kind,
                amount=amount,
                unit=spec.unit,
                rate=amount / networking.UNIT_S[spec.unit],
                whose=whose,
                scope=scope,
                shadow=spec.shadow,
            )
