from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.plugins.latency_scorer import LatencyScorer
from extproc.plugins.least_latency_scorer import LeastLatencyScorer
from extproc.plugins.slo_headroom_tier_filter import SloHeadroomTierFilter
from extproc.scheduling import latency
from extproc.scheduling.latency import HALF_LIFE_S, Sample
from extproc.traffic.latency import learn
from extproc.traffic.ledger import Ledger, Sent
from extproc.types import Outcome
from tests.scheduling.builders import a_cycle, a_plugin, a_request, a_table, an_endpoint

OFTEN = 1e9  # so many samples that nothing is blended with them


def measured(ttft=0.1, tpot=0.01, *, samples=OFTEN, load=1, **facts):
    """An endpoint that was measured at this very moment."""
    times = {"ttft": ttft, "tpot": tpot, "ttft_samples": samples, "tpot_samples": samples}
    return an_endpoint(**times, load=load, measured_at=100.0, **facts)


def scores(*endpoints, plugin=LeastLatencyScorer, request=None, now=100.0, **parameters):
    return a_plugin(plugin, **parameters).score(a_cycle(*endpoints, now=now, request=request)).tolist()


# ---- least-latency-scorer


def test_half_of_the_score_is_the_first_token_and_half_the_time_between_tokens():
    endpoints = measured(0.1, 0.03), measured(0.2, 0.01), measured(0.3, 0.02)

    assert scores(*endpoints) == pytest.approx([0.5, 0.75, 0.25])
    assert scores(*endpoints, ttft_tpot_weight_factor=1) == pytest.approx([1.0, 0.5, 0.0])
    assert scores(*endpoints, ttft_tpot_weight_factor=0) == pytest.approx([0.0, 1.0, 0.5])


def test_a_small_difference_counts_by_its_size_and_kthenas_scale_tells_it_loudly():
    endpoints = measured(0.100), measured(0.099)

    assert scores(*endpoints, ttft_tpot_weight_factor=1) == pytest.approx([0.95, 1.0])
    assert scores(*endpoints, ttft_tpot_weight_factor=1, min_spread=0) == pytest.approx([0.0, 1.0])


def test_an_endpoint_that_nobody_measured_is_as_good_as_the_best():
    assert scores(measured(0.1), measured(0.3), an_endpoint(), ttft_tpot_weight_factor=1) == pytest.approx([1, 0, 1])


def test_an_endpoint_that_nobody_measured_gets_no_more_than_its_load_allows():
    endpoints = measured(0.1), measured(0.1), an_endpoint(inflight=1)

    assert scores(*endpoints, ttft_tpot_weight_factor=1) == pytest.approx([1.0, 1.0, 0.0])


def test_before_any_sample_the_requests_in_flight_decide():
    assert scores(an_endpoint(inflight=1), an_endpoint(), an_endpoint(inflight=3)) == pytest.approx([2 / 3, 1.0, 0.0])


def test_the_present_load_is_compared_with_that_of_the_samples():
    calm, same, busy = measured(load=4, inflight=1), measured(load=4, inflight=3), measured(load=4, inflight=5)

    assert scores(calm, same, busy) == pytest.approx([1.0, 0.5, 0.0])


def test_what_was_slow_once_is_tried_again():
    slow, fast = measured(0.9, samples=10), measured(0.1, samples=10)
    slow["measured_at"] = 100.0 - 12 * HALF_LIFE_S

    assert scores(slow, fast, ttft_tpot_weight_factor=1) == pytest.approx([1.0, 1.0], abs=0.1)


def test_one_metric_that_nobody_has_measured_is_left_out():
    embeddings = [an_endpoint(ttft=at / 10, ttft_samples=OFTEN, load=1, measured_at=100.0) for at in (1, 2)]

    assert scores(*embeddings) == pytest.approx([1.0, 0.0])


def test_long_prompts_do_not_make_an_engine_slow():
    table = a_table(an_endpoint(), an_endpoint())
    for at in range(200):
        tokens = 1000 + 1000 * (at % 10)
        latency.record(table, 0, Sample(0.02 + tokens * 1e-4, tokens, 0.01, 1), 100.0 + at / 100)
        latency.record(table, 1, Sample(0.02 + tokens / 10 * 1.5e-4, tokens / 10, 0.01, 1), 100.0 + at / 100)
    times = latency.predicted(table, np.array([0, 1]), np.array([1000.0, 1000.0]), now=102.0)

    assert table.ttft_s[0] > 3 * table.ttft_s[1]
    assert times.ttft_s[0] == pytest.approx(0.12, rel=0.1)
    assert times.ttft_s[1] > times.ttft_s[0]


