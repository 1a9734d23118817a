"""The exact index: which slot holds which block, as engines tell it.

A slot is one part of one engine's cache that is looked up for itself: a cache group of a data-parallel rank. Two tables
(table.py) hold everything. `pairs` has one entry for each block that a slot holds, under the engine's own hash: our hash
of the block, and how many copies each tier has, as engines store copies and remove them one by one. `holders` has one entry
for each block, under our hash: the set of slots that hold it (masks.py), and when it was last looked up.

Nothing here relies on a slot that holds block i holding 0..i-1 as well: a lookup walks the whole chain. It costs what the
places cost where the set of holders changes, after one vectorised search.

A block in a lower tier alone (CPU memory, disk) is marked in a second slot beside the first, so that lookups that weigh
tiers can tell. Expected blocks are those of a request that was just routed: their slot counts as a holder until the
engine's own event confirms it or the time is over.

Memory is bounded by pairs. Over the bound the least recently used of a sample gives way, a segment of the table at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from extproc.kvcache import bits
from extproc.kvcache.expected import Expected
from extproc.kvcache.masks import EMPTY, Masks
from extproc.kvcache.table import SEGMENT, Full, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

TIERS: Final = 3  # GPU, CPU, disk: best first
_CHUNK: Final = 1024  # blocks searched at once: a long prompt that nobody holds ends early
_MOST: Final = (0xFFFF, 0xFF, 0xFF)  # copies that are counted, by tier
_SLOTS: Final = 1 << 16
_TICK: Final = 4096  # changes in one unit of time of the least-recently-used order
_SHARE: Final = 8  # one in so many of a sample is evicted
_TIDY_EVERY: Final = 64  # stores between two segments that are cleared of departed slots


@dataclass(slots=True)
class Counts:
    """What has happened to blocks."""

    stored: int = 0
    removed: int = 0
    unknown: int = 0  # removals of blocks that were not known
    evicted: int = 0  # given up for the bound of memory
    refused: int = 0  # not taken, for want of room
    expected: int = 0
    confirmed: int = 0  # expected blocks that the engine then told of
    expired: int = 0  # expected blocks that it did not


class Run(NamedTuple):
    """Blocks in a row that have the same holders."""

    begin: int
    end: int
    holders: int  # set of slots


class BlockIndex:
    """Slots and their blocks. One owner; written on the loop only."""

    def __init__(self, *, capacity: int = 16_000_000, secret: int) -> None:
        """`capacity`: (slot, block) pairs, some 60 bytes each once they are there; `secret`: 64 bits of chance."""
        if capacity < 1:
            raise ValueError("the block index must have room for one block at least")
        self.counts = Counts()
        self.capacity = capacity
        self._masks = Masks()
        self._secret = secret
        self._holders = Table((np.uint32, np.uint16), capacity=capacity, secret=secret)
        self._pairs = Table(
            (np.uint64, np.uint16, np.uint16, np.uint8, np.uint8), capacity=capacity, secret=secret >> 1
        )
        self._salts: list[int] = [0]  # by slot; slot 0 is nobody's
        self._lower: dict[
            int, tuple[int, ...]
        ] = {}  # slot -> slots that mark its blocks in CPU memory only, on disk only
        self._free: list[int] = []
        self._departed: dict[int, int] = {}  # slot -> segments passed when it left
        self._gone: NDArray[np.bool_] = np.zeros(_SLOTS, dtype=np.bool_)
        self._given = 0
        self._passed = 0  # segments that the hand has passed
        self._changes = 0
        self._expected = Expected()

    # ---- what there is

    @property
    def pairs(self) -> int:
        """(slot, block) pairs in memory, those of departed slots that are not cleared yet included."""
        return self._pairs.count

    @property
    def blocks(self) -> int:
        """Distinct blocks in memory."""
        return self._holders.count

    @property
    def memory(self) -> int:
        """Bytes of the tables."""
        return self._pairs.memory + self._holders.memory

    @property
    def slots(self) -> int:
        """Slots that have been made room for, those that are free again included."""
        return len(self._salts)

    @property
    def tiered(self) -> bool:
        """True if some block is or was in a lower tier."""
        return bool(self._lower)

    @property
    def expecting(self) -> int:
        """Blocks that are expected now."""
        return len(self._expected)

    # ---- slots

    def open(self) -> int:
        """Return an empty slot. Raises OverflowError when there is none left."""
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._salts)
            if slot >= _SLOTS:
                raise OverflowError("no slot is left in the block index")
            self._salts.append(0)
        self._given += 1
        self._salts[slot] = (self._secret ^ self._given * 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        return slot

    def close(self, slot: int) -> None:
        """Give a slot up with all its blocks; costs nothing for each block, they are cleared little by little."""
        slots = (slot, *self._lower.pop(slot, ()))
        self._masks.withdraw(sum(1 << one for one in slots))
        for ours in self._expected.forget(slot):
            self._change(ours, 0, 0)
        for one in slots:
            self._departed[one] = self._passed
            self._gone[one] = True

    def tidy(self, segments: int) -> bool:
        """Clear some segments of what departed slots left; tells whether there is more to do."""
        for _ in range(segments):
            if not self._departed:
                return False
            self._clear(self._passed % self._pairs.segments)
            self._passed += 1
            # Twice round: a split moves entries to a segment with a higher number, but once only out of a cleared one.
            rounds = 2 * self._pairs.segments
            for slot in [one for one, since in self._departed.items() if self._passed - since >= rounds]:
                del self._departed[slot]
                self._gone[slot] = False
                self._free.append(slot)
        return bool(self._departed)

    # ---- what engines tell

    def ours(self, slot: int, theirs: int) -> int | None:
        """Return our hash of the block that the slot's engine calls `theirs`; None if it is not known."""
        place = self._pairs.find(self._pairs.mixed(theirs ^ self._salts[slot]))
        return None if place < 0 else self._pairs.columns[0][place]

    def store(self, slot: int, theirs: int, ours: int, tier: int = 0) -> bool:
        """Take note of one more copy of a block; tells whether there is room for it."""
        pairs = self._pairs
        try:
            place, new = pairs.insert(pairs.mixed(theirs ^ self._salts[slot]))
        except Full:
            self.counts.refused += 1
            return False
        columns = pairs.columns
        before = -1
        if new:
            columns[0][place] = ours
            columns[1][place] = slot
            for column in columns[2:]:
                column[place] = 0
        else:
            ours = columns[0][place]
            before = self._best(place)
        copies = columns[2 + tier]
        if copies[place] < _MOST[tier]:
            copies[place] += 1
        self.counts.stored += 1
        self.counts.confirmed += self._expected.confirm(slot, ours)
        if before < 0 or tier < before:
            self._mark(slot, ours, before, tier)
        self._tick()
        if new and pairs.count > self.capacity:
            self._make_room()
        return True

    def restore(self, slot: int, theirs: int, tier: int) -> bool:
        """Take note of one more copy of a block that is known already, as of one copied to a lower tier."""
        ours = self.ours(slot, theirs)
        return ours is not None and self.store(slot, theirs, ours, tier)

    def remove(self, slot: int, theirs: int, tier: int = 0) -> int | None:
        """Take note that one copy is gone; our hash of the block if the slot holds it no more."""
        pairs = self._pairs
        place = pairs.find(pairs.mixed(theirs ^ self._salts[slot]))
        if place < 0 or not pairs.columns[2 + tier][place]:
            self.counts.unknown += 1
            return None
        self.counts.removed += 1
        before = self._best(place)
        pairs.columns[2 + tier][place] -= 1
        after = self._best(place)
        ours: int = pairs.columns[0][place]
        if after < 0:
            pairs.remove(place)
        if after != before:
            self._mark(slot, ours, before, after)
        return ours if after < 0 else None

    # ---- what is expected

    def expect(self, slot: int, hashes: Sequence[int], until: float) -> None:
        """Count the slot as a holder of these blocks until then, or until its engine tells of them."""
        bit = 1 << slot

        def take(ours: int) -> bool:
            return not self._holding(ours) & bit and self._change(ours, bit, 0)

        self.counts.expected += self._expected.add(slot, hashes, until, take)

    def expire(self, now: float) -> None:
        """Drop what was expected and did not come."""
        for slot, ours in self._expected.expire(now):
            self._change(ours, 0, 1 << slot)
            self.counts.expired += 1

    # ---- looking up

    def runs(self, hashes: NDArray[np.uint64], *, to_the_end: bool = False) -> list[Run]:
        """Return who holds the chain's blocks, from its start on; ends where nobody holds all so far.

        `to_the_end`: go on behind that point.
        """
        table, of = self._holders, self._masks.of
        numbers, used = table.arrays
        runs: list[Run] = []
        if not len(hashes) or (not to_the_end and table.find(table.mixed(int(hashes[0]))) < 0):
            return runs
        left = -1  # slots that hold all so far
        now = self._changes // _TICK & 0xFFFF
        crowded = 2 * self._pairs.count > self.capacity  # before that nothing asks who was used when
        for begin in range(0, len(hashes), _CHUNK):
            places = table.find_many(table.mixed_many(hashes[begin : begin + _CHUNK]))
            found = numbers.take(places, mode="wrap")
            missing = places < 0
            if missing.any():
                found[missing] = EMPTY
                places = places[~missing]
            if crowded:
                used[places] = now
            changes = np.flatnonzero(found[1:] != found[:-1]) + 1
            starts = [0, *changes.tolist()]
            first = [int(found[0]), *found.take(changes).tolist()]
            for at, end, number in zip(starts, [*starts[1:], len(found)], first, strict=True):
                holders = of[number]
                left &= holders
                if not (left or to_the_end):
                    return runs
                runs.append(Run(begin + at, begin + end, holders))
        return runs

    def depths(self, runs: Sequence[Run]) -> NDArray[np.int64]:
        """Count, for each slot, the blocks in a row that it holds from the chain's start; shape (slots,)."""
        depths = np.zeros(len(self._salts), dtype=np.int64)
        if not runs:
            return depths
        left = runs[0].holders
        for begin, _end, holders in runs:
            here = left & holders
            if here != left:
                bits.write(depths, left & ~here, begin)
                left = here
                if not left:
                    return depths
        bits.write(depths, left, runs[-1].end)
        return depths

    def lower(self, slot: int, runs: Sequence[Run], depth: int) -> tuple[int, ...]:
        """Count the blocks among the first `depth` that the slot holds in a lower tier only: (CPU, disk)."""
        marks = self._lower.get(slot, ())
        counts = [0] * (TIERS - 1)
        for begin, end, holders in runs:
            if begin >= depth:
                break
            for tier, mark in enumerate(marks):
                if holders >> mark & 1:
                    counts[tier] += min(end, depth) - begin
        return tuple(counts)

    # ---- the two tables

    def _best(self, place: int) -> int:
        """Return the best tier that has a copy, -1 if none has."""
        for tier, column in enumerate(self._pairs.columns[2:]):
            if column[place]:
                return tier
        return -1

    def _mark(self, slot: int, ours: int, before: int, after: int) -> None:
        """Note in the block's holders that its best tier in this slot has changed; -1 is none."""
        on = off = 0
        if after < 0:
            off = 1 << slot
        elif before < 0:
            on = 1 << slot
        if before > 0:
            off |= 1 << self._lower[slot][before - 1]
        if after > 0:
            if slot not in self._lower:
                self._lower[slot] = tuple(self.open() for _tier in range(TIERS - 1))
            on |= 1 << self._lower[slot][after - 1]
        self._change(ours, on, off)

    def _holding(self, ours: int) -> int:
        place = self._holders.find(self._holders.mixed(ours))
        return 0 if place < 0 else self._masks.of[self._holders.columns[0][place]]

    def _change(self, ours: int, on: int, off: int) -> bool:
        """Put slots into a block's set of holders, and take slots out; False if there is no room."""
        table, masks = self._holders, self._masks
        key = table.mixed(ours)
        numbers, used = table.columns
        if on:
            try:
                place, new = table.insert(key)
            except Full:
                self.counts.refused += 1
                return False
            if new:
                numbers[place] = masks.keep(on)
                used[place] = self._changes // _TICK & 0xFFFF
                return True
            used[place] = self._changes // _TICK & 0xFFFF
        else:
            place = table.find(key)
            if place < 0:
                return True
        number = numbers[place]
        mask = masks.of[number]
        after = (mask | on) & ~off
        if after != mask:
            if after:
                numbers[place] = masks.keep(after)
            else:
                table.remove(place)
            masks.release(number)
        elif not after:
            table.remove(place)
            masks.release(number)
        return True

    # ---- room

    def _tick(self) -> None:
        self._changes += 1
        if self._departed and not self._changes % _TIDY_EVERY:
            self.tidy(1)

    def _make_room(self) -> None:
        """Evict down to the bound."""
        empty = 0
        while self._pairs.count > self.capacity and empty <= self._pairs.segments:
            segment = self._passed % self._pairs.segments
            self._clear(segment)
            empty = 0 if self._evict(segment) else empty + 1
            self._passed += 1

    def _entries(self, segment: int) -> NDArray[np.int64]:
        begin = segment * SEGMENT
        return np.flatnonzero(self._pairs.keys[begin : begin + SEGMENT]) + begin

    def _clear(self, segment: int) -> None:
        """Remove the entries of departed slots; a block that nobody holds any more goes with them."""
        if not self._departed:
            return
        places = self._entries(segment)
        ours, slots = self._pairs.arrays[:2]
        gone = places[self._gone[slots[places]]]
        for key, block in zip(self._pairs.keys[gone].tolist(), ours[gone].tolist(), strict=True):
            self._pairs.remove(self._pairs.find(key))
            self._change(block, 0, 0)

    def _evict(self, segment: int) -> int:
        """Remove the least recently used entries of a segment; how many."""
        places = self._entries(segment)
        if not len(places):
            return 0
        pairs = self._pairs
        blocks = pairs.arrays[0][places]
        held = self._holders.find_many(self._holders.mixed_many(blocks))
        now = self._changes // _TICK & 0xFFFF
        age = (now - self._holders.arrays[1][held].astype(np.int64)) & 0xFFFF
        age[held < 0] = 0x10000
        number = max(1, min(len(places) // _SHARE, pairs.count - self.capacity + len(places) // (2 * _SHARE)))
        oldest = np.argsort(-age, kind="stable")[:number]
        for key in pairs.keys[places[oldest]].tolist():
            place = pairs.find(key)
            ours, slot, best = pairs.columns[0][place], pairs.columns[1][place], self._best(place)
            pairs.remove(place)
            self._mark(slot, ours, best, -1)
            self.counts.evicted += 1
        return number
