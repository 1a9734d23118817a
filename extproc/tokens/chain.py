"""The chain over token ids: one definition, used for prompts here and for the blocks that engines tell of.

Block i's hash is xxh3_64 of its ids as little-endian uint32, seeded with the hash of block i-1, so it covers blocks
0..i. The root is xxh3_64 of the cache salt, seeded with xxh3_64 of the model as the engine knows it (a LoRA adapter is a
model of its own): what never shares a cache never shares a hash. Ids need no separator between blocks, as all blocks of
a chain have one size.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

import numpy as np
from xxhash import xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    TokenIds = NDArray[np.uint32]

_ID_BYTES: Final = 4


def root(model: str, salt: str = "") -> int:
    """Return what precedes the first block of `model` under `salt`."""
    return xxh3_64_intdigest(as_bytes(salt), xxh3_64_intdigest(as_bytes(model)))


def chain(ids: TokenIds, previous: int, block_tokens: int, most: int | None = None) -> list[int]:
    """Return the hashes of the full blocks of `ids` that follow the block `previous` (or a root), `most` at most.

    640 blocks of 16 take 60 µs.
    """
    full = len(ids) // block_tokens
    if most is not None and full > most:
        full = most
    size = block_tokens * _ID_BYTES
    digest = xxh3_64_intdigest
    blocks = Struct(f"{size}s").iter_unpack(packed(ids).view(np.uint8).data[: full * size])
    return [previous := digest(block, previous) for (block,) in blocks]


def packed(ids: Sequence[int] | TokenIds) -> TokenIds:
    """Return ids as the chain hashes them: little-endian, contiguous. Raises ValueError for what is no token id."""
    try:
        return np.ascontiguousarray(ids, dtype="<u4")
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"not token ids: {error}") from error


def as_bytes(text: str) -> bytes:
    """UTF-8, also of the lone surrogates that JSON's escapes can spell."""
    return text.encode("utf-8", "surrogatepass")
