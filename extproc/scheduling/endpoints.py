"""The endpoint table: one row per engine address, one numpy column per fact about it.

Rows are written on the loop only: the pod watch adds and removes them, the scraper writes what engines report, the
director counts what is in flight. Readers take columns by row number, so that a scorer is one expression over arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from extproc.scheduling.topology import NOWHERE, Place

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

# The numeric columns, each with what stands in the row of an endpoint of which nothing is known.
COLUMNS: Final = {
    "waiting": 0.0,
    "running": 0.0,
    "kv_usage": 0.0,
    "kv_tokens": 0.0,
    "scraped_at": -np.inf,
    "inflight": 0,
    "inflight_tokens": 0,
    "inflight_scraped": 0,
    "inflight_tokens_scraped": 0,
    "avoid_until": 0.0,
    "ttft_samples": 0.0,
    "ttft_s": 0.0,
    "ttft_tokens": 0.0,
    "ttft_variance": 0.0,
    "ttft_covariance": 0.0,
    "tpot_samples": 0.0,
    "tpot_s": 0.0,
    "latency_load": 0.0,
    "latency_at": -np.inf,
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine that can be reached."""

    address: str  # "ip:port", brackets around IPv6
    pod: str  # "namespace/name"
    engine: str  # "vLLM" or "SGLang": whose metric names it speaks
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool = True
    node: str = ""  # name of the node that the pod runs on; "" if it is not told
    kv_events: str = ""  # the pod's word about where it publishes them; "": it does not say


class Lora(NamedTuple):
    """What an engine's metrics page says of its adapters."""

    running: frozenset[str]  # with a request in the batch
    waiting: frozenset[str]  # with a request in the queue
    slots: int  # adapters that fit into one batch


class EndpointTable:
    """All endpoints of all pools; a row keeps its number as long as its address stays."""

    def __init__(self, capacity: int = 64) -> None:
        self.endpoints: list[Endpoint | None] = [None] * capacity
        self.addresses: NDArray[np.object_] = np.full(capacity, "", dtype=object)  # of the rows in use; kept when freed
        self._rows: dict[str, int] = {}
        self.home: Place = NOWHERE  # where this picker runs, as far as it was told
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        # What engines report (scraped).
        self.waiting: NDArray[np.float64] = np.zeros(capacity)  # requests queued in the engine
        self.running: NDArray[np.float64] = np.zeros(capacity)  # requests in its batch
        self.kv_usage: NDArray[np.float64] = np.zeros(capacity)  # share of KV blocks in use, 0..1
        self.kv_tokens: NDArray[np.float64] = np.zeros(capacity)  # tokens that all of its KV blocks hold; 0: not told
        self.scraped_at: NDArray[np.float64] = np.full(capacity, -np.inf)  # monotonic seconds; -inf: never
        self.models: list[frozenset[str]] = [frozenset()] * capacity  # ids at /v1/models, adapters included
        self.adapters: list[frozenset[str]] = [frozenset()] * capacity  # those of `models` that are adapters
        self.attributes: dict[str, NDArray[np.float64]] = {}  # metrics of one's own by name; NaN: not reported
        self.lora: list[Lora | None] = [None] * capacity  # None: the engine says nothing of adapters
        # What this picker knows by itself.
        self.inflight: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)  # requests sent and not settled
        self.inflight_tokens: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)  # their prompt tokens
        self.inflight_scraped: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)  # `inflight` at the last scrape
        self.inflight_tokens_scraped: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self.avoid_until: NDArray[np.float64] = np.zeros(capacity)  # monotonic seconds: it failed lately
        # What settled requests took; `scheduling.latency` writes and reads these. Means are weighted by age.
        self.ttft_samples: NDArray[np.float64] = np.zeros(capacity)  # measured, less those that age has taken
        self.ttft_s: NDArray[np.float64] = np.zeros(capacity)  # mean time to the first token
        self.ttft_tokens: NDArray[np.float64] = np.zeros(capacity)  # mean of the prompt tokens that were not cached
        self.ttft_variance: NDArray[np.float64] = np.zeros(capacity)  # of these tokens
        self.ttft_covariance: NDArray[np.float64] = np.zeros(capacity)  # of these tokens with the time, token seconds
        self.tpot_samples: NDArray[np.float64] = np.zeros(capacity)
        self.tpot_s: NDArray[np.float64] = np.zeros(capacity)  # mean time between tokens
        self.latency_load: NDArray[np.float64] = np.zeros(capacity)  # mean of `inflight` while they were measured
        self.latency_at: NDArray[np.float64] = np.full(capacity, -np.inf)  # monotonic seconds, of the last sample
        self.view = self._views()

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

    def watch(self, names: Collection[str]) -> None:
        """Keep these attributes from now on, and no others."""
        unknown = np.full(len(self.endpoints), np.nan)
        self.attributes = {name: self.attributes.get(name, unknown.copy()) for name in names}

    def _reset(self, row: int) -> None:
        for name, unknown in COLUMNS.items():
            getattr(self, name)[row] = unknown
        self.models[row] = self.adapters[row] = frozenset()
        self.lora[row] = None
        for column in self.attributes.values():
            column[row] = np.nan

    def _views(self) -> dict[str, memoryview[Any]]:
        """Return the columns for reading element by element, which gives plain numbers at a third of the price."""
        return {name: memoryview(getattr(self, name)) for name in COLUMNS}

    def _grow(self) -> None:
        size = len(self.endpoints)
        self.endpoints.extend([None] * size)
        self.models.extend([frozenset()] * size)
        self.adapters.extend([frozenset()] * size)
        self.lora.extend([None] * size)
        self.addresses = np.concatenate([self.addresses, np.full(size, "", dtype=object)])
        self._free.extend(range(2 * size - 1, size - 1, -1))
        for name, unknown in COLUMNS.items():
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.full_like(column, unknown)]))
        for name, column in self.attributes.items():
            self.attributes[name] = np.concatenate([column, np.full(size, np.nan)])
        self.view = self._views()
