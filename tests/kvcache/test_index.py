from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from extproc.kvcache.index import PrefixIndex


def rows(*numbers):
    return np.array(numbers, dtype=np.intp)


def chain_of(*steps):
    """Hashes that agree between two chains exactly as far as their steps do."""
    chain = []
    for step in steps:
        chain.append(xxh3_64_intdigest(repr(step).encode(), chain[-1] if chain else 0))
    return chain


def test_an_unknown_prefix_matches_nothing():
    index = PrefixIndex()

    assert index.match(chain_of(1, 2), rows(0, 1)).tolist() == [0, 0]
    assert index.match([], rows(0, 1)).tolist() == [0, 0]


def test_the_match_is_the_common_beginning_of_what_each_endpoint_learned():
    index = PrefixIndex()
    index.learn(chain_of(1, 2, 3, 4), 5)
    index.learn(chain_of(1, 2, 9), 2)

    assert index.match(chain_of(1, 2, 3, 8), rows(2, 5, 7)).tolist() == [2, 3, 0]


def test_rows_may_come_in_any_order_and_lie_beyond_what_was_learned():
    index = PrefixIndex()
    index.learn(chain_of(1, 2), 3)

    assert index.match(chain_of(1, 2), rows(900, 3, 0)).tolist() == [0, 2, 0]


def test_many_endpoints_with_the_same_beginning_are_all_found():
    index = PrefixIndex()
    for row in range(100):
        index.learn(chain_of(*range(40 + row)), row)

    assert index.match(chain_of(*range(640)), np.arange(100)).tolist() == list(range(40, 140))


def test_a_departed_endpoint_matches_nothing_at_once():
    index = PrefixIndex()
    index.learn(chain_of(1, 2), 0)
    index.learn(chain_of(1, 2), 1)

    index.forget(0)

    assert index.match(chain_of(1, 2), rows(0, 1)).tolist() == [0, 2]
    assert index.held(0) == 0


def test_a_row_that_is_given_again_starts_empty():
    index = PrefixIndex()
    index.learn(chain_of(*range(1000)), 0)

    index.forget(0)
    index.learn(chain_of(7), 0)

    assert index.match(chain_of(*range(1000)), rows(0)).tolist() == [0]
    assert index.match(chain_of(7), rows(0)).tolist() == [1]


def test_what_departed_endpoints_left_is_cleared_while_others_learn():
    index = PrefixIndex()
    index.learn(chain_of(*range(1000)), 0)
    index.forget(0)

    for turn in range(10):
        index.learn(chain_of(turn + 2000), 1)

    assert (index.pairs, index.blocks) == (10, 10)


def test_forgetting_an_unknown_row_changes_nothing():
    index = PrefixIndex()
    index.learn(chain_of(1), 0)

    index.forget(4)

    assert index.match(chain_of(1), rows(0)).tolist() == [1]


def test_the_least_recently_used_chain_goes_first_and_from_its_end():
    index = PrefixIndex(per_endpoint=5)
    index.learn(chain_of(1, 2, 3), 0)
    index.learn(chain_of(7, 8), 0)

    index.learn(chain_of(9), 0)

    assert index.match(chain_of(1, 2, 3), rows(0)).tolist() == [2]
    assert index.match(chain_of(7, 8), rows(0)).tolist() == [2]
    assert index.match(chain_of(9), rows(0)).tolist() == [1]


def test_a_chain_longer_than_the_bound_keeps_its_beginning():
    index = PrefixIndex(per_endpoint=4)
    index.learn(chain_of(*range(10)), 0)

    assert index.match(chain_of(*range(10)), rows(0)).tolist() == [4]
    assert index.held(0) == 4


def test_the_fullest_endpoint_gives_way_at_the_total_bound():
    index = PrefixIndex(total=10)
    index.learn(chain_of(*range(8)), 0)

    index.learn(chain_of(100, 101, 102, 103), 1)

    assert index.match(chain_of(*range(8)), rows(0, 1)).tolist() == [6, 0]
    assert index.match(chain_of(100, 101, 102, 103), rows(0, 1)).tolist() == [0, 4]
    assert index.pairs == 10