# ---- learning


def a_sent(**facts):
    given_facts = {"stream": True, "prompt_tokens": 1000, "blocks": 10, "matched": 4, "endpoints": ("10.0.0.0:8000",)}
    rest = {
        "ticket": "t",
        "request_id": "r",
        "model": "m",
        "engine_model": "m",
        "target": "s",
        "route": "r",
        "path": "/",
    }
    return Sent(**rest | given_facts | facts, at=1.0)


def an_outcome(**facts):
    given_facts = {
        "ticket": "t",
        "request_id": "r",
        "model": "m",
        "endpoint": "10.0.0.0:8000",
        "status": 200,
        "flags": (),
        "details": "",
        "attempts": 1,
        "started_at": 0.0,
        "duration_s": 1.1,
        "first_token_s": 0.1,
        "prompt_tokens": None,
        "completion_tokens": 101,
        "cached_tokens": None,
    }
    return Outcome(**given_facts | facts)


def learned(sent=None, **facts):
    """The table after one request was settled, with two more in flight at its endpoint."""
    table = a_table(an_endpoint(inflight=2))
    ledger = Ledger(table)
    ledger.open(sent or a_sent())
    learn(table, ledger.settle(an_outcome(**facts), 100.0), 100.0)
    return table


def test_a_stream_tells_both_times_and_the_load():
    table = learned()

    assert (table.ttft_s[0], table.ttft_samples[0], table.tpot_samples[0]) == (0.1, 1.0, 1.0)
    assert table.tpot_s[0] == pytest.approx(0.01)
    assert (table.latency_load[0], table.latency_at[0]) == (3.0, 100.0)


