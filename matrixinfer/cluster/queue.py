"""What is to be worked on: each key once, one worker per key, later or again after a failure. Pure: time is an argument."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

from matrixinfer.cluster.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Hashable

K = TypeVar("K", bound="Hashable")


class WorkQueue(Generic[K]):
    """Keys in the order they came due.

    A key that is added while it waits is there once; one that is added while it is worked on comes again afterwards. Of
    several delays for one key the earliest counts.
    """

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._ready: dict[K, None] = {}
        self._working: set[K] = set()
        self._again: set[K] = set()  # added while worked on
        self._due: dict[K, float] = {}
        self._schedule: list[tuple[float, int, K]] = []  # may hold entries that `_due` no longer agrees with
        self._order = count()
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Count the keys that wait or are due later."""
        return len(self._ready.keys() | self._again | self._due.keys())

    @property
    def ready(self) -> int:
        """How many keys could be worked on at once."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Work on the key as soon as possible."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        else:
            self._ready.setdefault(key)

    def add_at(self, key: K, due: float) -> None:
        """Work on the key at the time `due`, unless it comes earlier anyway."""
        if key in self._ready or key in self._again or self._due.get(key, due) < due:
            return
        self._due[key] = due
        heapq.heappush(self._schedule, (due, next(self._order), key))

    def retry(self, key: K, now: float, draw: float) -> float:
        """Work on the key again after a delay that grows with its failures; return the delay in seconds."""
        self._failures[key] = self._failures.get(key, 0) + 1
        delay_s = self._backoff.delay_s(self._failures[key], draw)
        self.add_at(key, now + delay_s)
        return delay_s

    def forget(self, key: K) -> None:
        """Count the key's failures no longer: it has been worked on with success."""
        self._failures.pop(key, None)

    def pop(self, now: float) -> K | None:
        """Take the next key; it is not given again before `done`."""
        self._mature(now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """Give the key back."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self._ready.setdefault(key)

    def next_due(self) -> float | None:
        """When the first delayed key comes due."""
        while self._schedule and self._due.get(self._schedule[0][2]) != self._schedule[0][0]:
            heapq.heappop(self._schedule)
        return self._schedule[0][0] if self._schedule else None

    def _mature(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            self.add(heapq.heappop(self._schedule)[2])
