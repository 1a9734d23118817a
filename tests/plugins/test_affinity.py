from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.plugins.header_label_affinity_scorer import HeaderLabelAffinityScorer
from extproc.plugins.prefix_cache_affinity_filter import PrefixCacheAffinityFilter
from extproc.plugins.session_affinity_filter import SessionAffinityFilter
from extproc.plugins.session_affinity_scorer import (
    SessionAffinityScorer,
    SessionIdConfig,
    Sessions,
    Source,
)
from tests.scheduling.builders import a_cycle, a_plugin, a_request, an_endpoint


def sessions(*sources, **config):
    """A scorer that knows sessions by these sources."""
    given_sources = {"sources": sources} if sources else {}
    return a_plugin(
        SessionAffinityScorer, strategy="session_id", session_id_config=SessionIdConfig(**given_sources, **config)
    )


def of_session(name, **more):
    """A cycle over three endpoints for a request of this session."""
    headers = {"x-session-id": name} if name else {}
    return a_cycle(*[an_endpoint()] * 3, request=a_request(headers=headers), **more)


# ---- sessions


def test_a_session_is_led_back_to_where_its_last_request_went():
    scorer = sessions()
    scorer.observe(of_session("s"), 1)

    assert scorer.score(of_session("s")).tolist() == [0.0, 1.0, 0.0]

    scorer.observe(of_session("s"), 2)

    assert scorer.score(of_session("s")).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["", "another"])
def test_a_request_without_a_bound_session_has_no_preference(name):
    scorer = sessions()
    scorer.observe(of_session("s"), 1)

    assert scorer.score(of_session(name)).tolist() == [0.0, 0.0, 0.0]


def test_a_session_of_another_model_is_another_session():
    scorer = sessions()
    scorer.observe(of_session("s"), 1)
    cycle = a_cycle(an_endpoint(), an_endpoint(), request=a_request(model="other", headers={"x-session-id": "s"}))

    assert scorer.score(cycle).tolist() == [0.0, 0.0]


def test_a_session_is_forgotten_after_its_time():
    scorer = sessions(eviction_ttl_seconds=60)
    scorer.observe(of_session("s", now=100), 1)

    assert scorer.score(of_session("s", now=160)).tolist() == [0.0, 1.0, 0.0]
    assert scorer.score(of_session("s", now=160.5)).tolist() == [0.0, 0.0, 0.0]


def test_a_session_may_be_named_by_any_of_the_sources_the_first_first():
    scorer = sessions(Source(header="X-Agent"), Source(cookie="sid"))
    by_cookie = a_cycle(an_endpoint(), an_endpoint(), request=a_request(headers={"cookie": 'a=1; sid="one"; b=2'}))
    by_both = a_cycle(
        an_endpoint(), an_endpoint(), request=a_request(headers={"x-agent": "one", "cookie": "sid=other"})
    )
    scorer.observe(by_cookie, 0)

    assert scorer.score(by_both).tolist() == [1.0, 0.0]


def test_a_bound_endpoint_that_left_is_no_preference():
    scorer = sessions()
    scorer.observe(of_session("s"), 1)
    cycle = of_session("s")
    cycle.table.remove("10.0.0.1:8000")

    assert scorer.score(cycle).tolist() == [0.0, 0.0, 0.0]


def test_the_filter_keeps_the_sessions_endpoint_alone():
    one = a_plugin(SessionAffinityFilter, strategy="session_id")
    one.observe(of_session("s"), 1)

    assert one.keep(of_session("s")).tolist() == [False, True, False]
    assert one.keep(of_session("t")).tolist() == [True, True, True]


def test_the_filter_keeps_all_where_the_sessions_endpoint_is_no_candidate():
    one = a_plugin(SessionAffinityFilter, strategy="session_id")
    one.observe(of_session("s"), 1)
    cycle = of_session("s").narrowed(np.array([True, False, True]))

    assert one.keep(cycle).tolist() == [True, True]


