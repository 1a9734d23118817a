"""In which order targets are tried: by chance, and by a value that stays where it was."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.traffic import targets
from matrixinfer.api import networking

weights = st.lists(st.integers(0, 100), min_size=1, max_size=8).filter(any)
values = st.text(min_size=1, max_size=40)


def named(*weights, overflow=()):
    return [
        networking.TargetModel(model_server_name=f"s{number}", weight=weight, overflow=number in overflow)
        for number, weight in enumerate(weights)
    ]


def turns(found, value="", draw=0.0, salt="ns/r"):
    return [target.model_server_name for target in targets.in_turn(found, draw, value=value, salt=salt)]


def first(found, value):
    return turns(found, value)[0]


@given(weights, values)
def test_every_target_of_some_weight_has_its_turn_once(given_weights, value):
    expected = sorted(f"s{number}" for number, weight in enumerate(given_weights) if weight or len(given_weights) == 1)

    assert sorted(turns(named(*given_weights), value)) == expected


@given(weights, values, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_value_is_ranked_without_chance(given_weights, value, one, other):
    found = named(*given_weights)

    assert turns(found, value, one) == turns(found, value, other)


@given(weights, values, st.permutations(range(8)))
def test_the_order_in_which_targets_are_written_does_not_matter(given_weights, value, order):
    found = named(*given_weights)
    shuffled = [found[number] for number in order if number < len(found)]

    assert turns(found, value) == turns(shuffled, value)


@given(weights, values, st.data())
def test_a_target_that_leaves_moves_only_its_own_values(given_weights, value, data):
    found = named(*given_weights, 50)
    gone = data.draw(st.sampled_from(found))
    left = [target for target in found if target is not gone]
    before = turns(found, value)

    if any(target.weight for target in left) and len(left) > 1:
        assert turns(left, value) == [name for name in before if name != gone.model_server_name]


@given(st.lists(st.integers(1, 100), min_size=2, max_size=8), values, st.data())
def test_a_weight_that_grows_takes_values_and_exchanges_none(given_weights, value, data):
    which = data.draw(st.integers(0, len(given_weights) - 1))
    heavier = list(given_weights)
    heavier[which] = data.draw(st.integers(given_weights[which], 100))

    before, after = first(named(*given_weights), value), first(named(*heavier), value)

    assert after in (before, f"s{which}")


def test_values_spread_by_the_weights():
    found = named(50, 30, 0, 20)

    counts = Counter(first(found, f"user-{number}") for number in range(20_000))

    for name, share in (("s0", 0.5), ("s1", 0.3), ("s3", 0.2)):
        assert abs(counts[name] - 20_000 * share) <= 5 * math.sqrt(20_000 * share * (1 - share))
    assert counts["s2"] == 0


def test_places_of_a_value_in_two_routes_have_nothing_to_do_with_each_other():
    found = named(50, 50)

    same = sum(turns(found, f"u{n}", salt="ns/a")[0] == turns(found, f"u{n}", salt="ns/b")[0] for n in range(4000))

    assert abs(same - 2000) <= 5 * math.sqrt(1000)


def test_overflow_comes_last_whatever_its_weight_and_place():
    found = named(100, 1, 100, 1, overflow=(0, 2))

    assert {tuple(sorted(turns(found, f"u{n}")[:2])) for n in range(50)} == {("s1", "s3")}
    assert {tuple(sorted(turns(found, draw=n / 50)[2:])) for n in range(50)} == {("s0", "s2")}


def test_a_server_and_a_provider_of_one_name_are_two_targets():
    found = [
        networking.TargetModel(model_server_name="same"),
        networking.TargetModel(external_model_provider_name="same"),
    ]

    ranked = [next(targets.in_turn(found, 0.0, value=f"u{n}", salt="ns/r")) for n in range(400)]

    assert abs(sum(target.model_server_name is None for target in ranked) - 200) <= 50


HEADERS = {
    "x-user": "anna",
    "cookie": 'a=1; session=abc; quoted="q"; empty=, session=later',
}


@pytest.mark.parametrize(
    ("sticky", "value"),
    [
        (None, ""),
        ({"header": "X-User"}, "anna"),
        ({"header": "x-other"}, ""),
        ({"cookie": "session"}, "abc"),
        ({"cookie": "quoted"}, "q"),
        ({"cookie": "empty"}, ""),
        ({"cookie": "sess"}, ""),
        ({"caller": "Tenant"}, "acme"),
        ({"caller": "APIKey"}, "key-1"),
    ],
)
def test_what_decides_is_read_of_headers_cookies_and_who_asks(sticky, value):
    asked = None if sticky is None else networking.StickyBy.model_validate(sticky)

    assert targets.value_of(asked, HEADERS, tenant="acme", key="key-1") == value


@given(st.text(max_size=200), st.text(alphabet="abc", min_size=1, max_size=3))
def test_any_cookie_header_is_read_without_a_fault(header, name):
    assert isinstance(targets.value_of(networking.StickyBy(cookie=name), {"cookie": header}), str)
