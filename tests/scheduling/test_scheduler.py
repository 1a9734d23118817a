from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from tests.scheduling.builders import a_cycle, a_scheduler, an_endpoint, the_default_scheduler


def test_the_highest_weighted_score_is_chosen_and_the_others_follow():
    scheduler = a_scheduler("queue-scorer", "kv-cache-utilization-scorer", weights={"queue-scorer": 2})
    cycle = a_cycle(an_endpoint(queue=3, kv=0.2), an_endpoint(queue=0, kv=0.1), an_endpoint(queue=10, kv=0.2))

    result = scheduler.schedule(cycle)

    assert result.addresses == ("10.0.0.1:8000", "10.0.0.0:8000", "10.0.0.2:8000")
    assert result.rows == (1, 0, 2)
    assert result.trace is None


def test_a_pool_without_endpoints_is_refused():
    with pytest.raises(errors.NoEndpoints):
        the_default_scheduler().schedule(a_cycle())


def test_filters_that_leave_nothing_are_named_in_the_refusal():
    scheduler = a_scheduler("least-request-filter", "queue-scorer")

    with pytest.raises(errors.Saturated, match="least-request-filter"):
        scheduler.schedule(a_cycle(an_endpoint(queue=10), an_endpoint(queue=11)))


def test_every_profile_avoids_endpoints_that_failed_lately():
    scheduler = a_scheduler("random-picker")
    cycle = a_cycle(an_endpoint(), an_endpoint(avoid_until=200), now=100)

    assert scheduler.schedule(cycle).rows == (0,)


def test_without_scorers_any_endpoint_will_do():
    scheduler = a_scheduler("max-score-picker")
    cycle = a_cycle(an_endpoint(), an_endpoint(), an_endpoint())

    assert {scheduler.schedule(cycle).rows[0] for _ in range(100)} == {0, 1, 2}


def test_the_trace_shows_each_score_and_why_the_winner_won():
    scheduler = a_scheduler(
        "least-request-filter", "queue-scorer", "kv-cache-utilization-scorer", weights={"queue-scorer": 3}
    )
    cycle = a_cycle(an_endpoint(queue=4, kv=0.5), an_endpoint(queue=12), an_endpoint(queue=0, kv=0.5))

    document = scheduler.schedule(cycle, trace=True).trace.document()

    assert json.loads(json.dumps(document)) == {
        "profile": "default",
        "picker": "max-score-picker",
        "reason": "leads 10.0.0.0:8000 by 0.7500, most of it by queue-scorer (1.0000 against 0.0000)",
        "weights": {"queue-scorer": 3.0, "kv-cache-utilization-scorer": 1.0},
        "candidates": [
            {
                "endpoint": "10.0.0.2:8000",
                "score": 0.875,
                "scores": {"queue-scorer": 1.0, "kv-cache-utilization-scorer": 0.5},
            },
            {
                "endpoint": "10.0.0.0:8000",
                "score": 0.125,
                "scores": {"queue-scorer": 0.0, "kv-cache-utilization-scorer": 0.5},
            },
            {"endpoint": "10.0.0.1:8000", "dropped_by": "least-request-filter"},
        ],
    }


@pytest.mark.parametrize(
    ("endpoints", "reason"),
    [
        ([an_endpoint()], "the only candidate left"),
        ([an_endpoint(queue=1), an_endpoint(queue=1)], "max-score-picker broke the tie"),
    ],
)
def test_a_win_without_a_lead_is_explained(endpoints, reason):
    result = a_scheduler("queue-scorer", "max-score-picker").schedule(a_cycle(*endpoints), trace=True)

    assert result.trace.reason().startswith(reason)


def test_a_choice_against_the_scores_is_said_to_be_one():
    scheduler = a_scheduler("queue-scorer", "round-robin-picker")
    cycle = a_cycle(an_endpoint(queue=5), an_endpoint(queue=0))

    trace = scheduler.schedule(cycle, trace=True).trace

    assert trace.candidates()[0].address == "10.0.0.0:8000"
    assert trace.reason() == "chosen by round-robin-picker, not for its score"


def test_a_trace_changes_nothing_in_the_choice():
    cycle = a_cycle(*[an_endpoint(queue=at % 3, inflight=at % 4) for at in range(40)], seed=7)
    again = a_cycle(*[an_endpoint(queue=at % 3, inflight=at % 4) for at in range(40)], seed=7)

    assert the_default_scheduler().schedule(cycle).rows == the_default_scheduler().schedule(again, trace=True).rows


def test_decisions_are_observed():
    scheduler = a_scheduler("round-robin-picker")
    cycle = a_cycle(an_endpoint(), an_endpoint(), an_endpoint())

    assert [scheduler.schedule(cycle).rows[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_candidates_may_be_any_rows_of_the_table():
    cycle = a_cycle(*[an_endpoint(queue=at) for at in range(5)])
    some = cycle.narrowed(np.array([False, False, False, True, True]))

    assert a_scheduler("queue-scorer").schedule(some).rows == (3, 4)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "queue": st.integers(0, 50),
                "kv": st.floats(0, 1),
                "inflight": st.integers(0, 50),
                "matched": st.integers(0, 20),
                "avoid_until": st.sampled_from([0.0, 200.0]),
            }
        ),
        min_size=1,
        max_size=50,
    ),
    st.integers(0, 20),
)
def test_the_default_profile_always_finds_an_endpoint(endpoints, trunk):
    result = the_default_scheduler().schedule(a_cycle(*endpoints, blocks=20, trunk=trunk), trace=True)

    assert 1 <= len(result.rows) <= 4
    assert len(result.trace.candidates()) == len(endpoints)
    failed = [facts["avoid_until"] > 100 for facts in endpoints]
    assert all(failed) or not any(failed[row] for row in result.rows)
