"""One engine core as its events tell of it: a data-parallel rank with its cache groups, translated into our blocks.

An engine names blocks by hashes of its own. Each block stored comes with its tokens and the block before it, so our hash of
it follows from our hash of that one. A block whose predecessor is not known cannot be placed: it is dropped and counted,
and so are blocks whose content their tokens do not tell all of (images, embedded prompts, adapters without a name).

Blocks of another size than ours: a larger one is known by our hash at its end, so one of the engine's stays one entry;
smaller ones make one of ours (parts.py). Sizes of which neither is a multiple of the other are dropped and counted.

Models whose layers cache differently have several groups (hybrid caches). A group of full attention must hold all blocks of
a prefix, one of a sliding window those that the window reaches back to from the prefix's end, and one of states (Mamba) the
last: that is what the engine itself asks of a hit, so a prefix counts as far as all groups agree. Encoder and
cross-attention groups hold nothing of a prefix and do not matter; a kind that we do not know counts as full attention,
which errs on the side of less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.kvcache.events import Batch, Cleared, Removed, Stored
from extproc.kvcache.parts import Parts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.kvcache.blocks import BlockIndex

_WINDOWS: Final = frozenset({"sliding_window", "sliding_window_mla", "chunked_local_attention"})
_STATES: Final = frozenset({"mamba"})
_ASIDE: Final = frozenset({"encoder_only_attention", "cross_attention"})
_NO_PARENT: Final = 0  # in the array form of old versions


class Chain(NamedTuple):
    """How tokens become hashes of blocks: ours to be told, one definition for prompts and for events."""

    root: Callable[[str, str], int]  # model or adapter, cache salt
    blocks: Callable[[Sequence[int], int, int], list[int]]  # tokens, the hash before them, tokens in a block
    block_tokens: int


@dataclass(slots=True)
class ReplicaCounts:
    """What has happened to events."""

    batches: int = 0
    unreadable: int = 0  # batches, and events in batches
    orphans: int = 0  # blocks whose predecessor is not known
    foreign: int = 0  # blocks with content that tokens do not tell
    misfits: int = 0  # blocks whose size does not go with ours
    cleared: int = 0  # AllBlocksCleared


@dataclass(slots=True)
class Group:
    """Layers that share blocks, and where their blocks are in the index."""

    slot: int
    block_tokens: int  # of the engine
    unit: int  # our blocks in one of the engine's; 1 where the engine's are smaller
    reach: int  # blocks before a prefix's end that must be there; 0: all
    matters: bool
    parts: Parts | None  # for blocks smaller than ours


class Replica:
    """What one engine core holds."""

    def __init__(self, index: BlockIndex, chain: Chain, counts: ReplicaCounts, *, model: str) -> None:
        """`model`: the name by which requests for the base model reach the engine."""
        self.groups: dict[int, Group] = {}
        self._index = index
        self._chain = chain
        self._counts = counts
        self._model = model

    def apply(self, batch: Batch) -> bool:
        """Take a batch; tells whether the engine had nothing at a time in it, so that all it has is known."""
        self._counts.batches += 1
        self._counts.unreadable += batch.bad
        cleared = False
        for event in batch.events:
            if isinstance(event, Stored):
                self._stored(event)
            elif isinstance(event, Removed):
                self._removed(event)
            elif isinstance(event, Cleared):
                self._counts.cleared += 1
                self._clear()
                cleared = True
        return cleared

    def _clear(self) -> None:
        """Empty the groups; that they are there, and how their blocks are, stays known."""
        for group in self.groups.values():
            self._index.close(group.slot)
            group.slot = self._index.open()
            group.parts = group.parts and self._parts(group.slot)

    def _parts(self, slot: int) -> Parts:
        return Parts(self._index, slot, blocks=self._chain.blocks, block_tokens=self._chain.block_tokens)

    def reset(self) -> None:
        """Forget everything that the engine holds."""
        for group in self.groups.values():
            self._index.close(group.slot)
        self.groups.clear()

    def _stored(self, event: Stored) -> None:
        if not event.tokens:
            self._moved(event)
            return
        group = self.groups.get(event.group) or self._group(event)
        if group is None or group.block_tokens != event.block_tokens:
            self._counts.misfits += len(event.hashes)
            return
        if len(event.tokens) != len(event.hashes) * event.block_tokens:
            self._masked(event, group)
            return
        self._counts.foreign += len(event.hashes) - event.known
        if group.parts is not None:
            self._stored_parts(event, group.parts)
        elif (previous := self._before(event)) is None:
            self._counts.orphans += event.known
        elif event.known:
            self._stored_blocks(event, group, previous)

    def _stored_blocks(self, event: Stored, group: Group, previous: int) -> None:
        tokens = event.tokens[: event.known * event.block_tokens]
        hashes = self._chain.blocks(tokens, previous, self._chain.block_tokens)
        for theirs, ours in zip(event.hashes, hashes[group.unit - 1 :: group.unit], strict=False):
            if not self._index.store(group.slot, theirs, ours, event.tier):
                return

    def _removed(self, event: Removed) -> None:
        groups = self.groups
        of = [groups[event.group]] if event.group in groups else groups.values() if event.group is None else ()
        for group in of:
            for theirs in event.hashes:
                if group.parts is not None:
                    group.parts.remove(theirs)
                else:
                    self._index.remove(group.slot, theirs, event.tier)

    def _moved(self, event: Stored) -> None:
        """Take blocks that are only named: they were told of before, and are now in another tier, too."""
        group = self.groups.get(event.group)
        for theirs in event.hashes:
            if group is None or group.parts is not None or not self._index.restore(group.slot, theirs, event.tier):
                self._counts.orphans += 1

    def _masked(self, event: Stored, group: Group) -> None:
        """Take the blocks of a group that keeps only some: the groups that keep all have told what they are."""
        for theirs in event.hashes:
            ours = None if group.parts is not None else self._ours(theirs)
            if ours is None:
                self._counts.orphans += 1
            else:
                self._index.store(group.slot, theirs, ours, event.tier)

    def _stored_parts(self, event: Stored, parts: Parts) -> None:
        parent = event.parent
        if parent == _NO_PARENT and not parts.knows(_NO_PARENT):
            parent = None
        if parent is not None and not parts.knows(parent):
            self._counts.orphans += event.known
            return
        root, size = self._root(event), event.block_tokens
        for at in range(event.known):
            parts.store(event.hashes[at], parent, event.tokens[at * size : (at + 1) * size], root)
            parent = event.hashes[at]

    def _before(self, event: Stored) -> int | None:
        """Return our hash of what precedes the event's blocks; None if it is not known."""
        if event.parent is None:
            return self._root(event)
        ours = self._ours(event.parent)
        return self._root(event) if ours is None and event.parent == _NO_PARENT else ours

    def _root(self, event: Stored) -> int:
        return self._chain.root(event.adapter or self._model, event.salt)

    def _ours(self, theirs: int) -> int | None:
        """Return our hash of a block that any group has told of: equal hashes are equal prefixes in all of them."""
        for group in self.groups.values():
            ours = self._index.ours(group.slot, theirs)
            if ours is not None:
                return ours
        return None

    def _group(self, event: Stored) -> Group | None:
        """Meet a group; None if its blocks do not go with ours."""
        theirs, ours = event.block_tokens, self._chain.block_tokens
        if not theirs or (theirs % ours and ours % theirs):
            return None
        slot = self._index.open()
        parts = self._parts(slot) if theirs < ours else None
        reach = 0
        if event.kind in _STATES:
            reach = 1
        elif event.kind in _WINDOWS and event.window:
            reach = -(-(event.window - 1) // max(theirs, ours)) or 1
        group = Group(
            slot=slot,
            block_tokens=theirs,
            unit=max(theirs // ours, 1),
            reach=reach,
            matters=event.kind not in _ASIDE,
            parts=parts,
        )
        self.groups[event.group] = group
        return group
