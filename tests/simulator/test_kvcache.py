from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.simulator import kvcache


def hashes_of(tokens: list[int], size: int, origin: kvcache.Origin | None = None) -> list[int]:
    hashes: list[int] = []
    kvcache.chain(array("I", tokens), size, (origin or kvcache.Origin()).seed, hashes)
    return hashes


def hold(blocks: kvcache.Blocks, tokens: list[int]) -> list[int]:
    """Compute a prompt from nothing: its full blocks become findable."""
    hashes = hashes_of(tokens, blocks.block_size)
    taken = blocks.take(-(-len(tokens) // blocks.block_size))
    blocks.store(taken, hashes, range(len(hashes)), array("I", tokens), kvcache.Origin())
    return taken


def test_a_hash_stands_for_everything_before_it():
    one, other = hashes_of([1, 2, 3, 4], 2), hashes_of([9, 2, 3, 4], 2)

    assert one[1] != other[1]


def test_adapters_and_salts_keep_equal_tokens_apart():
    origins = [kvcache.Origin(), kvcache.Origin("a", 1), kvcache.Origin(salt="a"), kvcache.Origin("a", 1, "a")]

    assert len({hashes_of([1, 2], 2, origin)[0] for origin in origins}) == 4


@given(st.lists(st.integers(0, 2**31 - 1), max_size=60), st.integers(1, 7), st.integers(0, 60))
def test_a_chain_can_be_grown_in_parts(tokens: list[int], size: int, cut: int):
    hashes: list[int] = []
    kvcache.chain(array("I", tokens[:cut]), size, 5, hashes)
    kvcache.chain(array("I", tokens), size, 5, hashes)

    whole: list[int] = []
    kvcache.chain(array("I", tokens), size, 5, whole)
    assert hashes == whole
    assert len(whole) == len(tokens) // size


@pytest.mark.parametrize(("length", "found"), [(4, 1), (5, 2), (6, 2), (7, 3)])
def test_the_last_token_is_always_computed(length: int, found: int):
    blocks = kvcache.Blocks(20, 2)
    blocks.release(hold(blocks, [1, 2, 3, 4, 5, 6]))

    hit = blocks.longest_hit(hashes_of([1, 2, 3, 4, 5, 6, 7][:length], 2), length)

    assert len(hit) == found


def test_the_least_recently_freed_goes_first_and_the_end_before_the_beginning():
    blocks = kvcache.Blocks(7, 2)
    old, new = hold(blocks, [1, 2, 3, 4]), hold(blocks, [5, 6, 7, 8])
    blocks.release(old)
    blocks.release(new)

    blocks.take(3)

    assert len(blocks.longest_hit(hashes_of([1, 2, 3, 4, 0], 2), 5)) == 1
    assert len(blocks.longest_hit(hashes_of([5, 6, 7, 8, 0], 2), 5)) == 2


def test_removal_is_told_for_every_holder():
    blocks = kvcache.Blocks(3, 2, record_events=True)
    blocks.release(hold(blocks, [1, 2]))
    blocks.release(hold(blocks, [1, 2]))
    blocks.take_events()

    blocks.take(2)

    assert blocks.take_events() == [kvcache.Removed(hashes_of([1, 2], 2)[0])] * 2


def test_clearing_is_refused_while_blocks_are_used():
    blocks = kvcache.Blocks(5, 2, record_events=True)
    used = hold(blocks, [1, 2])

    assert not blocks.clear()
    blocks.release(used)
    assert blocks.clear()
    assert blocks.cached == 0
    assert blocks.take_events()[-1] == kvcache.Cleared()


class Pool(RuleBasedStateMachine):
    """Whatever is asked of it, the pool counts right and a subscriber that follows its events knows what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = kvcache.Blocks(12, 2, record_events=True)
        self.held: list[list[int]] = []
        self.told: dict[int, int] = {}

    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=10))
    def run(self, tokens: list[int]) -> None:
        hashes = hashes_of(tokens, 2)
        hit = self.blocks.longest_hit(hashes, len(tokens))
        needed = -(-len(tokens) // 2) - len(hit)
        if needed > self.blocks.free - self.blocks.idle(hit):
            return
        self.blocks.share(hit)
        mine = hit + self.blocks.take(needed)
        self.blocks.store(mine, hashes, range(len(hit), len(hashes)), array("I", tokens), kvcache.Origin())
        self.held.append(mine)

    @rule(which=st.integers(0, 100))
    def stop(self, which: int) -> None:
        if self.held:
            self.blocks.release(self.held.pop(which % len(self.held)))

    @invariant()
    def free_and_used_are_all(self) -> None:
        used = {block for blocks in self.held for block in blocks}
        assert self.blocks.free + len(used) == self.blocks.total
        assert 0 not in used

    @invariant()
    def events_tell_what_is_cached(self) -> None:
        for event in self.blocks.take_events():
            match event:
                case kvcache.Stored():
                    for block_hash in event.hashes:
                        self.told[block_hash] = self.told.get(block_hash, 0) + 1
                case kvcache.Removed(block_hash):
                    self.told[block_hash] -= 1
        assert len([count for count in self.told.values() if count]) == self.blocks.cached


TestPool = Pool.TestCase
