"""What several objects claim at once: model names by routes, pods by ModelServers. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controllers import ir

    Name = tuple[str, str]  # namespace, name


def claims(order: Mapping[str, Sequence[Name]]) -> dict[Name, tuple[str, ...]]:
    """Say to each route which of its model names other routes serve before it; `order` has the routes of a name, first to last."""
    found: defaultdict[Name, list[str]] = defaultdict(list)
    for model, routes in sorted(order.items()):
        first = routes[0]
        for route in dict.fromkeys(routes):
            if route != first:
                found[route].append(f"{model!r} is served by ModelRoute {_said(first)} first")
    return {route: tuple(texts) for route, texts in found.items()}


def shared(endpoints: Iterable[tuple[Name, Iterable[ir.Endpoint]]]) -> dict[Name, tuple[str, ...]]:
    """Name to each ModelServer the others that select some of its pods."""
    holders: defaultdict[ir.Endpoint, list[Name]] = defaultdict(list)
    for name, places in endpoints:
        for place in places:
            holders[place].append(name)
    met: defaultdict[Name, set[Name]] = defaultdict(set)
    for group in {tuple(names) for names in holders.values() if len(names) > 1}:
        for name in group:
            met[name] |= set(group) - {name}
    return {name: tuple(map(_said, sorted(others))) for name, others in met.items()}


def _said(name: Name) -> str:
    return f"{name[0]}/{name[1]}"
