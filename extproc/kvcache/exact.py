"""Who holds how much of a prefix, by what the engines tell: the one question that the director asks of their events.

An endpoint is a row of the table; behind it run one or more data-parallel ranks, each with a stream of events. The engine
itself chooses the rank, so an endpoint counts for as much as its best one. Endpoints without a stream, or whose stream began
in the middle, count for what the learned index says if that is more.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from extproc.kvcache.blocks import TIERS, BlockIndex
from extproc.kvcache.replica import Chain, Replica, ReplicaCounts
from extproc.kvcache.stream import Apply, Ask, Reset, Stream, StreamCounts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from extproc.kvcache.blocks import Run
    from extproc.kvcache.replica import Group
    from extproc.kvcache.stream import Step

GPU_ONLY: Final = (1.0, 1.0, 1.0)
UNKNOWN: Final = -1  # tokens, where nothing exact is known
_NONE, _SEVERAL = 0, -1  # in place of a slot


class Held(NamedTuple):
    """What candidates hold of a prefix; arrays of shape (n,)."""

    matched: NDArray[np.int64]  # blocks at its start
    weighted: NDArray[np.float64]  # the same, each block weighed by the best tier that has it
    cached_tokens: NDArray[np.int64]  # what the engine will report as cached; -1 where it is not known exactly


class Member:
    """One rank of one endpoint: its stream and what it told."""

    def __init__(self, owner: ExactIndex, row: int, replica: Replica, stream: Stream) -> None:
        self.row = row
        self.alone = True  # requests for the base model come under the name that its blocks are kept by, and no other
        self.replica = replica
        self.stream = stream
        self.up = True  # connected, as far as we know
        self._owner = owner

    def perform(self, steps: Sequence[Step]) -> list[Ask]:
        """Do what the stream says; what is left is to be asked of the engine."""
        asks = []
        for step in steps:
            if isinstance(step, Apply):
                if self.replica.apply(step.batch):
                    self.stream.complete = True
                    self._owner.on_emptied(self.row)
            elif isinstance(step, Reset):
                self.replica.reset()
                if step.anew:
                    self._owner.on_emptied(self.row)
            else:
                asks.append(step)
        self._owner.changed(self.row)
        return asks

    def connected(self, *, up: bool) -> None:
        """Take that the connection was made, or was lost: then what is known grows old."""
        self.up = up
        self._owner.changed(self.row)

    def unreadable(self) -> None:
        """Count a batch that is none."""
        self._owner.replica_counts.unreadable += 1

    def close(self) -> None:
        """Forget the rank."""
        self.replica.reset()
        self._owner.drop(self)


class ExactIndex:
    """All endpoints with a stream of events. One owner; written on the loop only."""

    def __init__(
        self, index: BlockIndex, chain: Chain, *, weights: tuple[float, ...] = GPU_ONLY, expected_s: float = 2.0
    ) -> None:
        """`weights`: of a block by its tier: GPU, CPU, other. `expected_s`: how long a routed request counts as held."""
        self.index = index
        self.stream_counts = StreamCounts()
        self.replica_counts = ReplicaCounts()
        self.chain = chain
        self.weights = weights
        self.expected_s = expected_s
        self.on_emptied: Callable[[int], None] = _nobody  # called with the row of an endpoint that lost all it held
        self._members: dict[int, list[Member]] = {}  # by row
        self._slot: NDArray[np.int64] = np.zeros(64, dtype=np.int64)  # by row: its only slot, or one of _NONE, _SEVERAL
        self._unit: NDArray[np.int64] = np.ones(64, dtype=np.int64)  # by row: our blocks in one of the engine's
        self._cut: NDArray[np.int64] = np.ones(64, dtype=np.int64)  # by row: tokens in the engine's blocks
        self._partial: NDArray[np.bool_] = np.ones(64, dtype=np.bool_)  # by row: not all is known
        self._empty: NDArray[np.bool_] = np.zeros(64, dtype=np.bool_)  # by row: it has told of no block since its start
        self._units: tuple[int, ...] = ()  # those that occur

    @property
    def members(self) -> list[Member]:
        """All ranks of all endpoints."""
        return [member for members in self._members.values() for member in members]

    def open(self, row: int, *, model: str, replays: bool) -> Member:
        """Begin to follow one more rank of the endpoint in `row`; `model` is the base model's name there."""
        replica = Replica(self.index, self.chain, self.replica_counts, model=model)
        member = Member(self, row, replica, Stream(self.stream_counts, replays=replays))
        self._members.setdefault(row, []).append(member)
        self.changed(row)
        return member

    def drop(self, member: Member) -> None:
        """Follow this rank no more."""
        members = self._members.get(member.row, [])
        if member in members:
            members.remove(member)
            if not members:
                del self._members[member.row]
        self.changed(member.row)

    def left(self, row: int) -> None:
        """Forget the endpoint in `row`: what its streams still bring counts nowhere."""
        for member in self._members.pop(row, ()):
            member.close()
        self.changed(row)

    def rebuild(self, index: BlockIndex, chain: Chain) -> None:
        """Begin anew with an empty index, as for another size of blocks; all ranks have to be opened again."""
        for row in list(self._members):
            self.left(row)
        self.index = index
        self.chain = chain

    def restarted(self, row: int) -> None:
        """Forget what the engine in `row` held: it started anew."""
        for member in self._members.get(row, ()):
            member.perform(member.stream.restarted())

    def changed(self, row: int) -> None:
        """Bring the columns of `row` in step with its members."""
        if row >= len(self._slot):
            self._grow(row)
        heard = [member for member in self._members.get(row, ()) if member.stream.started]
        groups = [group for member in heard for group in member.replica.groups.values() if group.matters]
        slot, unit, cut = _NONE, 1, 1
        whole = bool(heard) and all(member.up and member.alone and member.stream.whole for member in heard)
        if groups:
            cut = math.lcm(*(group.block_tokens for group in groups))
            slot, unit = _SEVERAL, 1
            if len(groups) == 1 and not groups[0].reach:
                slot, unit = groups[0].slot, groups[0].unit
        self._partial[row], self._empty[row] = not (whole and groups), whole and not groups
        if (slot, unit, cut) != (self._slot[row], self._unit[row], self._cut[row]):
            self._slot[row], self._unit[row], self._cut[row] = slot, unit, cut
            self._units = tuple(sorted(set(self._unit[self._slot > 0].tolist())))

    def exact(self, row: int) -> bool:
        """Tell whether all is known of the endpoint in `row`."""
        return row < len(self._partial) and bool(self._empty[row] or not self._partial[row])

    def covers(self, rows: NDArray[np.intp]) -> bool:
        """Tell whether nothing about these endpoints is left to the learned index."""
        if len(rows) and int(rows.max()) >= len(self._slot):
            self._grow(int(rows.max()))
        return not np.count_nonzero(self._partial[rows])

    def held(
        self, hashes: Sequence[int], rows: NDArray[np.intp], *, tokens: int | None, learned: NDArray[np.int64] | None
    ) -> Held:
        """Tell what the endpoints in `rows` hold of the chain `hashes`.

        `tokens`: of the whole prompt, None if nobody counted them. `learned`: blocks that the learned index says; None
        if it was not asked.
        """
        if learned is not None and not self._members:  # nobody tells anything
            weighted = learned.astype(np.float64) * self.weights[0]
            return Held(learned, weighted, np.full(len(rows), UNKNOWN, dtype=np.int64))
        if len(rows) and int(rows.max()) >= len(self._slot):
            self._grow(int(rows.max()))
        chain = _words(hashes)
        slots, units, partial = self._slot[rows], self._unit[rows], self._partial[rows]
        matched = np.zeros(len(rows), dtype=np.int64)
        runs: dict[int, list[Run]] = {}
        for unit in self._units:
            runs[unit] = self.index.runs(chain[unit - 1 :: unit] if unit > 1 else chain)
            if runs[unit]:
                depths = self.index.depths(runs[unit])
                here = depths[np.where((slots > 0) & (units == unit), slots, 0)]
                matched += here * unit if unit > 1 else here
        weighted = matched.astype(np.float64)
        if self.index.tiered:
            for at in np.flatnonzero((slots > 0) & (matched > 0)).tolist():
                unit, slot = int(units[at]), int(slots[at])
                weighted[at] = self._weighed(slot, runs[unit], int(matched[at]) // unit) * unit
        elif self.weights[0] != 1:
            weighted *= self.weights[0]
        for at in np.flatnonzero(slots == _SEVERAL).tolist():
            matched[at], weighted[at] = self._best(int(rows[at]), chain, runs)
        cached = self._cached(matched, rows, tokens)
        if learned is not None and np.count_nonzero(partial):
            more = partial & (learned > matched)
            matched = np.where(more, learned, matched)
            weighted = np.where(more, learned * self.weights[0], weighted)
            cached[partial & ~(self._empty[rows] & (learned == 0))] = UNKNOWN
        return Held(matched, weighted, cached)

    def expect(self, hashes: Sequence[int], row: int, *, held: int, now: float) -> None:
        """Count the endpoint in `row`, which holds `held` of these blocks, as a holder of all: a request is on its way."""
        self.index.expire(now)
        heard = [member for member in self._members.get(row, ()) if member.stream.started]
        if not heard or held >= len(hashes) or self.expected_s <= 0:
            return
        member = heard[0]
        if len(heard) > 1:
            chain = _words(hashes)
            member = max(heard, key=lambda one: self._depth(one, chain, {})[0])
        for group in member.replica.groups.values():
            first = (held // group.unit + 1) * group.unit - 1
            self.index.expect(group.slot, hashes[first :: group.unit], now + self.expected_s)

    def _cached(self, matched: NDArray[np.int64], rows: NDArray[np.intp], tokens: int | None) -> NDArray[np.int64]:
        """Return the tokens that engines will report: whole blocks of theirs, and never the prompt's last token."""
        if tokens is None:
            return np.full(len(rows), UNKNOWN, dtype=np.int64)
        cut = self._cut[rows]
        cached: NDArray[np.int64] = (
            np.minimum(matched * self.chain.block_tokens // cut, max(tokens - 1, 0) // cut) * cut
        )
        return cached

    def _best(self, row: int, chain: NDArray[np.uint64], runs: dict[int, list[Run]]) -> tuple[int, float]:
        return max(
            (self._depth(one, chain, runs) for one in self._members[row] if one.stream.started), default=(0, 0.0)
        )

    def _depth(self, member: Member, chain: NDArray[np.uint64], runs: dict[int, list[Run]]) -> tuple[int, float]:
        """Count the blocks up to which all groups of a rank agree, and weigh them."""
        groups = [group for group in member.replica.groups.values() if group.matters]
        whole = [group for group in groups if not group.reach]
        if not whole:
            runs = {}  # a window need not hold the prefix's start
        for group in groups:
            if group.unit not in runs:
                runs[group.unit] = self.index.runs(chain[group.unit - 1 :: group.unit], to_the_end=not whole)
        depth = min((_prefix(group, runs[group.unit]) for group in whole), default=len(chain))
        step = math.lcm(*(group.unit for group in groups)) if groups else 1
        while depth:
            depth -= depth % step
            least = min((_reached(group, runs[group.unit], depth) for group in groups if group.reach), default=depth)
            if least >= depth:
                break
            depth = least
        if not depth:
            return 0, 0.0
        weights = [
            self._weighed(group.slot, runs[group.unit], depth // group.unit) * group.unit for group in whole or groups
        ]
        return depth, min(weights)

    def _weighed(self, slot: int, runs: Sequence[Run], depth: int) -> float:
        lower = self.index.lower(slot, runs, depth)
        best = depth - sum(lower)
        return best * self.weights[0] + sum(lower[tier] * self.weights[tier + 1] for tier in range(TIERS - 1))

    def _grow(self, row: int) -> None:
        more = max(len(self._slot), row + 1 - len(self._slot))
        self._slot = np.concatenate([self._slot, np.zeros(more, dtype=np.int64)])
        self._unit = np.concatenate([self._unit, np.ones(more, dtype=np.int64)])
        self._cut = np.concatenate([self._cut, np.ones(more, dtype=np.int64)])
        self._empty = np.concatenate([self._empty, np.zeros(more, dtype=np.bool_)])
        self._partial = np.concatenate([self._partial, np.ones(more, dtype=np.bool_)])


def _nobody(_row: int) -> None:
    """Hear that an endpoint lost all it held."""


def homeless(matched: NDArray[np.int64], blocks: int) -> bool:
    """Tell whether no candidate holds half of a prefix of `blocks`: then it matters where earlier requests took it.

    Engines forget; whoever follows their events alone forgets with them, and scatters the next requests for a prefix that was
    given up. Each of them computes it somewhere else, which pushes out other prefixes in turn. What was learned of our own
    decisions outlasts that: the prefix has a home, to which it comes back.
    """
    return bool(2 * int(matched.max(initial=0)) < blocks)


def _words(hashes: Sequence[int]) -> NDArray[np.uint64]:
    """Return the hashes as numpy takes them; for an `array` of them that is free."""
    return np.frombuffer(hashes if isinstance(hashes, array) else array("Q", hashes), dtype=np.uint64)


def _prefix(group: Group, runs: Sequence[Run]) -> int:
    """Count our blocks at the chain's start that the group holds without a gap."""
    end = 0
    for run in runs:
        if not run.holders >> group.slot & 1:
            break
        end = run.end
    return end * group.unit


def _reached(group: Group, runs: Sequence[Run], depth: int) -> int:
    """Return the longest prefix of at most `depth` of our blocks whose last `reach` blocks the group holds, or all."""
    most = depth // group.unit
    stretches: list[list[int]] = []
    for begin, end, holders in runs:
        if begin >= most:
            break
        if holders >> group.slot & 1:
            if stretches and stretches[-1][1] == begin:
                stretches[-1][1] = min(end, most)
            else:
                stretches.append([begin, min(end, most)])
    for begin, end in reversed(stretches):
        if end - begin >= group.reach or not begin:
            return end * group.unit
    return 0
