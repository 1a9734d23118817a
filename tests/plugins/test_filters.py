from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from extproc.plugins.bounded_load_filter import BoundedLoadFilter
from extproc.plugins.least_request_filter import LeastRequestFilter
from extproc.plugins.recent_failure_filter import RecentFailureFilter
from tests.scheduling.builders import a_cycle, a_plugin, an_endpoint


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
