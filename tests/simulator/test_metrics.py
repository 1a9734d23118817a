import math

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import utils
from prometheus_client.parser import text_string_to_metric_families

from engine.simulator import metrics

VALUES = st.one_of(st.integers(0, 10**15), st.floats(0, 1e15), st.just(math.inf))


@given(VALUES)
def test_numbers_are_written_as_prometheus_client_writes_them(value: float):
    assert metrics.number(value) == utils.floatToGoString(value)


@given(st.text(max_size=20), st.floats(0, 1e9))
def test_any_label_value_survives_the_page(value: str, amount: float):
    gauge = metrics.Gauge("g", "help")
    gauge.set((("a", value),), amount)

    (family,) = text_string_to_metric_families(metrics.page([gauge]).decode())
    assert family.samples[0].labels == {"a": value}
    assert family.samples[0].value == amount


@given(st.lists(st.floats(0, 10), max_size=20))
def test_a_histogram_is_the_librarys(values: list[float]):
    ours = metrics.Histogram("h", "help", (0.5, 1, 5), [(("a", "b"),)])
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("h", "help", ["a"], buckets=(0.5, 1, 5), registry=registry).labels("b")
    for value in values:
        ours.observe((("a", "b"),), value)
        theirs.observe(value)

    def samples(page: str) -> list[str]:
        return [line for line in page.splitlines() if "_created" not in line]

    assert samples(ours.text()) == samples(prometheus_client.generate_latest(registry).decode())


def test_times_counts_a_value_several_times():
    once, thrice = metrics.Histogram("h", "h", (1,), [()]), metrics.Histogram("h", "h", (1,), [()])
    thrice.observe((), 0.5, times=3)
    for _ in range(3):
        once.observe((), 0.5)

    assert [line for line in once.text().splitlines() if "created" not in line] == [
        line for line in thrice.text().splitlines() if "created" not in line
    ]


def test_values_that_are_asked_for_are_fresh_on_every_page():
    now = iter([1, 2, 2])
    counter = metrics.Counter("c", "help", created=False)
    counter.ask((), lambda: next(now))

    assert counter.text().splitlines()[-1] == "c_total 1.0"
    assert counter.text().splitlines()[-1] == "c_total 2.0"
    assert counter.text().splitlines()[-1] == "c_total 2.0"


@pytest.mark.parametrize("amount", [0, 3])
def test_a_counter_starts_with_its_series_and_grows(amount: int):
    counter = metrics.Counter("c", "help", [(("a", "b"),)], created=False)
    counter.add((("a", "b"),), amount)

    assert counter.text() == f'# HELP c_total help\n# TYPE c_total counter\nc_total{{a="b"}} {amount}.0\n'
