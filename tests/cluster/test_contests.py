"""Quarrels over an object's fields."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import kinds
from matrixinfer.cluster.contests import Contests
from matrixinfer.cluster.plan import Apply, Delete, Publish, Together


def an_apply(name="demo", **spec):
    return Apply(kinds.SERVICE, {"metadata": {"name": name, "namespace": "default"}, "spec": spec})


def after(times, contests=None, now=0.0):
    contests = contests or Contests()
    for _ in range(times):
        contests.applied(an_apply(a=1), now)
    return contests


def test_what_somebody_changes_a_few_times_is_put_right_at_once():
    assert after(4).due(an_apply(a=1), 0.0) == 0.0


def test_then_pauses_double_to_half_a_minute():
    assert [after(times).due(an_apply(a=1), 0.0) for times in (5, 6, 7, 12, 100)] == [1.0, 2.0, 4.0, 30.0, 30.0]


def test_what_is_new_does_not_wait():
    contests = after(50)

    assert contests.due(an_apply(a=2), 0.0) == 0.0
    assert contests.due(an_apply("other", a=1), 0.0) == 0.0


def test_a_quarrel_of_long_ago_is_forgotten():
    contests = after(50)
    contests.applied(an_apply(a=1), 61.0)

    assert contests.due(an_apply(a=1), 61.0) == 61.0


@given(st.lists(st.floats(0.001, 5), min_size=1, max_size=200))
def test_an_endless_quarrel_costs_a_few_writes_a_minute(gaps):
    contests, now, writes = Contests(), 0.0, []
    for gap in gaps:  # the other one strikes back after each of these
        now += gap
        if contests.due(an_apply(a=1), now) <= now:
            contests.applied(an_apply(a=1), now)
            writes.append(now)

    assert all(sum(at - 60 < one <= at for one in writes) <= 5 + 6 for at in writes)


def test_of_many_objects_only_the_late_ones_are_remembered():
    contests = Contests()
    for number in range(5000):
        contests.applied(an_apply(str(number)), float(number))

    assert len(contests._of) < 2500


def test_what_is_not_contested_is_done_now():
    contests, other, gone = after(5), an_apply("other"), Delete(kinds.SERVICE, "gone", "default")

    assert contests.left_of(Together((an_apply(a=1), other, gone)), 0.0) == (Together((other, gone)), 1.0)
    assert contests.left_of(an_apply(a=1), 0.0) == (Together(()), 1.0)
    for untouched in (other, gone, Publish(1), Together((other, gone))):
        assert contests.left_of(untouched, 0.0) == (untouched, None)
