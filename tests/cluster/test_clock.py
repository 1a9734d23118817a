"""The time of day as a server has it."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cluster.clock import ServerClock

NOW = 1_800_000_000.0


def dated(moment):
    """Write a Date as servers do: the second that has begun."""
    return format_datetime(datetime.fromtimestamp(int(moment), UTC), usegmt=True)


def test_a_server_that_is_ahead_is_followed():
    clock = ServerClock(lambda: NOW)
    clock.heard(dated(NOW + 3600), took_s=0.2)

    assert clock() == NOW + 3600


def test_a_server_that_is_behind_is_followed():
    clock = ServerClock(lambda: NOW)
    clock.heard(dated(NOW - 3600), took_s=0.2)

    assert NOW - 3600 <= clock() <= NOW - 3598


def test_what_a_slow_answer_explains_is_not_put_right():
    clock = ServerClock(lambda: NOW)
    clock.heard(dated(NOW - 20), took_s=30)

    assert clock() == NOW


@given(skew_s=st.floats(-1e7, 1e7), took_s=st.floats(0, 30), part=st.floats(0, 1))
def test_it_is_never_further_off_than_the_answer_took_and_a_second(skew_s, took_s, part):
    clock = ServerClock(lambda: NOW)
    clock.heard(dated(NOW - took_s * part + skew_s), took_s)

    assert abs(clock() - (NOW + skew_s)) <= took_s + 1.001


@pytest.mark.parametrize("date", [None, "", "yesterday", "Mon, 99 Jan 2026 00:00:00 GMT"])
def test_a_date_that_is_none_changes_nothing(date):
    clock = ServerClock(lambda: NOW)
    clock.heard(date, took_s=0.1)

    assert clock() == NOW
