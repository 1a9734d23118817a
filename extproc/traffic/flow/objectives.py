"""What InferenceObjectives say of the ModelServers that they are for: a table in which a request's priority is one look away."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matrixinfer.api.objectives import InferenceObjective

    Name = tuple[str, str]  # namespace, name

Priorities = dict[tuple[str, str], int]  # by ModelServer ("namespace/name") and the objective's name


def priorities(objectives: Iterable[InferenceObjective], servers: Mapping[Name, Mapping[str, str]]) -> Priorities:
    """Return the priority of each objective at each ModelServer that it is for; `servers` have labels. Of equal names the last counts."""
    found: Priorities = {}
    within: dict[str, list[Name]] = {}
    for server in servers:
        within.setdefault(server[0], []).append(server)
    for one in objectives:
        namespace, selector = one.metadata.namespace, one.spec.pool_selector
        meant = {(namespace, reference.server or "") for _, reference in one.spec.references()} & servers.keys()
        if selector is not None:
            meant.update(server for server in within.get(namespace, ()) if selector.selects(servers[server]))
        for _, name in meant:
            found[f"{namespace}/{name}", one.metadata.name] = one.priority
    return found
