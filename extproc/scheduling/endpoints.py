"""The endpoint table: one row per engine address, one numpy column per fact about it.

Rows are written on the loop only: the pod watch adds and removes them, the scraper writes what engines report, the
director counts what is in flight. Readers take columns by row number, so that a scorer is one expression over arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine that can be reached."""

    address: str  # "ip:port", brackets around IPv6
    pod: str  # "namespace/name"
    engine: str  # "vLLM" or "SGLang": whose metric names it speaks
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True


class EndpointTable:
    """All endpoints of all pools; a row keeps its number as long as its address stays."""

    def __init__(self, capacity: int = 64) -> None:
        self.endpoints: list[Endpoint | None] = [None] * capacity
        self.addresses: NDArray[np.object_] = np.full(capacity, "", dtype=object)  # of the rows in use; kept when freed
        self._rows: dict[str, int] = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        # What engines report (scraped).
        self.waiting: NDArray[np.float64] = np.zeros(capacity)  # requests queued in the engine
        self.running: NDArray[np.float64] = np.zeros(capacity)  # requests in its batch
        self.kv_usage: NDArray[np.float64] = np.zeros(capacity)  # share of KV blocks in use, 0..1
        self.scraped_at: NDArray[np.float64] = np.full(capacity, -np.inf)  # monotonic seconds; -inf: never
        # What this picker knows by itself.
        self.inflight: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)  # requests sent and not settled
        self.inflight_tokens: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)  # their prompt tokens
        self.avoid_until: NDArray[np.float64] = np.zeros(capacity)  # monotonic seconds: it failed lately
        self.models: list[frozenset[str]] = [frozenset()] * capacity  # ids at /v1/models, adapters included

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, address: str) -> int | None:
        """Row of `address`, None if it is not in the table."""
        return self._rows.get(address)

    def address(self, row: int) -> str:
        """Address in `row`. Raises LookupError for a free row."""
        endpoint = self.endpoints[row]
        if endpoint is None:
            raise LookupError(f"row {row} is free")
        return endpoint.address

    def rows(self) -> list[int]:
        """Rows in use, oldest first."""
        return list(self._rows.values())

    def upsert(self, endpoint: Endpoint) -> int:
        """Add the endpoint, or change what is known of its address; returns its row."""
        row = self._rows.get(endpoint.address)
        if row is None:
            if not self._free:
                self._grow()
            row = self._free.pop()
            self._rows[endpoint.address] = row
            self._reset(row)
        self.endpoints[row] = endpoint
        self.addresses[row] = endpoint.address
        return row

    def remove(self, address: str) -> int | None:
        """Forget the address; returns the row that it freed, None if it was not there."""
        row = self._rows.pop(address, None)
        if row is not None:
            self.endpoints[row] = None
            self._free.append(row)
        return row

    def _reset(self, row: int) -> None:
        for column in (
            self.waiting,
            self.running,
            self.kv_usage,
            self.inflight,
            self.inflight_tokens,
            self.avoid_until,
        ):
            column[row] = 0
        self.scraped_at[row] = -np.inf
        self.models[row] = frozenset()

    def _grow(self) -> None:
        size = len(self.endpoints)
        self.endpoints.extend([None] * size)
        self.models.extend([frozenset()] * size)
        self.addresses = np.concatenate([self.addresses, np.full(size, "", dtype=object)])
        self._free.extend(range(2 * size - 1, size - 1, -1))
        for name in ("waiting", "running", "kv_usage", "scraped_at", "inflight", "inflight_tokens", "avoid_until"):
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