def test_times_count_from_when_the_endpoint_had_the_request():
    table = learned(a_sent(waited_s=0.03, prefill_s=0.02), sent_s=0.06)

    assert table.ttft_s[0] == pytest.approx(0.04)
    assert table.tpot_s[0] == pytest.approx(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_answers_that_are_made_at_once_are_no_faster_than_one(stream):
    one, three = (
        learned(a_sent(stream=stream, choices=choices), completion_tokens=choices * 101) for choices in (1, 3)
    )

    assert three.tpot_s[0] == pytest.approx(one.tpot_s[0])


def test_several_streams_that_break_off_tell_the_time_to_the_first_token_only():
    table = learned(a_sent(choices=3), completion_tokens=101, status=200, flags=("DC",))

    assert (table.ttft_s[0], table.tpot_samples[0]) == (0.1, 0.0)


def test_tokens_to_compute_are_those_that_the_engine_did_not_find_cached():
    assert learned().ttft_tokens[0] == 600.0
    assert learned(prompt_tokens=900, cached_tokens=800).ttft_tokens[0] == 100.0
    assert learned(prompt_tokens=900).ttft_tokens[0] == 900.0


def test_an_answer_in_one_piece_tells_the_time_between_tokens():
    table = learned(a_sent(stream=False), first_token_s=1.0, duration_s=1.01)

    assert (table.ttft_samples[0], table.tpot_samples[0]) == (0.0, 1.0)
    assert table.tpot_s[0] == pytest.approx(0.01)


@pytest.mark.parametrize("tokens", [None, 0, 1])
def test_an_answer_without_further_tokens_is_a_first_token(tokens):
    table = learned(a_sent(stream=False), completion_tokens=tokens, duration_s=0.3)

    assert (table.ttft_s[0], table.tpot_samples[0]) == (0.3, 0.0)


@pytest.mark.parametrize(
    "facts",
    [
        {"attempts": 2},
        {"status": 503},
        {"status": 400},
        {"flags": ("UC",)},
        {"endpoint": ""},
        {"endpoint": "10.9.9.9:8000"},
    ],
)
def test_what_says_nothing_about_the_endpoint_is_not_learned(facts):
    table = learned(**facts)

    assert (table.ttft_samples[0], table.tpot_samples[0]) == (0.0, 0.0)


def test_a_client_that_left_a_stream_has_told_its_first_token():
    assert learned(flags=("DC",)).ttft_samples[0] == 1.0
    assert learned(a_sent(stream=False), flags=("DC",)).tpot_samples[0] == 0.0


def test_a_sample_counts_half_after_a_half_life():
    table = a_table(an_endpoint())
    latency.record(table, 0, Sample(0.3, 0, None, 1), 0.0)
    latency.record(table, 0, Sample(0.6, 0, None, 1), HALF_LIFE_S)

    assert table.ttft_samples[0] == 1.5
    assert table.ttft_s[0] == pytest.approx(0.5)


SAMPLES = st.lists(
    st.builds(
        Sample,
        st.none() | st.floats(0, 1e4),
        st.integers(0, 10**7),
        st.none() | st.floats(0, 1e3),
        st.integers(1, 10**4),
    ).flatmap(lambda sample: st.tuples(st.just(sample), st.integers(0, 2), st.floats(0, 1e6))),
    max_size=30,
)


@given(SAMPLES, st.floats(0, 1e6), st.sampled_from([LeastLatencyScorer, LatencyScorer]))
def test_any_history_gives_predictions_and_scores_in_range(samples, later, scorer):
    cycle = a_cycle(an_endpoint(inflight=3), an_endpoint(), an_endpoint(inflight=1000))
    now = 0.0
    for sample, row, waited in samples:
        now += waited
        latency.record(cycle.table, row, sample, now)
    cycle = cycle._replace(now=now + later)
    times = latency.predicted(cycle.table, cycle.rows, np.array([0.0, 100.0, 1e6]), now=cycle.now)
    found = a_plugin(scorer).score(cycle)

    assert times is None or (np.isfinite(times.ttft_s).all() and times.ttft_s.min() >= 0 and times.tpot_s.min() >= 0)
    assert found.min() >= 0
    assert found.max() <= 1


# ---- latency-scorer and slo-headroom-tier-filter

OBJECTIVES = {"x-llm-d-slo-ttft-ms": "200", "x-slo-tpot-ms": "20"}


def slo(*endpoints, headers=OBJECTIVES, **parameters):
    return scores(*endpoints, plugin=LatencyScorer, request=a_request(headers=headers), **parameters)


def test_who_just_meets_the_objectives_is_filled_up_first():
    endpoints = measured(0.19, 0.019), measured(0.1, 0.01), measured(0.3, 0.01)

    assert slo(*endpoints) == pytest.approx([1.0, 0.01, 0.0])
    assert slo(*endpoints, headroom_selection_strategy="most") == pytest.approx([0.01, 1.0, 0.0])


def test_where_nobody_meets_the_objectives_the_idle_ones_come_first():
    busy, idle = measured(0.3, inflight=1, load=2), measured(0.5)

    assert slo(busy, idle) == pytest.approx([0.0, 1.0])


def test_where_nobody_meets_the_objectives_the_least_late_wins():
    ttft = [measured(late, inflight=1, load=2) for late in (0.3, 0.5, 0.4)]

    assert slo(*ttft, headroom_selection_strategy="most") == pytest.approx([1.0, 0.01, 0.505])
    assert slo(*ttft, measured(0.1, 0.03, inflight=1, load=2)) == pytest.approx([0, 0, 0, 1.0])


def test_without_objectives_the_fastest_wins():
    assert slo(measured(0.3), measured(0.1), headers={}) == pytest.approx([0.01, 1.0])
    assert slo(measured(0.3), measured(0.1), headers={"x-slo-ttft-ms": "fast"}) == pytest.approx([0.01, 1.0])


def test_before_any_sample_cache_queue_and_prefix_decide():
    free = an_endpoint(queue=2, kv=0.1)
    cycle = a_cycle(free, an_endpoint(queue=0, kv=0.7, matched=5), blocks=10)

    assert a_plugin(LatencyScorer).score(cycle).tolist() == pytest.approx([0.3, 0.6])
    assert a_plugin(LatencyScorer, composite_queue_weight=0, composite_prefix_weight=0).score(
        cycle
    ).tolist() == pytest.approx([0.9, 0.3])


def kept(*endpoints, headers=OBJECTIVES, **parameters):
    cycle = a_cycle(*endpoints, request=a_request(headers=headers))
    return a_plugin(SloHeadroomTierFilter, **parameters).keep(cycle).tolist()


def test_who_misses_an_objective_is_left_out_while_another_meets_both():
    fast, slow = measured(0.1), measured(0.3)

    assert kept(fast, slow, epsilon_explore_neg=0) == [True, False]
    assert kept(fast, slow, epsilon_explore_neg=1) == [False, True]
    assert kept(slow, slow) == [True, True]
    assert kept(fast, slow, headers={}) == [True, True]
    assert kept(an_endpoint(), an_endpoint()) == [True, True]
