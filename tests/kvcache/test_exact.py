import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.kvcache import events
from tests.kvcache.builders import Engine, an_index, held, matched, prompt


def test_a_prefix_counts_as_far_as_the_engine_told_of_it():
    index = an_index()
    engine = Engine(index, row=3)
    engine.publish(engine.stored(range(16)))

    assert matched(index, prompt(range(20)), 3, 4) == [4, 0]
    assert matched(index, prompt([*range(8), 99, *range(9, 20)]), 3) == [2]


def test_a_later_block_finds_its_place_by_the_one_before():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.publish(engine.stored(range(12), first=2))

    assert matched(index, prompt(range(12)), 0) == [3]


def test_a_block_whose_predecessor_is_unknown_is_dropped_and_counted():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(12), first=2))

    assert matched(index, prompt(range(12)), 0) == [0]
    assert index.replica_counts.orphans == 1


def test_a_block_stored_twice_is_there_until_both_copies_are_removed():
    index = an_index()
    engine = Engine(index)
    (block,) = engine.hashes(range(4))
    engine.publish(engine.stored(range(4)))
    engine.publish(engine.stored(range(4)))

    engine.publish(engine.removed(block))
    assert matched(index, prompt(range(4)), 0) == [1]
    engine.publish(engine.removed(block))
    assert matched(index, prompt(range(4)), 0) == [0]


def test_a_hole_ends_the_match_though_blocks_behind_it_are_held():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(16)))
    engine.publish(engine.removed(engine.hashes(range(16))[1]))

    assert matched(index, prompt(range(16)), 0) == [1]
    engine.publish(engine.stored(range(8), first=1))
    assert matched(index, prompt(range(16)), 0) == [4]


def test_adapters_and_salts_keep_equal_tokens_apart():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(4)))
    engine.publish(engine.stored(range(8), adapter="lora-a"))
    engine.publish(engine.stored(range(12), salt="tenant-1"))
    engine.publish(engine.stored(range(16), salt="tenant-1", adapter="lora-a"))

    assert matched(index, prompt(range(16)), 0) == [1]
    assert matched(index, prompt(range(16), model="lora-a"), 0) == [2]
    assert matched(index, prompt(range(16), salt="tenant-1"), 0) == [3]
    assert matched(index, prompt(range(16), model="lora-a", salt="tenant-1"), 0) == [4]


def test_blocks_with_an_image_are_dropped_with_all_that_follows():
    index = an_index()
    engine = Engine(index)
    event = engine.stored(range(16))
    event["extra_keys"][2] = [["image-digest", 0]]
    engine.publish(event)
    engine.publish(engine.stored(range(20), first=4))

    assert matched(index, prompt(range(20)), 0) == [2]
    assert index.replica_counts.foreign == 2
    assert index.replica_counts.orphans == 1


@pytest.mark.parametrize("maps", [True, False])
def test_both_forms_of_events_say_the_same(maps):
    index = an_index()
    engine = Engine(index, maps=maps)
    engine.publish(engine.stored(range(8), salt="s", adapter="a"))

    assert matched(index, prompt(range(8), model="a", salt="s"), 0) == [2]


def test_an_engine_with_larger_blocks_counts_in_ours():
    index = an_index(block_tokens=4)
    engine = Engine(index, block_tokens=8)
    engine.publish(engine.stored(range(24)))
    engine.publish(engine.removed(engine.hashes(range(24))[2]))
    found = held(index, prompt(range(24)), 0, tokens=24)

    assert found.matched.tolist() == [4]
    assert found.cached_tokens.tolist() == [16]


def test_smaller_blocks_make_one_of_ours_while_all_of_them_are_held():
    index = an_index(block_tokens=4)
    engine = Engine(index, block_tokens=2)
    engine.publish(engine.stored(range(6)))
    assert matched(index, prompt(range(8)), 0) == [1]
    engine.publish(engine.stored(range(8), first=3))
    assert matched(index, prompt(range(8)), 0) == [2]

    half = engine.hashes(range(8))[2]
    engine.publish(engine.removed(half))
    assert matched(index, prompt(range(8)), 0) == [1]
    engine.publish(engine.stored(range(6), first=2))
    assert matched(index, prompt(range(8)), 0) == [2]


def test_block_sizes_that_do_not_go_together_are_dropped_and_counted():
    index = an_index(block_tokens=4)
    engine = Engine(index, block_tokens=6)
    engine.publish(engine.stored(range(12)))

    assert matched(index, prompt(range(12)), 0) == [0]
    assert index.replica_counts.misfits == 2


