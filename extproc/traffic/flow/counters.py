"""Virtual token counters: what each tenant of one band of one pool was served, in weighted tokens.

`charge` adds what a request is expected to count, and later the difference to what it counted. `lift` brings a tenant that
comes back up to the lowest of those that wait, or, if nobody does, to the one that was served last: whoever was away has
saved nothing. While two tenants wait, their counters differ by at most one request, what is in flight, and the locality
that the order allows: whoever is served next has the lowest, up to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_MOST_IDLE: Final = 10_000  # tenants whose counters are kept while they are away


class Counters:
    """Levels by tenant, in tokens of weight 1."""

    def __init__(self) -> None:
        self._levels: dict[str, float] = {}
        self._floor = 0.0  # of who was served last, before that was charged; never falls
        self.fresh: dict[str, float] = {}  # charged since `taken`, for pickers that share

    def __len__(self) -> int:
        return len(self._levels)

    def level(self, tenant: str) -> float:
        """Return the tenant's counter."""
        return self._levels.get(tenant, self._floor)

    def levels(self) -> Mapping[str, float]:
        """Return all counters."""
        return self._levels

    def lift(self, tenant: str, waiting: Iterable[str]) -> None:
        """Let a tenant begin to wait beside those that do."""
        levels = self._levels
        lowest = min((levels.get(one, self._floor) for one in waiting), default=self._floor)
        if levels.get(tenant, lowest) <= lowest:
            levels[tenant] = lowest

    def serve(self, tenant: str, tokens: float) -> None:
        """Charge a request that is dispatched."""
        level = self.level(tenant)
        self._floor = max(self._floor, level)
        self._levels[tenant] = level + tokens
        self.fresh[tenant] = self.fresh.get(tenant, 0.0) + tokens

    def correct(self, tenant: str, tokens: float) -> None:
        """Charge the difference (below 0: what was too much) of a request that was dispatched."""
        self._levels[tenant] = self.level(tenant) + tokens
        self.fresh[tenant] = self.fresh.get(tenant, 0.0) + tokens

    def hear(self, tenant: str, tokens: float) -> None:
        """Charge what other pickers have served."""
        self._levels[tenant] = self.level(tenant) + tokens

    def taken(self) -> dict[str, float]:
        """Return what was charged since the last time, and begin anew."""
        fresh, self.fresh = self.fresh, {}
        return fresh

    def forget(self, busy: Collection[str]) -> None:
        """Drop tenants that neither wait nor are served, and whose counter says nothing: they would be lifted above it."""
        levels, crowded = self._levels, len(self._levels) > _MOST_IDLE + len(busy)
        for tenant in [one for one, level in levels.items() if crowded or level <= self._floor]:
            if tenant not in busy and tenant not in self.fresh:
                del levels[tenant]