def test_expired_sessions_are_dropped():
    kept = Sessions(SessionIdConfig(eviction_ttl_seconds=60, eviction_sweep_seconds=10))
    for at in range(50):
        kept.bind(of_session(f"s{at}", now=100), 1)
    kept.bind(of_session("", now=161), 1)

    assert len(kept) == 0


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.integers(0, 30)), max_size=60))
def test_memory_is_bounded_and_right_about_those_it_has(requests):
    kept = Sessions(SessionIdConfig(eviction_ttl_seconds=60), most=5)
    now, last = 0, {}
    for session, row, waited in requests:
        now += waited
        kept.bind(of_session(f"s{session}", now=now), row)
        last.pop(session, None)
        last[session] = (row, now)

        assert len(kept) <= 5
        recent = dict(list(last.items())[-5:])
        for name, (where, used) in last.items():
            wanted = where if name in recent and now - used <= 60 else -1
            assert kept.bound(of_session(f"s{name}", now=now)) == wanted


# ---- headers and labels


def test_pods_whose_label_is_what_the_header_says_score_one():
    scorer = a_plugin(HeaderLabelAffinityScorer, header_name="X-Slice", label_key="slice")
    endpoints = [an_endpoint(labels={"slice": "a"}), an_endpoint(labels={"slice": "b"}), an_endpoint()]

    assert scorer.score(a_cycle(*endpoints, request=a_request(headers={"x-slice": " b "}))).tolist() == [0, 1, 0]
    assert scorer.score(a_cycle(*endpoints)).tolist() == [0.0, 0.0, 0.0]


# ---- sticky until saturated


def test_only_endpoints_that_hold_most_of_the_prefix_stay():
    cycle = a_cycle(an_endpoint(matched=8), an_endpoint(matched=7), an_endpoint(), blocks=10)

    assert a_plugin(PrefixCacheAffinityFilter).keep(cycle).tolist() == [True, False, False]
    assert a_plugin(PrefixCacheAffinityFilter, affinity_threshold=0.7).keep(cycle).tolist() == [True, True, False]


@pytest.mark.parametrize("blocks", [0, 100])
def test_where_nobody_holds_enough_all_stay(blocks):
    cycle = a_cycle(an_endpoint(matched=blocks // 2), an_endpoint(), blocks=blocks)

    assert a_plugin(PrefixCacheAffinityFilter).keep(cycle).tolist() == [True, True]


def test_affinity_ends_where_the_others_are_faster_by_more_than_the_penalty():
    only = a_plugin(PrefixCacheAffinityFilter, peak_prefill_throughput=1000, max_ttft_penalty_ms=5000)

    def keep(tokens):
        endpoints = [an_endpoint(matched=10, tokens=tokens), an_endpoint(tokens=9000), an_endpoint(tokens=1000)]
        return only.keep(a_cycle(*endpoints, blocks=10)).tolist()

    assert keep(6000) == [True, False, False]  # 5 s more than the best of the others
    assert keep(6001) == [True, True, True]


def test_a_penalty_of_zero_always_sticks():
    cycle = a_cycle(an_endpoint(matched=10, tokens=10**9), an_endpoint(), blocks=10)

    assert a_plugin(PrefixCacheAffinityFilter, max_ttft_penalty_ms=0).keep(cycle).tolist() == [True, False]


def test_an_endpoint_that_is_predicted_to_be_slow_is_let_go():
    def holding(seconds, **facts):
        return an_endpoint(ttft=seconds, ttft_samples=1e9, load=1, measured_at=100.0, **facts)

    learned = a_plugin(PrefixCacheAffinityFilter, ttft_source="latencyPredictor", max_ttft_penalty_ms=500)
    slow = a_cycle(holding(0.8, matched=10), holding(0.2), blocks=10)
    fine = a_cycle(holding(0.6, matched=10), holding(0.2), blocks=10)
    unknown = a_cycle(an_endpoint(matched=10), an_endpoint(), blocks=10)

    assert learned.keep(slow).tolist() == [True, True]
    assert learned.keep(fine).tolist() == [True, False]
    assert learned.keep(unknown).tolist() == [True, False]


def test_some_requests_explore():
    one = a_plugin(PrefixCacheAffinityFilter, exploration_probability=0.25)
    cycle = a_cycle(an_endpoint(matched=10), an_endpoint(), blocks=10)

    explored = sum(one.keep(cycle).tolist() == [True, True] for _ in range(2000))

    assert explored == pytest.approx(500, rel=0.2)
