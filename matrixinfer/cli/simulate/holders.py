"""Who holds a prefix, as the picker knows it: learned from its decisions, or told by the engines' events some time later."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from extproc.adapters import settings as deployment
from extproc.kvcache.blocks import BlockIndex
from extproc.kvcache.exact import homeless
from extproc.kvcache.index import PrefixIndex
from extproc.plugins.precise_prefix_cache_producer import seconds

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from extproc.scheduling.config import Config
    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.trace import Trace

_SECRET: Final = 0x9E3779B97F4A7C15  # nobody attacks a simulation


class Holders(Protocol):
    """What the picker asks, and tells."""

    def match(self, chain: Sequence[int], rows: NDArray[np.intp], now: float) -> NDArray[np.int64]:
        """Count, for each of `rows`, the blocks at the chain's start that it holds."""
        ...

    def home(
        self, chain: Sequence[int], rows: NDArray[np.intp], matched: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Count the blocks that earlier requests took there, where that matters beside what is `matched`."""
        ...

    def trunk(self, chain: Sequence[int]) -> int:
        """Count the blocks at the chain's start from which earlier requests went on."""
        ...

    def routed(self, chain: Sequence[int], row: int, now: float) -> None:
        """Take note that a request with this prefix was sent to `row`."""
        ...


class Learned:
    """The learned index of the picker; bounds that count blocks are converted to the trace's."""

    def __init__(self, settings: Config, trace: Trace) -> None:
        scale = settings.prefix.block_size_tokens / trace.block_tokens
        per_endpoint = max(1, int(settings.prefix.lru_capacity_per_server * scale))
        self._index = PrefixIndex(per_endpoint=per_endpoint, total=max(1_000_000, per_endpoint))

    def match(self, chain: Sequence[int], rows: NDArray[np.intp], now: float) -> NDArray[np.int64]:  # noqa: ARG002 - the protocol's
        """Look it up."""
        return self._index.match(chain, rows)

    def trunk(self, chain: Sequence[int]) -> int:
        """Look it up."""
        return self._index.trunk(chain)

    def home(self, chain: Sequence[int], rows: NDArray[np.intp], matched: NDArray[np.int64]) -> None:
        """Say nothing: nobody tells what was given up."""

    def routed(self, chain: Sequence[int], row: int, now: float) -> None:  # noqa: ARG002 - the protocol's
        """Learn it."""
        self._index.learn(chain, row)


class Told:
    """The exact index of the picker, fed by the engines' caches; it listens to them."""

    def __init__(self, settings: Config, cluster: Cluster, trace: Trace, rows: Sequence[int]) -> None:
        """`rows`: by engine, its row in the picker's table."""
        self._learned = Learned(settings, trace)  # for the trunk, of which events say nothing
        blocks = sum(group.capacity for group in cluster.each) // trace.block_tokens
        self._index = BlockIndex(capacity=4 * blocks + 65_536, secret=_SECRET)
        self._slots = [self._index.open() for _ in rows]
        self._slot_of_row = np.zeros(max(rows) + 1, dtype=np.intp)
        for slot, row in zip(self._slots, rows, strict=True):
            self._slot_of_row[row] = slot
        self._lag_s = cluster.event_lag_ms / 1000
        exact = deployment.exact(settings)
        self._expected_s = seconds(exact.speculative_ttl) if exact.speculative_indexing else 0.0
        self._events: deque[tuple[float, int, Sequence[int], bool]] = deque()  # when heard, slot, blocks, stored

    def replayed(self, engine: int, blocks: Collection[int]) -> None:
        """Take what the engine holds now, as a picker does before it is ready."""
        for block in blocks:
            self._index.store(self._slots[engine], block, block)

    def stored(self, engine: int, chain: Sequence[int], begin: int, now: float) -> None:
        """Hear of it some time later."""
        self._events.append((now + self._lag_s, self._slots[engine], chain[begin:], True))

    def removed(self, engine: int, block: int, now: float) -> None:
        """Hear of it some time later."""
        self._events.append((now + self._lag_s, self._slots[engine], (block,), False))

    def match(self, chain: Sequence[int], rows: NDArray[np.intp], now: float) -> NDArray[np.int64]:
        """Look it up, after everything that was heard until now."""
        self._hear(now)
        index = self._index
        return index.depths(index.runs(np.array(chain, dtype=np.uint64)))[self._slot_of_row[rows]]

    def home(
        self, chain: Sequence[int], rows: NDArray[np.intp], matched: NDArray[np.int64]
    ) -> NDArray[np.int64] | None:
        """Look it up among what was decided."""
        return self._learned.match(chain, rows, 0.0) if homeless(matched, len(chain)) else None

    def trunk(self, chain: Sequence[int]) -> int:
        """Look it up among what was decided."""
        return self._learned.trunk(chain)

    def routed(self, chain: Sequence[int], row: int, now: float) -> None:
        """Expect that the engine will tell of the blocks."""
        self._learned.routed(chain, row, now)
        if self._expected_s:
            self._index.expect(int(self._slot_of_row[row]), chain, now + self._expected_s)

    def _hear(self, now: float) -> None:
        events, index = self._events, self._index
        while events and events[0][0] <= now:
            _at, slot, blocks, stored = events.popleft()
            for block in blocks:
                if stored:
                    index.store(slot, block, block)
                else:
                    index.remove(slot, block)
        index.expire(now)
