"""Buckets against a naive model: what is admitted, what is given back, what is kept."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.traffic.limits.buckets import Buckets
from extproc.traffic.limits.rules import Kind
from tests.limits.builders import a_charge, a_limit

KEY = a_limit().key


def test_what_fits_is_admitted_and_what_does_not_is_not_and_charges_nothing():
    buckets = Buckets()

    first = buckets.take([a_charge(60)], 0.0)
    second = buckets.take([a_charge(60)], 0.0)

    assert (first.admitted, first.used) == (True, (60,))
    assert (second.admitted, second.over, second.used) == (False, (True,), (60,))


def test_a_bucket_drains_at_the_limits_rate():
    buckets = Buckets()
    buckets.take([a_charge(100)], 0.0)

    assert buckets.used(KEY, 0.25) == pytest.approx(75)
    assert buckets.used(KEY, 9.0) == 0.0


def test_one_limit_that_is_reached_leaves_the_others_uncharged():
    buckets = Buckets()
    requests = a_limit(1, kind=Kind.REQUESTS)
    buckets.take([a_charge(1, requests)], 0.0)

    verdict = buckets.take([a_charge(10), a_charge(1, requests)], 0.0)

    assert (verdict.admitted, verdict.over) == (False, (False, True))
    assert buckets.used(KEY, 0.0) == 0.0


def test_what_is_larger_than_the_limit_passes_an_empty_bucket_and_is_paid_off():
    buckets = Buckets()

    assert buckets.take([a_charge(500)], 0.0).admitted
    assert not buckets.take([a_charge(1)], 4.0).admitted
    assert buckets.take([a_charge(1)], 4.5).admitted


def test_a_shadow_limit_refuses_nothing_and_counts_only_what_it_would_have_admitted():
    buckets = Buckets()
    shadow = a_limit(shadow=True)
    buckets.take([a_charge(80, shadow)], 0.0)

    verdict = buckets.take([a_charge(80, shadow)], 0.0)

    assert (verdict.admitted, verdict.over, verdict.used) == (True, (True,), (80,))


def test_a_changed_limit_counts_at_once_and_keeps_what_was_used():
    buckets = Buckets()
    buckets.take([a_charge(90, a_limit(100, unit="minute"))], 0.0)

    narrowed = buckets.take([a_charge(1, a_limit(50, unit="second"))], 0.0)
    later = buckets.take([a_charge(1, a_limit(50, unit="second"))], 1.0)

    assert (narrowed.admitted, narrowed.used) == (False, (90,))
    assert (later.admitted, later.used) == (True, (41,))


def test_a_limit_that_was_removed_and_set_again_goes_on_with_its_count():
    buckets = Buckets()
    minute = a_limit(60, unit="minute")
    buckets.take([a_charge(60, minute)], 0.0)
    buckets.prune(30.0)

    assert buckets.used(KEY, 30.0) == pytest.approx(30)


def test_what_is_empty_is_forgotten_and_a_late_settlement_of_it_still_counts():
    buckets = Buckets()
    charge = a_charge(10)
    buckets.take([charge], 0.0)
    buckets.prune(5.0)

    buckets.settle(charge, actual=30, since=0.0, now=5.0)

    assert buckets.used(KEY, 5.0) == 20


def test_a_clock_that_goes_back_drains_nothing_and_stops_nothing():
    buckets = Buckets()
    buckets.take([a_charge(100)], 1000.0)

    assert buckets.used(KEY, 10.0) == 100
    assert buckets.used(KEY, 10.5) == pytest.approx(50)


def test_a_clock_that_leaps_forward_empties_the_bucket_and_no_more():
    buckets = Buckets()
    buckets.take([a_charge(100)], 0.0)

    assert buckets.take([a_charge(100)], 1e9).admitted
    assert not buckets.take([a_charge(1)], 1e9).admitted


def test_what_has_drained_meanwhile_is_not_given_back_again():
    buckets = Buckets()
    first = a_charge(100)
    buckets.take([first], 0.0)
    buckets.take([a_charge(50)], 0.5)

    buckets.settle(first, actual=0, since=0.0, now=0.5)

    assert buckets.used(KEY, 0.5) == pytest.approx(50)  # the second's


class Naive:
    """A bucket that is computed anew from all that happened: (time, amount), in order."""

    def __init__(self, rate):
        self.rate = rate
        self.events = []

    def used(self, now):
        level, at = 0.0, 0.0
        for when, amount in self.events:
            level = max(level - (when - at) * self.rate, 0.0) + amount
            at = when
        return max(level - (now - at) * self.rate, 0.0)


steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "settle"]),
        st.floats(0, 2, allow_subnormal=False),  # time that passes before
        st.integers(0, 150),  # asked, or the actual amount
        st.integers(0, 20),  # which of the open ones is settled
    ),
    max_size=40,
)


@given(steps)
def test_a_settled_request_leaves_the_bucket_as_if_it_had_asked_for_what_it_took(happened):
    """And nothing is admitted beyond the rule: used and asked are within the limit, or nothing was used."""
    limit = a_limit(100)
    buckets, naive, now, taken = Buckets(), Naive(limit.rate), 0.0, []
    for step, passes, amount, which in happened:
        now += passes
        if step == "take":
            before = buckets.used(limit.key, now)
            verdict = buckets.take([a_charge(amount, limit)], now)
            assert verdict.admitted == (before + min(amount, 100) <= 100 + 1e-6)
            if verdict.admitted:
                taken.append((now, amount, len(naive.events)))
                naive.events.append((now, amount))
        elif taken:
            since, reserved, place = taken.pop(which % len(taken))
            actual = min(amount, reserved)
            naive.events[place] = (since, actual)
            buckets.settle(a_charge(reserved, limit), actual=actual, since=since, now=now)
        assert buckets.used(limit.key, now) == pytest.approx(naive.used(now), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 30)), min_size=1, max_size=10), st.randoms())
def test_any_order_of_settlements_leaves_what_was_really_taken(requests, random):
    buckets = Buckets()
    limit = a_limit(100, unit="minute")
    held = []
    for reserved, actual in requests:
        charge = a_charge(reserved, limit)
        assert buckets.take([charge], 0.0).admitted
        held.append((charge, actual))
    random.shuffle(held)
    for charge, actual in held:
        buckets.settle(charge, actual=actual, since=0.0, now=0.0)

    assert buckets.used(limit.key, 0.0) == pytest.approx(sum(actual for _, actual in requests))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 200))
def test_of_hundreds_that_are_open_at_once_each_gives_all_of_its_excess_back(seed, count):
    buckets, draw = Buckets(), random.Random(seed)
    limit = a_limit(10**9)._replace(rate=1e-9)
    charges = [a_charge(draw.choice((1, 100, 4096)), limit) for _ in range(count)]
    for number, charge in enumerate(charges):
        buckets.take([charge], float(number))
    order = list(enumerate(charges))
    draw.shuffle(order)
    for number, charge in order:
        buckets.settle(charge, actual=charge.amount // 2, since=float(number), now=1000.0)

    assert buckets.used(limit.key, 1000.0) == pytest.approx(sum(charge.amount // 2 for charge in charges), abs=1)
