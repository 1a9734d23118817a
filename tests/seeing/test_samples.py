import math

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cli.view import samples as names
from matrixinfer.cli.view.samples import quantile, samples

PAGE = """\
# HELP matrixinfer_requests_total Requests that ended.
# TYPE matrixinfer_requests_total counter
matrixinfer_requests_total{model="demo",reason="complete",status="200"} 3.0
matrixinfer_requests_total{model="a \\"b\\" \\\\ {c}",reason="failed",status="503"} 1.0 1795268820
matrixinfer_bypassed_total 7.0
matrixinfer_requests_created{model="demo"} 1.7e9
process_open_fds 28.0
"""


def test_samples_are_found_by_name_and_label_values():
    found = samples(PAGE)

    assert found.value(names.REQUESTS, "demo", "complete", "200") == 3
    assert found.value(names.REQUESTS, 'a "b" \\ {c}', "failed", "503") == 1
    assert found.value(names.BYPASSED) == 7
    assert found.value(names.LEDGER, "expired") == 0
    assert found.of("process_open_fds") == {}


def test_a_counter_that_began_again_has_grown_by_what_it_is():
    grown = samples("matrixinfer_bypassed_total 5").since(samples("matrixinfer_bypassed_total 7"))

    assert grown.value(names.BYPASSED) == 5


@given(st.dictionaries(st.tuples(st.text(), st.text(), st.text()), st.floats(0, 1e12), max_size=5))
def test_whatever_prometheus_writes_is_read_back(counted):
    registry = prometheus_client.CollectorRegistry()
    metric = prometheus_client.Counter("matrixinfer_requests", "x", ("model", "reason", "status"), registry=registry)
    for labels, value in counted.items():
        metric.labels(*labels).inc(value)

    assert dict(samples(prometheus_client.generate_latest(registry).decode()).of(names.REQUESTS)) == counted


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.5, 0.1), (0.25, 0.05), (0.75, 0.15), (1.0, 0.2)],
)
def test_quantiles_are_linear_within_a_bucket(share, expected):
    assert quantile(share, [(0.1, 10), (0.2, 20), (math.inf, 20)]) == pytest.approx(expected)


def test_a_quantile_beyond_the_last_bound_is_that_bound_and_of_nothing_is_none():
    assert quantile(0.99, [(0.1, 1), (math.inf, 10)]) == 0.1
    assert quantile(0.5, [(0.1, 0), (math.inf, 0)]) is None
    assert quantile(0.5, []) is None


@given(st.lists(st.integers(0, 50), min_size=2, max_size=8), st.floats(0.01, 1), st.floats(0.01, 1))
def test_quantiles_grow_with_their_share(cells, one, other):
    bounds = [*(0.1 * 2**at for at in range(len(cells) - 1)), math.inf]
    buckets = [(bound, sum(cells[: at + 1])) for at, bound in enumerate(bounds)]
    low, high = quantile(min(one, other), buckets), quantile(max(one, other), buckets)

    assert (low is None) == (high is None) == (sum(cells) == 0)
    assert low is None or 0 <= low <= high + 1e-9