def test_smaller_bounds_take_effect_at_once():
    index = PrefixIndex()
    index.learn(chain_of(*range(8)), 0)
    index.learn(chain_of(*range(8)), 1)

    index.resize(per_endpoint=6, total=9)

    assert index.pairs == 9
    assert max(index.held(0), index.held(1)) <= 6


@pytest.mark.parametrize("bounds", [{"per_endpoint": 0}, {"total": 0}])
def test_bounds_below_one_are_refused(bounds):
    with pytest.raises(ValueError, match="at least 1"):
        PrefixIndex(**bounds)


def test_the_trunk_is_what_other_requests_went_on_from():
    index = PrefixIndex()
    index.learn(chain_of(1, 2, 3), 0)

    assert index.trunk(chain_of(1, 2, 3, 4)) == 2  # 3 is where the one before ended: this one goes on
    assert index.trunk(chain_of(1, 2, 9)) == 2  # branches off behind 2
    assert index.trunk(chain_of(9)) == 0

    index.learn(chain_of(1, 2, 3, 4), 0)

    assert index.trunk(chain_of(1, 2, 3, 7)) == 3
    assert index.trunk(chain_of(1, 2, 3, 4, 5)) == 3


def test_the_trunk_is_common_to_all_endpoints():
    index = PrefixIndex()
    index.learn(chain_of(1, 2), 0)
    index.learn(chain_of(1, 2, 3, 4), 1)

    assert index.trunk(chain_of(1, 2, 3, 4, 5)) == 3


def test_blocks_that_share_a_hash_do_no_harm():
    index = PrefixIndex(per_endpoint=4)
    for row in range(3):
        index.learn([1, 2, 1, 3, 3, 1, 4, 5], row)
        index.learn([3, 9, 2, 1], row)
    index.forget(1)
    for row in (0, 2, 1):
        index.learn([9, 3, 1, 1], row)

    assert index.match([1, 2, 3], rows(0, 1, 2)).max() <= 3


class Naive:
    """The index as it is meant: an ordered set of blocks for each endpoint."""

    def __init__(self, per_endpoint):
        self.per_endpoint = per_endpoint
        self.held = {}

    def learn(self, hashes, row):
        held = self.held.setdefault(row, OrderedDict())
        for block in reversed(hashes):
            held[block] = None
            held.move_to_end(block)
        while len(held) > self.per_endpoint:
            held.popitem(last=False)

    def forget(self, row):
        self.held.pop(row, None)

    def match(self, hashes, row):
        count = 0
        for block in hashes:
            if block not in self.held.get(row, ()):
                break
            count += 1
        return count


STEPS = st.lists(st.integers(0, 2), max_size=12)
LONG = st.builds(lambda head, n: head + [0] * n, STEPS, st.integers(0, 120))
ROWS = st.integers(0, 90)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), LONG, ROWS),
        st.tuples(st.just("match"), LONG, st.none()),
        st.tuples(st.just("forget"), st.none(), ROWS),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(EVENTS, st.integers(1, 200))
def test_the_index_agrees_with_a_naive_one(events, per_endpoint):
    index, naive = PrefixIndex(per_endpoint=per_endpoint), Naive(per_endpoint)
    everyone = np.arange(91)
    for what, steps, row in events:
        if what == "learn":
            index.learn(chain_of(*steps), row)
            naive.learn(chain_of(*steps), row)
        elif what == "forget":
            index.forget(row)
            naive.forget(row)
        else:
            hashes = chain_of(*steps)
            assert index.match(hashes, everyone).tolist() == [naive.match(hashes, one) for one in everyone]

    assert [index.held(row) for row in range(91)] == [len(naive.held.get(row, ())) for row in range(91)]


@settings(max_examples=100)
@given(st.lists(st.tuples(LONG, st.integers(0, 5), st.booleans()), max_size=40), st.integers(1, 60))
def test_the_total_bound_holds_and_whoever_holds_a_block_holds_all_before_it(events, total):
    index = PrefixIndex(per_endpoint=50, total=total)
    for steps, row, forget in events:
        index.forget(row) if forget else index.learn(chain_of(*steps), row)

        assert index.pairs <= total
        assert index.blocks <= index.pairs
        for one in range(6):
            learned = [chain_of(*steps) for steps, other, _forget in events if other == one]
            distinct = {block for chain in learned for block in chain[: index.match(chain, rows(one))[0]]}
            assert len(distinct) == index.held(one)
