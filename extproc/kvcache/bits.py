"""Python ints as sets of slots, written into arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEW: Final = 8  # up to so many slots are written one by one; more as an array of bits


def write(depths: NDArray[np.int64], mask: int, depth: int) -> None:
    """Set `depths` to `depth` for every slot in `mask`."""
    if mask.bit_count() <= _FEW:
        while mask:
            low = mask & -mask
            depths[low.bit_length() - 1] = depth
            mask ^= low
    else:
        raw = np.frombuffer(mask.to_bytes((mask.bit_length() + 7) // 8, "little"), dtype=np.uint8)
        bits = np.unpackbits(raw, bitorder="little", count=mask.bit_length())
        depths[bits.nonzero()[0]] = depth
