"""The prefix cache: fixed blocks of KV memory, found again by the hash of everything up to their end.

It follows vLLM's block pool: only full blocks are cached; a freed block keeps its content until it is the least recently
freed one and memory is needed; two sequences that fill equal blocks at the same time keep one each; a prompt is never served
whole from the cache, because its last token has to be computed. Block 0 is reserved, as it is there.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from array import array


@dataclass(frozen=True, slots=True)
class Origin:
    """What keeps equal tokens apart: the adapter and the tenant's salt. Its `seed` starts the hash chain."""

    lora: str | None = None
    lora_id: int | None = None
    salt: str | None = None

    @property
    def seed(self) -> int:
        """First parent of the chain."""
        return xxh3_64_intdigest(f"{self.lora or ''}\0{self.salt or ''}".encode())


@dataclass(frozen=True, slots=True)
class Stored:
    """Consecutive blocks of one sequence became findable."""

    hashes: tuple[int, ...]
    parent: int | None
    tokens: "array[int]"
    origin: Origin
    starts_sequence: bool


@dataclass(frozen=True, slots=True)
class Removed:
    """A block's content was given up."""

    block_hash: int


@dataclass(frozen=True, slots=True)
class Cleared:
    """Everything cached was given up."""


CacheEvent = Stored | Removed | Cleared


def chain(tokens: "array[int]", block_size: int, seed: int, known: list[int]) -> None:
    """Extend `known`, the hashes of the leading full blocks of `tokens`, to all of its full blocks."""
    view = memoryview(tokens).cast("B")
    width = block_size * tokens.itemsize
    parent = known[-1] if known else seed
    for start in range(len(known) * width, len(tokens) // block_size * width, width):
        parent = xxh3_64_intdigest(view[start : start + width], parent)
        known.append(parent)


class Blocks:
    """All KV blocks of one engine: who uses them, what they hold, which go first."""

    def __init__(self, count: int, block_size: int, *, record_events: bool = False) -> None:
        self.block_size = block_size
        self.total = count - 1
        self.events: list[CacheEvent] = []
        self._record = record_events
        self._users = [0] * count
        self._hash_of: list[int | None] = [None] * count
        self._cached: dict[int, list[int]] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, count))

    @property
    def free(self) -> int:
        """Blocks that nobody uses; they may still hold a prefix."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Different prefixes that can be found."""
        return len(self._cached)

    @property
    def usage(self) -> float:
        """Share of blocks in use, 0 to 1."""
        return 1.0 - len(self._free) / self.total

    def longest_hit(self, hashes: Sequence[int], token_count: int) -> list[int]:
        """Blocks that hold the longest cached prefix, at least one token short of the whole."""
        hit = []
        for block_hash in hashes[: (token_count - 1) // self.block_size]:
            holders = self._cached.get(block_hash)
            if holders is None:
                break
            hit.append(holders[0])
        return hit

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these nobody uses now: using them takes them from the free ones."""
        return sum(1 for block in blocks if not self._users[block])

    def share(self, blocks: Sequence[int]) -> None:
        """Use blocks that hold a prefix already."""
        for block in blocks:
            if not self._users[block]:
                del self._free[block]
            self._users[block] += 1

    def take(self, count: int) -> list[int]:
        """Use `count` empty blocks, the least recently freed first; the caller has looked that there are as many."""
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Stop using blocks; the end of a sequence is given up before its beginning."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._free[block] = None

    def store(
        self, blocks: Sequence[int], hashes: Sequence[int], span: range, tokens: "array[int]", origin: Origin
    ) -> None:
        """Make a sequence's blocks number `span` findable; they are full now."""
        for i in span:
            self._hash_of[blocks[i]] = hashes[i]
            self._cached.setdefault(hashes[i], []).append(blocks[i])
        if self._record:
            size = self.block_size
            self.events.append(
                Stored(
                    hashes=tuple(hashes[span.start : span.stop]),
                    parent=hashes[span.start - 1] if span.start else None,
                    tokens=tokens[span.start * size : span.stop * size],
                    origin=origin,
                    starts_sequence=span.start == 0,
                )
            )

    def clear(self) -> bool:
        """Forget every prefix; refused while any block is in use."""
        if len(self._free) != self.total:
            return False
        self._cached.clear()
        self._hash_of = [None] * len(self._hash_of)
        if self._record:
            self.events.append(Cleared())
        return True

    def take_events(self) -> list[CacheEvent]:
        """Give what happened since the last call."""
        events, self.events = self.events, []
        return events

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is None:
            return
        self._hash_of[block] = None
        holders = self._cached[block_hash]
        holders.remove(block)
        if not holders:
            del self._cached[block_hash]
        if self._record:
            self.events.append(Removed(block_hash))
