"""A hash table of 64-bit keys with typed columns, in a few large arrays: some 20 bytes an entry where a dict takes 100.

Extendible hashing: the upper bits of a key choose a segment through a directory, a segment is a small open table of its own
with linear probing, and one that fills up is split in two. So the table grows by one segment at a time, and no insertion
waits for a copy of everything. The arrays are reserved at once and filled from the front, and memory that was never
written costs nothing.

Single keys are found through memoryviews (some 0.4 µs), hundreds at once through numpy (some 40 ns each). A position is
good until the next insertion or removal. Keys are mixed with a secret multiplier, so that nobody can choose keys that meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SEGMENT: Final = 512  # slots; keys of a segment are one page of memory
_FULL: Final = 410  # entries at which a segment is split: beyond 80 % probes become long
_BUCKET: Final = 16  # probes begin at multiples of it: two cache lines of keys, where 19 of 20 keys are found
_BUCKETS: Final = SEGMENT // _BUCKET - 1  # mask
_BUCKETS_WORD: Final = np.uint64(_BUCKETS)
_WRAP: Final = SEGMENT - 1
_DEEPEST: Final = 24  # bits of the directory
_WORD: Final = (1 << 64) - 1


class Full(Exception):
    """There is no room: the reserve is used up, or one segment cannot be split further."""


class Table:
    """Keys and their columns. Values are written through `columns`, at the positions that `insert` and `find` give."""

    def __init__(self, columns: Sequence[type[np.generic]], *, capacity: int, secret: int) -> None:
        """`capacity`: entries that must fit; `secret`: 64 bits of chance."""
        segments = max(2 * capacity // _FULL + 2, 4)  # segments are half full or fuller, but for chance
        self._limit = segments + segments // 4
        slots = self._limit * SEGMENT
        self._secret = secret & _WORD | 1
        self._factor = np.uint64(self._secret)
        self.keys: NDArray[np.uint64] = np.zeros(slots, dtype=np.uint64)
        self.arrays: tuple[NDArray[Any], ...] = tuple(np.zeros(slots, dtype=kind) for kind in columns)
        self.columns: tuple[memoryview, ...] = tuple(array.data for array in self.arrays)
        self._buckets = self.keys.reshape(-1, _BUCKET)
        self._key = self.keys.data
        self._depth = 1
        self._depths = [1, 1]  # of each segment: how many bits its keys share
        self._fill = [0, 0]
        self._use_directory(np.array([0, 1], dtype=np.int64))
        self.count = 0

    @property
    def segments(self) -> int:
        """Segments in use; they are numbered from 0, and a split gives the higher half the next number."""
        return len(self._fill)

    @property
    def memory(self) -> int:
        """Bytes of the segments in use and of the directory."""
        slot = self.keys.itemsize + sum(array.itemsize for array in self.arrays)
        return self.segments * SEGMENT * slot + self._directory.nbytes

    def mixed(self, key: int) -> int:
        """Return the form under which `key` is kept; the others of these methods take and give this form."""
        return (key * self._secret) & _WORD or 1

    def mixed_many(self, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the same for many keys."""
        mixed = keys * self._factor
        if not mixed.all():
            mixed[mixed == 0] = 1
        return mixed

    def find(self, key: int) -> int:
        """Return the position of `key`, -1 if it is not there."""
        keys = self._key
        at = self._lookup[key >> self._shift] << 9 | (key & _BUCKETS) << 4
        while there := keys[at]:
            if there == key:
                return at
            at += 1
            if not at & _WRAP:
                at -= SEGMENT
        return -1

    def find_many(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the positions of many keys, -1 for those that are not there."""
        base = self._directory.take((keys >> self._shift_word).astype(np.intp)) << 5
        home = (keys & _BUCKETS_WORD).astype(np.intp)
        buckets = base + home
        there = self._buckets.take(buckets, axis=0)
        hits = np.flatnonzero(there == keys[:, None])
        which = hits >> 4
        places = np.full(len(keys), -1, dtype=np.int64)
        places[which] = (buckets.take(which) << 4) + (hits & 15)
        if len(hits) == len(keys):
            return places
        beyond = np.flatnonzero((places < 0) & (there[:, -1] != 0))  # their home bucket is full: look further
        steps = 0
        while len(beyond):
            steps += 1
            wanted = keys.take(beyond)
            buckets = base.take(beyond) + ((home.take(beyond) + steps) & _BUCKETS)
            there = self._buckets.take(buckets, axis=0)
            same = there == wanted[:, None]
            hits = np.flatnonzero(same)
            which = hits >> 4
            places[beyond.take(which)] = (buckets.take(which) << 4) + (hits & 15)
            if len(hits) == len(beyond):
                break
            beyond = beyond[(there[:, -1] != 0) & ~same.any(axis=1)]
        return places

    def insert(self, key: int) -> tuple[int, bool]:
        """Return the position of `key`, and whether it is new there; its columns then hold anything. Raises Full."""
        keys = self._key
        segment = self._lookup[key >> self._shift]
        at = segment << 9 | (key & _BUCKETS) << 4
        while there := keys[at]:
            if there == key:
                return at, False
            at += 1
            if not at & _WRAP:
                at -= SEGMENT
        if self._fill[segment] >= _FULL:
            self._split(segment)
            return self.insert(key)
        keys[at] = key
        self._fill[segment] += 1
        self.count += 1
        return at, True

    def remove(self, position: int) -> None:
        """Take the entry out; others move up, so that no gap hides them."""
        keys = self._key
        base, hole = position & ~_WRAP, position & _WRAP
        # Within one bucket any entry may take any place: their probes began no later than the bucket does.
        end = hole | (_BUCKET - 1)
        at = hole
        while at < end and keys[base + at + 1]:
            at += 1
        if at != hole:
            self._move(base + at, base + hole)
        if at == end:
            at = self._move_up(base, at)
        keys[base + at] = 0
        self._fill[base >> 9] -= 1
        self.count -= 1

    def _move_up(self, base: int, hole: int) -> int:
        """Fill a full bucket's last place with what ran over from it or from those before; the place left empty."""
        keys = self._key
        at = hole
        while key := keys[base + (at := (at + 1) & _WRAP)]:
            home = (key & _BUCKETS) << 4
            if (at - home) & _WRAP >= (at - hole) & _WRAP:
                self._move(base + at, base + hole)
                hole = at
        return hole

    def _move(self, source: int, target: int) -> None:
        self._key[target] = self._key[source]
        for column in self.columns:
            column[target] = column[source]

    def _use_directory(self, directory: NDArray[np.int64]) -> None:
        self._directory = directory
        self._lookup = directory.data
        self._shift = 64 - self._depth
        self._shift_word = np.uint64(self._shift)

    def _split(self, segment: int) -> None:
        """Move the entries whose next bit is set to a new segment."""
        depth = self._depths[segment]
        if self.segments >= self._limit or depth >= _DEEPEST:
            raise Full
        if depth == self._depth:
            self._depth += 1
            self._use_directory(np.repeat(self._directory, 2))
        new = self.segments
        self._depths[segment] = depth + 1
        self._depths.append(depth + 1)
        self._fill.append(0)
        begin = segment << 9
        part = slice(begin, begin + SEGMENT)
        used = np.flatnonzero(self.keys[part])
        keys = self.keys[part][used]
        values = [array[part][used] for array in self.arrays]
        upper = (keys >> np.uint64(63 - depth)) & np.uint64(1) == 1
        self.keys[part] = 0
        width = 1 << (self._depth - depth)
        first = (int(keys[0]) >> (64 - depth)) * width
        self._directory[first + width // 2 : first + width] = new
        for target, chosen in ((segment, ~upper), (new, upper)):
            moved = keys[chosen]
            places = _places(moved.tolist())
            places += target << 9
            self.keys[places] = moved
            for array, value in zip(self.arrays, values, strict=True):
                array[places] = value[chosen]
            self._fill[target] = len(moved)


def _places(keys: list[int]) -> NDArray[np.int64]:
    """Lay keys into an empty segment; their places in it."""
    taken = bytearray(SEGMENT)
    places = []
    for key in keys:
        at = taken.find(0, (key & _BUCKETS) << 4)
        if at < 0:
            at = taken.find(0)
        taken[at] = 1
        places.append(at)
    return np.array(places, dtype=np.int64)
