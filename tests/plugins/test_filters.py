from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import plugins
from extproc.plugins.bounded_load_filter import BoundedLoadFilter
from extproc.plugins.by_label import ByLabel
from extproc.plugins.context_length_aware import ContextLengthAware
from extproc.plugins.label_selector_filter import LabelSelectorFilter, Requirement
from extproc.plugins.least_request_filter import LeastRequestFilter
from extproc.plugins.recent_failure_filter import RecentFailureFilter
from extproc.plugins.utilization_filter import Condition, UtilizationFilter
from tests.scheduling.builders import a_cycle, a_plugin, a_request, an_endpoint, any_plugin


def test_endpoints_that_failed_lately_are_left_out():
    cycle = a_cycle(an_endpoint(avoid_until=101), an_endpoint(), an_endpoint(avoid_until=100), now=100)

    assert a_plugin(RecentFailureFilter).keep(cycle).tolist() == [False, True, True]


def test_nothing_is_left_out_where_all_failed():
    cycle = a_cycle(an_endpoint(avoid_until=101), an_endpoint(avoid_until=102), now=100)

    assert a_plugin(RecentFailureFilter).keep(cycle).tolist() == [True, True]


def test_engines_with_a_long_queue_are_left_out():
    cycle = a_cycle(an_endpoint(queue=9), an_endpoint(queue=10))

    assert a_plugin(LeastRequestFilter).keep(cycle).tolist() == [True, False]
    assert a_plugin(LeastRequestFilter, max_waiting_requests=11).keep(cycle).tolist() == [True, True]


def test_an_endpoint_at_its_bound_takes_no_more():
    cycle = a_cycle(
        an_endpoint(inflight=12), an_endpoint(inflight=13), an_endpoint(inflight=6), an_endpoint(inflight=8)
    )

    assert a_plugin(BoundedLoadFilter).keep(cycle).tolist() == [True, False, True, True]  # 1.25 * 40 / 4 = 12.5


def test_a_pool_with_few_requests_is_not_restricted():
    cycle = a_cycle(an_endpoint(inflight=3), an_endpoint(), an_endpoint(), an_endpoint())

    assert a_plugin(BoundedLoadFilter).keep(cycle).tolist() == [True, True, True, True]
    assert a_plugin(BoundedLoadFilter, min_requests=1).keep(cycle).tolist() == [False, True, True, True]


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=50),
    st.floats(1, 4),
    st.integers(1, 10),
)
def test_the_bound_always_leaves_the_least_loaded(inflight, factor, floor):
    cycle = a_cycle(*[an_endpoint(inflight=count) for count in inflight])

    keep = a_plugin(BoundedLoadFilter, load_factor=factor, min_requests=floor).keep(cycle)

    assert keep[inflight.index(min(inflight))]


def labelled(*values):
    """Endpoints with these values of the label `role`, None for none."""
    return a_cycle(*[an_endpoint(labels={} if value is None else {"role": value}) for value in values])


@pytest.mark.parametrize(
    ("operator", "values", "wanted"),
    [
        ("In", ("prefill", "both"), [True, False, True, False]),
        ("NotIn", ("prefill", "both"), [False, True, False, True]),
        ("Exists", (), [True, True, True, False]),
        ("DoesNotExist", (), [False, False, False, True]),
    ],
)
def test_label_expressions_mean_what_they_mean_in_kubernetes(operator, values, wanted):
    one = a_plugin(LabelSelectorFilter, match_expressions=(Requirement("role", operator, values),))

    assert one.keep(labelled("prefill", "decode", "both", None)).tolist() == wanted


def test_all_of_a_selector_has_to_be_met():
    one = a_plugin(
        LabelSelectorFilter, match_labels={"role": "decode"}, match_expressions=(Requirement("old", "DoesNotExist"),)
    )
    cycle = a_cycle(
        an_endpoint(labels={"role": "decode"}),
        an_endpoint(labels={"role": "decode", "old": "1"}),
        an_endpoint(labels={"role": "prefill"}),
    )

    assert one.keep(cycle).tolist() == [True, False, False]


def test_a_selector_that_says_nothing_selects_everything():
    assert a_plugin(LabelSelectorFilter).keep(labelled("decode", None)).tolist() == [True, True]