def test_the_last_token_of_a_prompt_is_never_cached():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(16)))

    assert held(index, prompt(range(16)), 0, tokens=16).cached_tokens.tolist() == [12]
    assert held(index, prompt(range(17)), 0, tokens=17).cached_tokens.tolist() == [16]
    assert held(index, prompt(range(3)), 0, tokens=3).cached_tokens.tolist() == [0]


def test_a_lower_tier_counts_for_its_weight():
    index = an_index(weights=(1.0, 0.8, 0.5))
    engine = Engine(index)
    engine.publish(engine.stored(range(16)))
    blocks = engine.hashes(range(16))
    engine.publish({"type": "BlockStored", "block_hashes": blocks, "token_ids": [], "block_size": 0, "medium": "CPU"})
    for one in blocks[2:]:
        engine.publish(engine.removed(one))
    found = held(index, prompt(range(16)), 0)

    assert found.matched.tolist() == [4]
    assert found.weighted.tolist() == [pytest.approx(2 + 2 * 0.8)]
    engine.publish(engine.removed(blocks[3], medium="CPU"))
    assert matched(index, prompt(range(16)), 0) == [3]


def test_everything_cleared_is_nothing_held_and_all_known():
    index = an_index()
    engine = Engine(index, replays=False)
    engine.publish(lose=True)
    engine.publish(engine.stored(range(8)))
    assert not index.exact(0)
    engine.publish(engine.cleared())

    assert matched(index, prompt(range(8)), 0) == [0]
    assert index.exact(0)


def test_all_is_known_after_a_clear_that_comes_in_one_batch_with_what_is_stored_next():
    index = an_index()
    engine = Engine(index, replays=False)
    engine.publish(lose=True)
    engine.publish(engine.stored(range(8)))
    assert not index.exact(0)
    engine.publish(engine.cleared(), engine.stored(range(4)))

    assert index.exact(0)
    assert held(index, prompt(range(8)), 0, tokens=9).cached_tokens.tolist() == [4]


def test_a_window_needs_only_what_it_reaches_back_to():
    index = an_index()
    engine = Engine(index)
    window = {"kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 6, "group": 1}
    engine.publish(engine.stored(range(20), kv_cache_spec_kind="full_attention"))
    engine.publish(engine.stored(range(20), **window))
    blocks = engine.hashes(range(20))
    for one in blocks[:2]:
        engine.publish(engine.removed(one, group=1))

    assert matched(index, prompt(range(20)), 0) == [5]  # two blocks behind the end: enough
    engine.publish(engine.removed(blocks[4], group=1))
    assert matched(index, prompt(range(20)), 0) == [4]
    engine.publish(engine.removed(blocks[3], group=1))
    assert matched(index, prompt(range(20)), 0) == [0]  # one block in the middle is no window


def test_groups_that_keep_some_blocks_only_are_understood_by_those_that_keep_all():
    index = an_index()
    engine = Engine(index)
    blocks = engine.hashes(range(20))
    engine.publish(engine.stored(range(20)))
    some = engine.stored(range(20), group=1, kv_cache_spec_kind="mamba")
    some["block_hashes"] = [blocks[3]]
    engine.publish(some)

    assert matched(index, prompt(range(20)), 0) == [4]


def test_a_gap_is_filled_by_replay():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(4)))
    engine.publish(engine.stored(range(8), first=1), lose=True)
    engine.publish(engine.stored(range(12), first=2))
    assert len(engine.asks) == 1
    assert not index.exact(0)
    engine.publish(engine.stored(range(16), first=3))
    engine.answer_all()

    assert matched(index, prompt(range(16)), 0) == [4]
    assert index.exact(0)
    assert (index.stream_counts.gaps, index.stream_counts.resets) == (1, 0)


def test_a_gap_that_the_engine_has_forgotten_resets_its_part_alone():
    index = an_index()
    engine, other = Engine(index, row=0, buffer=1), Engine(index, row=1)
    for one in (engine, other):
        one.publish(one.stored(range(8)))
    engine.publish(lose=True)
    engine.publish(lose=True)
    engine.publish(engine.stored(range(4), salt="new"))
    engine.answer_all()

    assert matched(index, prompt(range(8)), 0, 1) == [0, 2]
    assert matched(index, prompt(range(4), salt="new"), 0, 1) == [1, 0]
    assert (index.exact(0), index.exact(1)) == (False, True)
    assert index.stream_counts.resets == 1


def test_a_newcomer_learns_by_replay_what_was_before():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)), lose=True)
    engine.connect()
    engine.publish(engine.stored(range(12), first=2))
    assert engine.member.stream.waiting
    engine.answer_all()

    assert matched(index, prompt(range(12)), 0) == [3]
    assert index.exact(0)


