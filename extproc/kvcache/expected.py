"""Blocks that slots do not hold yet and soon will: those of requests that were just routed.

Kept until the engine tells of them, or their time is over. Who says until when asks in the order of time.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class _Batch(NamedTuple):
    until: float
    slot: int
    blocks: dict[int, float]  # of the slot, as it was then
    hashes: tuple[int, ...]


class Expected:
    """What is expected of each slot."""

    def __init__(self) -> None:
        self._blocks: dict[int, dict[int, float]] = {}  # slot -> our hash -> until when
        self._queue: deque[_Batch] = deque()

    def __len__(self) -> int:
        return sum(len(blocks) for blocks in self._blocks.values())

    def add(self, slot: int, hashes: Iterable[int], until: float, take: Callable[[int], bool]) -> int:
        """Expect blocks of a slot; `take` is asked of each that is new whether it is to be. Returns how many were."""
        blocks = self._blocks.setdefault(slot, {})
        before = len(blocks)
        taken = []
        for ours in hashes:
            if ours in blocks or take(ours):
                blocks[ours] = until
                taken.append(ours)
        if taken:
            self._queue.append(_Batch(until, slot, blocks, tuple(taken)))
        return len(blocks) - before

    def confirm(self, slot: int, ours: int) -> bool:
        """Expect a block no more, as the engine told of it; tells whether it was."""
        blocks = self._blocks.get(slot)
        return blocks is not None and blocks.pop(ours, None) is not None

    def forget(self, slot: int) -> Iterable[int]:
        """Expect nothing of a slot any more; returns what was."""
        return self._blocks.pop(slot, {})

    def expire(self, now: float) -> list[tuple[int, int]]:
        """Return slots and blocks whose time is over, and expect them no more."""
        over: list[tuple[int, int]] = []
        while self._queue and self._queue[0].until <= now:
            _until, slot, blocks, hashes = self._queue.popleft()
            if self._blocks.get(slot) is not blocks:
                continue
            for ours in hashes:
                if blocks.get(ours, now + 1) <= now:
                    del blocks[ours]
                    over.append((slot, ours))
            if not blocks:
                del self._blocks[slot]
        return over
