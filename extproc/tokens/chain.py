"""The chain over token ids: one definition, used for prompts here and for the blocks that engines tell of.

Block i's hash is xxh3_64 of its ids as little-endian uint32, seeded with the hash of block i-1, so it covers blocks
0..i. The root is xxh3_64 of the cache salt, seeded with xxh3_64 of the model as the engine knows it (a LoRA adapter is a
model of its own): what never shares a cache never shares a hash. Ids need no separator between blocks, as all blocks of
a chain have one size.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from struct import Struct
from typing import TYPE_CHECKING, Final

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    TokenIds = NDArray[np.uint32]

_ID_BYTES: Final = 4
_STRETCH: Final = 128  # blocks


def root(model: str, salt: str = "") -> int:
    """Return what precedes the first block of `model` under `salt`."""
    return xxh3_64_intdigest(as_bytes(salt), xxh3_64_intdigest(as_bytes(model)))


def chain(ids: TokenIds, previous: int, block_tokens: int, most: int | None = None) -> list[int]:
    """Return the hashes of the full blocks of `ids` that follow the block `previous` (or a root), `most` at most.

    640 blocks of 16 take 60 µs.
    """
    return hashed(as_blocks(ids, block_tokens, most), previous, block_tokens * _ID_BYTES)


def as_blocks(ids: TokenIds, block_tokens: int, most: int | None = None) -> memoryview[int]:
    """Return the bytes of the full blocks of `ids`, of `most` at most."""
    full = len(ids) // block_tokens
    if most is not None and full > most:
        full = most
    return packed(ids).view(np.uint8).data[: full * block_tokens * _ID_BYTES]


def hashed(blocks: memoryview[int], previous: int, size: int) -> list[int]:
    """Return the hashes of blocks of `size` bytes, the first of which follows the block `previous`."""
    digest = xxh3_64_intdigest
    return [previous := digest(block, previous) for (block,) in Struct(f"{size}s").iter_unpack(blocks)]


class Stretches:
    """The hashes of long stretches of blocks that came before: 640 known blocks take 5 µs instead of 50.

    A stretch is known by its bytes and the block before it. The least recently used is forgotten first; 4096 stretches are
    half a million blocks in some 25 MB.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._known: OrderedDict[bytes, tuple[list[int], array[int]]] = OrderedDict()

    def chain(
        self, ids: TokenIds, previous: int, block_tokens: int, most: int | None = None
    ) -> tuple[list[int], array[int]]:
        """Return what the function `chain` returns, and the same as an array, which costs nothing to make here."""
        return self._both(as_blocks(ids, block_tokens, most), previous, block_tokens * _ID_BYTES)

    def hashed(self, blocks: memoryview[int], previous: int, size: int) -> list[int]:
        """Return what the function `hashed` returns."""
        return self._both(blocks, previous, size)[0]

    def _both(self, blocks: memoryview[int], previous: int, size: int) -> tuple[list[int], array[int]]:
        step = _STRETCH * size
        whole = len(blocks) - len(blocks) % step
        known = self._known
        hashes: list[int] = []
        words = array("Q")
        for begin in range(0, whole, step):
            stretch = blocks[begin : begin + step]
            key = xxh3_128_digest(stretch, previous ^ size)
            found = known.get(key)
            if found is None:
                made = hashed(stretch, previous, size)
                found = known[key] = made, array("Q", made)
                if len(known) > self._most:
                    known.popitem(last=False)
            else:
                known.move_to_end(key)
            hashes += found[0]
            words += found[1]
            previous = found[0][-1]
        if whole < len(blocks):
            rest = hashed(blocks[whole:], previous, size)
            hashes += rest
            words.extend(rest)
        return hashes, words


def packed(ids: Sequence[int] | TokenIds) -> TokenIds:
    """Return ids as the chain hashes them: little-endian, contiguous. Raises ValueError for what is no token id."""
    try:
        return np.ascontiguousarray(ids, dtype="<u4")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"not token ids: {error}") from error


def as_bytes(text: str) -> bytes:
    """UTF-8, also of the lone surrogates that JSON's escapes can spell."""
    return text.encode("utf-8", "surrogatepass")