def test_where_not_all_is_known_the_learned_index_may_say_more():
    index = an_index()
    engine = Engine(index, replays=False)
    engine.publish(lose=True)
    engine.publish(engine.stored(range(8)))
    found = held(index, prompt(range(16)), 0, 1, tokens=17, learned=[3, 1])

    assert found.matched.tolist() == [3, 1]
    assert found.cached_tokens.tolist() == [-1, -1]


def test_an_engine_that_starts_anew_has_nothing():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.publish(engine.stored(range(8), salt="s"))
    engine.restart()
    engine.publish(engine.stored(range(4)))

    assert matched(index, prompt(range(8)), 0) == [1]
    assert index.stream_counts.restarts == 1
    assert index.exact(0)


def test_an_engine_that_started_anew_unheard_is_found_out_by_the_batch_before_the_gap():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.restart()
    for salt in "abc":
        engine.publish(engine.stored(range(4), salt=salt), lose=True)
    engine.publish(engine.stored(range(4), salt="d"))
    engine.answer_all()

    assert matched(index, prompt(range(8)), 0) == [0]
    assert [matched(index, prompt(range(4), salt=salt), 0) for salt in "abcd"] == [[1]] * 4
    assert index.exact(0)


def test_an_engine_that_started_anew_and_has_told_nothing_is_found_out_when_it_is_met_again():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.publish(engine.stored(range(12), first=2))
    engine.restart()
    engine.connect()
    assert not index.exact(0)
    engine.answer_all()

    assert held(index, prompt(range(8)), 0, tokens=9).cached_tokens.tolist() == [0]
    assert index.exact(0)
    assert (index.stream_counts.restarts, index.stream_counts.resets) == (1, 0)


def test_an_engine_that_is_met_again_and_is_the_same_keeps_what_it_had():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.connect()
    engine.answer_all()

    assert held(index, prompt(range(8)), 0, tokens=9).cached_tokens.tolist() == [8]
    assert index.exact(0)


def test_an_engine_without_replay_that_is_met_again_is_known_in_full_once_its_numbers_go_on():
    index = an_index()
    engine = Engine(index, replays=False)
    engine.publish(engine.stored(range(8)))
    engine.connect()
    assert not index.exact(0)
    assert matched(index, prompt(range(8)), 0) == [2]
    engine.publish(engine.stored(range(12), first=2))

    assert index.exact(0)


def test_an_engine_that_is_met_again_and_does_not_answer_is_not_known_in_full():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(8)))
    engine.deaf = True
    engine.connect()
    engine.answer_all()

    assert not index.exact(0)
    assert matched(index, prompt(range(8)), 0) == [2]


def test_a_repeated_batch_changes_nothing():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(4)))
    number, payload = engine.past[0]
    assert engine.member.stream.take(number, events.read(payload)) == []
    assert index.stream_counts.duplicates == 1


def test_a_routed_request_is_held_soon_until_the_time_is_over():
    index = an_index(expected_s=2.0)
    engine = Engine(index)
    engine.publish(engine.stored(range(4)))
    hashes = prompt(range(16))
    index.expect(hashes, 0, held=1, now=10.0)
    assert matched(index, hashes, 0) == [4]

    engine.publish(engine.stored(range(8), first=1))
    index.index.expire(12.0)

    assert matched(index, hashes, 0) == [2]
    assert (index.index.counts.confirmed, index.index.counts.expired) == (1, 2)
    assert index.index.expecting == 0


def test_what_is_expected_of_an_engine_that_restarts_is_forgotten():
    index = an_index()
    engine = Engine(index)
    engine.publish(engine.stored(range(4)))
    index.expect(prompt(range(16)), 0, held=1, now=10.0)
    index.restarted(0)

    assert matched(index, prompt(range(16)), 0) == [0]
    assert index.index.expecting == 0


def test_an_endpoint_counts_for_as_much_as_its_best_rank():
    index = an_index()
    ranks = [Engine(index, row=0, seed=seed) for seed in (1, 2)]
    ranks[0].publish(ranks[0].stored(range(4)))
    ranks[1].publish(ranks[1].stored(range(12)))

    assert matched(index, prompt(range(16)), 0) == [3]
    ranks[1].member.close()
    assert matched(index, prompt(range(16)), 0) == [1]


def test_an_endpoint_that_left_holds_nothing_and_its_memory_is_given_back():
    index = an_index()
    engine, other = Engine(index, row=0), Engine(index, row=1)
    for one in (engine, other):
        one.publish(one.stored(range(400)))
    engine.member.close()
    assert matched(index, prompt(range(400)), 0, 1) == [0, 100]

    while index.index.tidy(8):
        pass

    assert index.index.pairs == 100
    assert index.index.blocks == 100


