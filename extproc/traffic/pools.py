"""Pools: which rows of the endpoint table belong to which ModelServer.

Owned by whoever follows the cluster; the director only reads. A pool's array is made anew when a member comes, goes or
changes its readiness, so that a decision takes it as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable

_NONE: NDArray[np.intp] = np.zeros(0, dtype=np.intp)


class Pools:
    """Rows by ModelServer; `ready` is what may be chosen from."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._members: dict[str, frozenset[str]] = {}  # server -> addresses
        self._awaited: frozenset[str] = frozenset()
        self._ready: dict[str, NDArray[np.intp]] = {}

    def members(self, server: str) -> frozenset[str]:
        """Addresses of the ModelServer's endpoints, ready or not."""
        return self._members.get(server, frozenset())

    def ready(self, server: str) -> NDArray[np.intp]:
        """Rows of the ModelServer's endpoints that are ready, shape (n,)."""
        return self._ready.get(server, _NONE)

    def has_endpoints(self, server: str) -> bool:
        """Tell whether one endpoint of the ModelServer is ready."""
        return server in self._ready

    def set(self, members: Mapping[str, Iterable[str]], awaited: frozenset[str] = frozenset()) -> None:
        """Replace all pools: server -> addresses, all of which are in the table; `awaited`: that are not ready for us yet."""
        self._awaited = awaited
        self._members = {server: frozenset(addresses) for server, addresses in members.items()}
        self.refresh()

    def refresh(self) -> None:
        """Look again at who is ready."""
        ready: dict[str, NDArray[np.intp]] = {}
        for server, addresses in self._members.items():
            rows = sorted(row for address in addresses if (row := self._ready_row(address)) is not None)
            if rows:
                ready[server] = np.array(rows, dtype=np.intp)
        self._ready = ready

    def _ready_row(self, address: str) -> int | None:
        row = self._table.row(address)
        endpoint = None if row is None else self._table.endpoints[row]
        return row if endpoint is not None and endpoint.ready and address not in self._awaited else None