def test_pods_with_a_valid_label_are_kept_and_those_without_if_allowed():
    cycle = labelled("decode", "prefill", None)

    assert a_plugin(ByLabel, label="role", valid_values=("decode",)).keep(cycle).tolist() == [True, False, False]
    assert a_plugin(ByLabel, label="role", valid_values=("decode",), allows_no_label=True).keep(cycle).tolist() == [
        True,
        False,
        True,
    ]


def test_endpoints_above_one_of_the_bounds_are_left_out():
    one = a_plugin(
        UtilizationFilter, conditions=(Condition("waiting-queue", 5), Condition("kv-cache-utilization", 0.9))
    )
    cycle = a_cycle(an_endpoint(queue=5, kv=0.9), an_endpoint(queue=6), an_endpoint(kv=0.95), an_endpoint())

    assert one.keep(cycle).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("metric", "fact"),
    [
        ("active-requests", "inflight"),
        ("running-requests", "running"),
        ("waiting-queue", "queue"),
        ("kv-cache-utilization", "kv"),
    ],
)
def test_each_metric_is_the_one_of_its_name(metric, fact):
    one = a_plugin(UtilizationFilter, conditions=(Condition(metric, 0),))

    assert one.keep(a_cycle(an_endpoint(**{fact: 1}), an_endpoint())).tolist() == [False, True]


@pytest.mark.parametrize(("fallback", "wanted"), [(False, [False, False]), (True, [True, True])])
def test_where_all_are_above_the_bound_none_or_all_stay(fallback, wanted):
    one = a_plugin(UtilizationFilter, conditions=(Condition("waiting-queue", 0),), fallback_on_empty=fallback)

    assert one.keep(a_cycle(an_endpoint(queue=1), an_endpoint(queue=2))).tolist() == wanted


RANGE = "llm-d.ai/context-length-range"


def ranges(*values, tokens):
    """Endpoints with these ranges of prompt lengths, None for none, and a prompt."""
    return a_cycle(
        *[an_endpoint(labels={} if value is None else {RANGE: value}) for value in values],
        request=a_request(prompt_tokens=tokens),
    )


def test_narrow_ranges_that_hold_the_prompt_score_highest_and_near_ones_above_far_ones():
    cycle = ranges("0-10000", "5000-5000", "7000-9000", "0-3000", None, "many", tokens=5000)

    scores = a_plugin(ContextLengthAware).score(cycle).tolist()

    assert scores == pytest.approx([0.65, 1.0, 0.1, 0.1, 0.5, 0.0])  # 0.3 + 0.7 * (0.35 + 0.15); 0.3 / (1 + 2)


def test_ranges_filter_only_where_that_is_asked_for():
    cycle = ranges("0-4999", "5000-9000", "0-5000", None, "9000-1", tokens=5000)

    assert a_plugin(ContextLengthAware).keep(cycle).tolist() == [True] * 5
    assert a_plugin(ContextLengthAware, enable_filtering=True).keep(cycle).tolist() == [False, True, True, True, False]


@given(st.integers(0, 100_000), st.integers(0, 100_000), st.integers(0, 100_000))
def test_a_range_that_holds_the_prompt_scores_above_any_that_does_not(low, width, tokens):
    cycle = ranges(f"{low}-{low + width}", tokens=tokens)

    (score,) = a_plugin(ContextLengthAware).score(cycle).tolist()

    assert (score > 0.3) == (low <= tokens <= low + width)


FILTERS = [one for one in plugins.BUILTIN.types if hasattr(one, "keep")]


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "queue": st.integers(0, 20),
                "inflight": st.integers(0, 20),
                "tokens": st.integers(0, 10**7),
                "matched": st.integers(0, 10),
                "labels": st.sampled_from([{}, {"role": "decode"}, {"role": "prefill", RANGE: "0-100"}]),
                "models": st.sampled_from([(), ("demo",)]),
            }
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from(FILTERS),
)
def test_every_filter_marks_each_candidate(endpoints, kind):
    keep = any_plugin(kind).keep(a_cycle(*endpoints, blocks=10))

    assert keep.shape == (len(endpoints),)
    assert keep.dtype == bool