def test_the_bound_of_memory_holds_and_what_is_used_stays():
    index = an_index(capacity=2_000)
    engine = Engine(index)
    engine.publish(engine.stored(range(80)))
    draw = random.Random(3)
    for _ in range(3_000):
        tokens = [draw.randrange(1 << 20) for _ in range(16)]
        engine.publish(engine.stored(tokens))
        matched(index, prompt(range(80)), 0)

    assert index.index.pairs <= 2_000
    assert index.index.counts.evicted > 9_000


MOVES = st.lists(
    st.tuples(
        st.sampled_from(
            ("store", "store", "store", "remove", "remove", "clear", "restart", "lose", "connect", "answer")
        ),
        st.integers(0, 2),
        st.integers(0, 11),
        st.integers(1, 6),
    ),
    max_size=60,
)
PROMPTS = [[kind] * 4 + list(range(8)) + [kind // 4] * 4 + list(range(100, 108)) for kind in range(12)]


@settings(max_examples=150)
@given(MOVES, st.sampled_from((2, 4, 8)), st.booleans())
def test_the_match_is_what_the_engines_hold_whatever_happens(moves, block_tokens, maps):
    index = an_index(block_tokens=4)
    engines = [Engine(index, row, seed=row % 2, block_tokens=block_tokens, maps=maps) for row in range(3)]
    for engine in engines:
        engine.connect()
        engine.answer_all()
    for move, row, which, length in moves:
        engine = engines[row]
        tokens = PROMPTS[which][: length * 4]
        tokens = tokens[: len(tokens) // block_tokens * block_tokens]
        engine.move(move, which, tokens)
    for engine in engines:
        engine.publish()
        engine.answer_all()

    for tokens in PROMPTS:
        expected = [engine.depth(tokens) * block_tokens // 4 for engine in engines]
        assert matched(index, prompt(tokens), 0, 1, 2) == expected
    assert index.stream_counts.resets == 0
    while index.index.tidy(8):
        pass
    if block_tokens >= 4:
        assert index.index.pairs == sum(len(engine.copies) for engine in engines)


def test_a_long_chain_is_found_in_full_and_over_several_searches():
    index = an_index(block_tokens=4)
    engine = Engine(index)
    tokens = np.arange(12_000).tolist()
    engine.publish(engine.stored(tokens[:10_000]))

    assert matched(index, prompt(tokens), 0) == [2500]


@settings(max_examples=40)
@given(
    st.integers(30, 200), st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 12)), max_size=80)
)
def test_under_a_bound_less_is_known_and_never_more_than_there_is(capacity, stores):
    index = an_index(capacity=capacity)
    engines = [Engine(index, row, seed=row) for row in range(3)]
    talks = [[number * 1000 + at for at in range(48)] for number in range(41)]
    for row, which, length in stores:
        engine, tokens = engines[row], talks[which][: length * 4]
        engine.publish(engine.stored(tokens, first=min(engine.depth(tokens), length - 1)))
        assert index.index.pairs <= capacity

    for tokens in talks:
        found = matched(index, prompt(tokens), 0, 1, 2)
        assert all(one <= engine.depth(tokens) for one, engine in zip(found, engines, strict=True))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(("route", "store", "remove", "wait", "restart")), st.integers(0, 5), st.integers(1, 6)
        ),
        max_size=40,
    )
)
def test_what_is_expected_never_outlives_its_time(moves):
    index = an_index(expected_s=2.0)
    engine = Engine(index)
    engine.publish(engine.stored(range(900, 904)))
    now = 100.0
    routed = {}  # our hash -> until when
    for move, which, length in moves:
        tokens = [which * 100 + at for at in range(length * 4)]
        hashes = prompt(tokens)
        if move == "route":
            index.expect(hashes, 0, held=matched(index, hashes, 0)[0], now=now)
            routed |= dict.fromkeys(hashes, now + 2.0)
        elif move == "wait":
            now += length / 2
            index.index.expire(now)
        elif move == "restart":
            index.restarted(0)
            engine.restart()
            engine.publish(engine.stored(range(900, 904)))
            routed.clear()
        elif move == "store":
            engine.move("store", which, tokens)
        else:
            engine.move("remove", which, tokens)
        for start in range(0, 600, 100):
            whole = [start + at for at in range(24)]
            theirs, ours = engine.hashes(whole), prompt(whole)
            surely = engine.depth(whole)
            most = 0
            while most < len(ours) and (engine.copies[theirs[most], "GPU", 0] or routed.get(ours[most], 0.0) > now):
                most += 1
            assert surely <= matched(index, ours, 0)[0] <= most

    index.index.expire(now + 2.0)
    while index.index.tidy(8):
        pass
    assert index.index.expecting == 0
    assert index.index.blocks == index.index.pairs
