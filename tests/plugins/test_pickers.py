from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import plugins
from extproc.plugins.max_score_picker import MaxScorePicker
from extproc.plugins.power_of_two_picker import PowerOfTwoPicker
from extproc.plugins.random_picker import RandomPicker
from extproc.plugins.round_robin_picker import RoundRobinPicker
from extproc.plugins.weighted_random_picker import WeightedRandomPicker
from tests.scheduling.builders import a_cycle, a_plugin, an_endpoint


def ordered(picker, scores, cycle):
    return picker.order(cycle, np.array(scores, dtype=np.float64)).tolist()


def endpoints(n):
    return [an_endpoint() for _ in range(n)]


def test_the_best_score_comes_first():
    assert ordered(a_plugin(MaxScorePicker), [0.1, 0.9, 0.5], a_cycle(*endpoints(3))) == [1, 2, 0]


def test_the_list_is_as_long_as_configured():
    cycle = a_cycle(*endpoints(3))

    assert ordered(a_plugin(MaxScorePicker, max_num_of_endpoints=2), [0.1, 0.9, 0.5], cycle) == [1, 2]


@pytest.mark.parametrize("n", [5, 50])
def test_ties_are_broken_evenly(n):
    picker = a_plugin(MaxScorePicker)
    cycle = a_cycle(*endpoints(n))
    scores = [0.5] * n

    firsts = Counter(ordered(picker, scores, cycle)[0] for _ in range(200 * n))

    assert len(firsts) == n
    assert min(firsts.values()) > 120
    assert max(firsts.values()) < 280


def test_round_robin_takes_every_endpoint_in_turn():
    picker = a_plugin(RoundRobinPicker)
    cycle = a_cycle(*endpoints(3))
    turns = []
    for _ in range(6):
        first = ordered(picker, [0.0, 0.0, 1.0], cycle)[0]
        picker.observe(cycle, first)
        turns.append(first)

    assert turns == [0, 1, 2, 0, 1, 2]


def test_round_robin_goes_on_when_an_endpoint_joins():
    picker = a_plugin(RoundRobinPicker)
    for row in (0, 1):
        picker.observe(a_cycle(*endpoints(2)), row)

    assert ordered(picker, [0.0] * 100, a_cycle(*endpoints(100)))[0] == 2


def test_weighted_random_draws_in_proportion_to_the_scores():
    picker = a_plugin(WeightedRandomPicker)
    cycle = a_cycle(*endpoints(3))

    firsts = Counter(ordered(picker, [0.6, 0.2, 0.0], cycle)[0] for _ in range(4000))

    assert firsts[0] / firsts[1] == pytest.approx(3, rel=0.2)
    assert firsts[2] == 0


def test_random_takes_no_notice_of_scores():
    picker = a_plugin(RandomPicker)
    cycle = a_cycle(*endpoints(2))

    firsts = Counter(ordered(picker, [0.0, 1.0], cycle)[0] for _ in range(2000))

    assert firsts[0] / firsts[1] == pytest.approx(1, rel=0.2)


def test_the_better_of_two_is_chosen_and_the_worst_of_three_never():
    picker = a_plugin(PowerOfTwoPicker)
    cycle = a_cycle(*endpoints(3))

    orders = [ordered(picker, [0.9, 0.1, 0.5], cycle) for _ in range(3000)]

    firsts = Counter(order[0] for order in orders)
    assert firsts[0] / firsts[2] == pytest.approx(2, rel=0.2)  # 0 wins two of the three pairs
    assert firsts[1] == 0
    assert {len(order) for order in orders} == {3}


def test_of_two_equals_each_wins_as_often():
    cycle = a_cycle(*endpoints(2))

    firsts = Counter(ordered(a_plugin(PowerOfTwoPicker), [0.5, 0.5], cycle)[0] for _ in range(2000))

    assert firsts[0] / firsts[1] == pytest.approx(1, rel=0.2)


def test_the_better_of_two_is_chosen_even_where_one_is_all_that_is_asked_for():
    picker = a_plugin(PowerOfTwoPicker, max_num_of_endpoints=1)

    assert {tuple(ordered(picker, [0.1, 0.9], a_cycle(*endpoints(2), seed=seed))) for seed in range(20)} == {(1,)}


PICKERS = [one for one in plugins.BUILTIN.types if hasattr(one, "order")]


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=80),
    st.integers(1, 10),
    st.sampled_from(PICKERS),
)
def test_every_picker_gives_distinct_positions(scores, count, picker):
    order = ordered(a_plugin(picker, max_num_of_endpoints=count), scores, a_cycle(*endpoints(len(scores))))

    assert len(order) == min(count, len(scores))
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(len(scores)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.integers(1, 80))
def test_the_best_are_those_that_sorting_finds(scores, count):
    order = ordered(a_plugin(MaxScorePicker, max_num_of_endpoints=count), scores, a_cycle(*endpoints(len(scores))))

    assert [scores[at] for at in order] == sorted(scores, reverse=True)[:count]
