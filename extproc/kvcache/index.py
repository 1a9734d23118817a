"""The prefix index: which endpoints hold which block, learned from our own decisions.

Block hash -> Python int used as a set of bits: bit 0 says that another block followed in some chain, bit s that the
endpoint in slot s holds it. An endpoint's row in the table is given a slot when it first learns; leaving costs one bit
in a mask, and the slot's blocks are cleared away little by little before the slot is given again.

Every endpoint keeps its blocks in least-recently-used order, and a learned chain is refreshed from its end to its
start, as engines free their blocks: what is evicted is always the end of a chain, so whoever holds block i holds
0..i-1. Lookup relies on it: equal masks at both ends of a stretch mean equal masks between. 640 blocks over 256
endpoints take 10 to 16 µs, and 130 µs if every endpoint holds another length; learning them again takes 20 µs, learning
them anew about 100.

Memory is about 90 bytes for each (endpoint, block) pair and 140 more for each distinct block: at most 230 MB at the
default bound of a million pairs, 30 MB for four full endpoints.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import numpy as np

from extproc.kvcache import bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_CONTINUED = 1  # bit 0
_JUMP = 32  # blocks skipped at once where both ends agree: 20 jumps over 640 blocks, at most 32 steps at each change
_SWEEP = 256  # blocks of departed endpoints cleared per learned chain, some 30 µs


class PrefixIndex:
    """Who holds which block. One owner; written on the loop only."""

    def __init__(self, *, per_endpoint: int = 31_250, total: int = 1_000_000) -> None:
        """`per_endpoint`: blocks remembered for each, upstream's 31,250 (half a million tokens in blocks of 16).

        `total`: (endpoint, block) pairs over all, which bounds memory; the fullest endpoint gives way.
        """
        if per_endpoint < 1 or total < 1:
            raise ValueError("bounds of the prefix index must be at least 1")
        self.per_endpoint = per_endpoint
        self.total = total
        self._holders: dict[int, int] = {}
        self._slots: dict[int, int] = {}  # row -> slot
        self._held: dict[int, OrderedDict[int, None]] = {}  # slot -> its blocks, least recently used first
        self._departed: list[int] = []  # slots whose blocks are still to be cleared
        self._free: list[int] = []
        self._live = 0  # mask of the slots in use
        self._pairs = 0
        self._slot_of_row: NDArray[np.intp] = np.zeros(64, dtype=np.intp)  # 0: no slot

    @property
    def blocks(self) -> int:
        """Distinct blocks in memory."""
        return len(self._holders)

    @property
    def pairs(self) -> int:
        """(endpoint, block) pairs in memory, those of departed endpoints that are not cleared yet included."""
        return self._pairs

    def held(self, row: int) -> int:
        """Count the blocks remembered for the endpoint in `row`."""
        slot = self._slots.get(row)
        return 0 if slot is None else len(self._held[slot])

    def match(self, hashes: Sequence[int], rows: NDArray[np.intp]) -> NDArray[np.int64]:
        """Count, for each of `rows`, the blocks at the chain's start that it holds; shape of `rows`."""
        holders = self._holders
        live = self._live
        mask = holders.get(hashes[0], 0) & live if hashes else 0
        if not mask:
            return np.zeros(len(rows), dtype=np.int64)
        counts = np.zeros(len(self._held) + 1, dtype=np.int64)
        last = len(hashes) - 1
        at = 0  # the mask at `at` is `mask`
        while at < last:
            jump = min(at + _JUMP, last)
            if holders.get(hashes[jump], 0) & live == mask:
                at = jump
                continue
            for step in range(at + 1, jump + 1):
                here = holders.get(hashes[step], 0) & live
                if here != mask:
                    bits.write(counts, mask & ~here, step)
                    mask = here
            at = jump
            if not mask:
                break
        if mask:
            bits.write(counts, mask, last + 1)
        return counts[self._slots_of(rows)]

    def trunk(self, hashes: Sequence[int]) -> int:
        """Count the blocks at the chain's start from which something learned before goes on.

        An endpoint that holds more than this holds an earlier request up to its end; one that holds no more only
        shares a beginning with others, such as a system prompt.
        """
        return self._depth(hashes, _CONTINUED)

    def learn(self, hashes: Sequence[int], row: int) -> None:
        """Remember that the endpoint in `row` holds the chain `hashes`, from the prefix's first block on."""
        if self._departed:
            self._sweep(_SWEEP)
        if not hashes:
            return
        slot = self._slots.get(row)
        if slot is None:
            slot = self._take_slot(row)
        held = self._held[slot]
        before = len(held)
        bit = 1 << slot
        known = self._depth(hashes, bit)
        continued = len(hashes) - 1  # all but the last
        self._add(hashes[max(known, continued) :], bit, held)
        self._add(hashes[known:continued], bit | _CONTINUED, held)
        for block in reversed(hashes[: min(known, continued)]):
            mask = self._holders.get(block, _CONTINUED)
            if mask & _CONTINUED:
                break
            self._holders[block] = mask | _CONTINUED
        if known:
            try:
                deque(map(held.move_to_end, reversed(hashes[:known])), maxlen=0)
            except KeyError:  # two different blocks share a hash: chance, or a client that made them
                self._add(hashes[:known], bit, held)
        self._pairs += len(held) - before
        if len(held) > self.per_endpoint:
            self._evict(slot, len(held) - self.per_endpoint)
        if self._pairs > self.total:
            self._make_room()

    def forget(self, row: int) -> None:
        """Drop what is known of the endpoint in `row`: it left, or its cache is gone. Takes constant time."""
        slot = self._slots.pop(row, None)
        if slot is not None:
            self._live &= ~(1 << slot)
            self._slot_of_row[row] = 0
            self._departed.append(slot)

    def resize(self, *, per_endpoint: int, total: int) -> None:
        """Change the bounds, as after a reload of the configuration; what is over them goes at once."""
        if per_endpoint < 1 or total < 1:
            raise ValueError("bounds of the prefix index must be at least 1")
        self.per_endpoint = per_endpoint
        self.total = total
        for slot, held in self._held.items():
            self._evict(slot, len(held) - per_endpoint)
        if self._pairs > total:
            self._make_room()

    def _depth(self, hashes: Sequence[int], bit: int) -> int:
        """Count the blocks at the chain's start whose mask has `bit`: no mask behind them has it."""
        holders = self._holders
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) // 2
            if holders.get(hashes[middle], 0) & bit:
                low = middle + 1
            else:
                high = middle
        return low

    def _add(self, hashes: Sequence[int], mark: int, held: OrderedDict[int, None]) -> None:
        """Note `mark` on the blocks, the last first."""
        holders = self._holders
        for block in reversed(hashes):
            holders[block] = holders.get(block, 0) | mark
            held[block] = None

    def _slots_of(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        try:
            return self._slot_of_row[rows]
        except IndexError:  # rows that have never learned
            self._grow(int(rows.max()))
            return self._slot_of_row[rows]

    def _take_slot(self, row: int) -> int:
        if row >= len(self._slot_of_row):
            self._grow(row)
        slot = self._free.pop() if self._free else len(self._held) + 1
        self._held[slot] = OrderedDict()
        self._slots[row] = slot
        self._slot_of_row[row] = slot
        self._live |= 1 << slot
        return slot

    def _grow(self, row: int) -> None:
        grown = np.zeros(max(2 * len(self._slot_of_row), row + 1), dtype=np.intp)
        grown[: len(self._slot_of_row)] = self._slot_of_row
        self._slot_of_row = grown

    def _evict(self, slot: int, count: int) -> None:
        held = self._held[slot]
        holders = self._holders
        keep = ~(1 << slot)
        for _ in range(count):
            block, _none = held.popitem(last=False)
            mask = holders[block] & keep
            if mask > _CONTINUED:
                holders[block] = mask
            else:
                del holders[block]
        self._pairs -= max(count, 0)

    def _make_room(self) -> None:
        """Evict down to `total`: first what departed endpoints left, then the oldest of the fullest."""
        self._sweep(self._pairs - self.total)
        while self._pairs > self.total:
            fullest = max(self._slots.values(), key=lambda slot: len(self._held[slot]))
            over = self._pairs - self.total
            self._evict(fullest, min(over, len(self._held[fullest])))

    def _sweep(self, count: int) -> None:
        """Clear at most `count` blocks of departed endpoints; a slot that is clean can be given again."""
        while self._departed and count > 0:
            slot = self._departed[-1]
            some = min(count, len(self._held[slot]))
            self._evict(slot, some)
            count -= some
            if not self._held[slot]:
                self._departed.pop()
                self._free.append(slot)
