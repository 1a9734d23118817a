"""How bytes may arrive: cut into pieces, each of them in slices."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Sequence

# Places (counted around the end), or the length of every piece.
cuts = st.lists(st.integers(0, 1 << 16), max_size=12) | st.integers(1, 40)
sizes = st.lists(st.integers(1, 24), max_size=20) | st.integers(1, 40)
MOST = 40  # slices of a piece


def pieces(data: bytes, cuts: list[int] | int, sizes: Sequence[int] | int = ()) -> list[list[bytes]]:
    """Cut the data; each piece is slices of these sizes (a number: all of that size, up to MOST), and one of the rest."""
    inner = range(cuts, len(data), cuts) if isinstance(cuts, int) else {place % (len(data) + 1) for place in cuts}
    at = sorted({0, *inner, len(data)})
    return [sliced(data[start:end], sizes) for start, end in itertools.pairwise(at)]


def sliced(piece: bytes, sizes: Sequence[int] | int) -> list[bytes]:
    slices = []
    for size in [sizes] * MOST if isinstance(sizes, int) else sizes:
        if len(piece) > size:
            slices.append(piece[:size])
            piece = piece[size:]
    return [*slices, piece]
