"""The recent changes of one kind, from which any number of watchers read at their own pace.

Watchers hold a position, not a queue: a slow one costs nothing, and one that falls behind what is kept is told Expired,
as by an API server whose storage was compacted.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matrixinfer.cluster.protocol import EventType, Expired

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Change:
    """One write, with the object as JSON after it (before it, for a deletion)."""

    revision: int
    type: EventType
    namespace: str
    blob: bytes


class History:
    """The last `kept` changes in order, numbered from 0 without gaps."""

    def __init__(self, *, kept: int, start: int) -> None:
        self._kept = kept
        self._changes: dict[int, Change] = {}
        self._oldest = 0
        self._next = 0
        self._forgotten = start  # revision of the newest change that is not kept
        self._waiting: list[asyncio.Future[None]] = []

    def append(self, change: Change) -> None:
        """Keep a change, forget the oldest, wake who waits."""
        self._changes[self._next] = change
        self._next += 1
        if len(self._changes) > self._kept:
            self._forgotten = self._changes.pop(self._oldest).revision
            self._oldest += 1
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def position(self, revision: int) -> int:
        """Where the first change after `revision` stands or will stand. Raises Expired."""
        if revision < self._forgotten:
            raise Expired(f"too old resource version: {revision} ({self._forgotten})")
        low, high = self._oldest, self._next
        while low < high:
            middle = (low + high) // 2
            if self._changes[middle].revision <= revision:
                low = middle + 1
            else:
                high = middle
        return low

    def read(self, position: int) -> Iterator[tuple[int, Change]]:
        """Give changes from `position` on, each with the position after it. Raises Expired."""
        while position < self._next:
            if position < self._oldest:
                raise Expired("the watcher fell behind the changes that are kept: list again")
            change = self._changes[position]
            position += 1
            yield position, change

    async def grown(self, position: int, *, within_s: float) -> None:
        """Return when there is a change at `position`, or after `within_s`."""
        if position < self._next:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait((future,), timeout=max(within_s, 0))
        finally:
            if not future.done():
                self._waiting.remove(future)
