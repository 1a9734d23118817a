"""Blocks that are smaller than ours: several of the engine's make one of ours, which is held while all of them are.

A part is known by the engine's hash. It remembers the tokens since the last of our blocks ended, so that the part which
fills a block can name it. Plain dicts, some 500 bytes a part: engines with such blocks are few, and SGLang's pages can be
made as large as our blocks (`--page-size 16`).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.kvcache.blocks import BlockIndex


@dataclass(slots=True)
class _Part:
    before: int  # our hash of the last whole block before this part, or the chain's root
    tokens: array[int]  # since that block ended, this part's included
    parent: int | None  # the part before, if it is of the same block of ours
    ours: int | None  # the block that this part fills
    copies: int = 1


class Parts:
    """The parts that one group of one engine holds; what they make goes to the index."""

    def __init__(
        self,
        index: BlockIndex,
        slot: int,
        *,
        blocks: Callable[[Sequence[int], int, int], list[int]],
        block_tokens: int,
    ) -> None:
        """`blocks(tokens, previous, block_tokens)` are the hashes of our chain; `block_tokens` is our block's size."""
        self._index = index
        self._slot = slot
        self._blocks = blocks
        self._block_tokens = block_tokens
        self._parts: dict[int, _Part] = {}
        self._children: dict[int, set[int]] = {}  # within one block of ours; of parts that are gone as well

    def knows(self, theirs: int) -> bool:
        """Tell whether a part can be gone on from."""
        return theirs in self._parts

    def store(self, theirs: int, parent: int | None, tokens: Sequence[int], root: int) -> None:
        """Take one more copy of a part that follows `parent` (None: the chain's `root`), which must be known."""
        known = self._parts.get(theirs)
        if known is not None:
            known.copies += 1
            return
        before, earlier, inner = root, array("I"), None
        if parent is not None:
            last = self._parts[parent]
            if last.ours is None:
                before, earlier, inner = last.before, last.tokens, parent
            else:
                before = last.ours
        sofar = earlier + array("I", tokens)
        ours = self._blocks(sofar, before, self._block_tokens)[0] if len(sofar) == self._block_tokens else None
        self._parts[theirs] = _Part(before, sofar if ours is None else array("I"), inner, ours)
        if inner is not None:
            self._children.setdefault(inner, set()).add(theirs)
        for one in self._fillers(theirs):
            if self._whole(one):
                self._index.store(self._slot, one, self._named(one))

    def remove(self, theirs: int) -> bool:
        """Take that one copy is gone; False if none was known."""
        part = self._parts.get(theirs)
        if part is None:
            return False
        part.copies -= 1
        if part.copies:
            return True
        for one in self._fillers(theirs):
            if self._whole(one):
                self._index.remove(self._slot, one)
        del self._parts[theirs]
        if part.parent is not None:
            siblings = self._children[part.parent]
            siblings.discard(theirs)
            if not siblings:
                del self._children[part.parent]
        return True

    def _fillers(self, theirs: int) -> list[int]:
        """Return the parts that fill a block of ours and need this one; itself if it does."""
        found: list[int] = []
        open_ = [theirs]
        while open_:
            one = open_.pop()
            part = self._parts.get(one)
            if part is None:
                continue
            if part.ours is not None:
                found.append(one)
            open_ += self._children.get(one, ())
        return found

    def _whole(self, theirs: int) -> bool:
        """Tell whether all parts up to this one are there."""
        at: int | None = theirs
        while at is not None:
            part = self._parts.get(at)
            if part is None:
                return False
            at = part.parent
        return True

    def _named(self, theirs: int) -> int:
        ours = self._parts[theirs].ours
        if ours is None:
            raise LookupError("the part fills no block")
        return ours
