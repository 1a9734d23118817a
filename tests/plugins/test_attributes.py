from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors, plugins
from extproc.adapters import pages, settings
from extproc.scheduling import config
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from tests.scheduling.builders import HEAD, a_cycle, an_endpoint

PAGE = b"""vllm:num_requests_running 1
queue_depth{tier="gold",engine="0"} 3
queue_depth{tier="gold",engine="1"} 4
queue_depth{tier="iron",engine="0"} 50
"""


METRICS = [{"attributeKey": key, "metricSpec": "queue_depth"} for key in ("depth", "x")]
EXTRACTOR = {
    "type": "core-metrics-extractor",
    "name": "extractor",
    "parameters": {"engineConfigs": [{"name": "vllm", "customMetrics": METRICS}]},
}


def of(*values):
    """A cycle over endpoints with these values of an attribute; None: not reported."""
    known = [{} if value is None else {"depth": value} for value in values]
    return a_cycle(*(an_endpoint(attributes=one) for one in known))


def made(plugin, **parameters):
    """The plugin as a configuration makes it, or what is wrong with it."""
    document = {**HEAD, "plugins": [{"type": plugin, "parameters": parameters}, EXTRACTOR]}
    spec = config.load(document, plugins.BUILTIN).plugins[0]
    return spec.type(spec.params)


def scores(*values, kind="linear_lower_is_better", **normalization):
    scorer = made(
        "endpoint-attribute-scorer", attributeKey="depth", algorithm={"type": kind, "normalization": normalization}
    )
    return scorer.score(of(*values)).tolist()


def kept(*values, more=None, **algorithm):
    one = made("endpoint-attribute-filter", attribute="depth", algorithm=algorithm, **(more or {}))
    return one.keep(of(*values)).tolist()


def test_the_scale_goes_from_the_least_to_the_greatest():
    assert scores(2.0, 4.0, 3.0) == [1.0, 0.0, 0.5]
    assert scores(2.0, 4.0, 3.0, kind="linear_higher_is_better", adaptiveRange={}) == [0.0, 1.0, 0.5]
    assert scores(3.0, 3.0) == [1.0, 1.0]


def test_the_scale_may_be_fixed():
    assert scores(0.25, -1.0, 7.0, fixedRange={"min": 0, "max": 1}) == [0.75, 1.0, 0.0]


def test_an_endpoint_that_does_not_report_it_scores_nothing():
    assert scores(2.0, None, 4.0) == [1.0, 0.0, 0.0]
    assert scores(None, None) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("algorithm", "stay"),
    [
        ({"type": "threshold", "threshold": {"operator": "LessThanOrEqual", "value": 3}}, [1, 1, 1, 0]),
        ({"type": "threshold", "threshold": {"operator": "NotEqual", "value": 3}}, [1, 1, 0, 1]),
        ({"type": "range", "range": {"min": 2, "max": 3}}, [0, 1, 1, 0]),
        ({"type": "topK", "topK": {"k": 2}}, [0, 0, 1, 1]),
        ({"type": "topK", "topK": {"k": 9, "higherIsBetter": False}}, [1, 1, 1, 1]),
        ({"type": "percentile", "percentile": {"percentile": 50}}, [0, 1, 1, 1]),
        ({"type": "percentile", "percentile": {"percentile": 25, "higherIsBetter": False}}, [1, 0, 0, 0]),
    ],
)
def test_who_fits_stays(algorithm, stay):
    assert kept(1.0, 2.0, 3.0, 4.0, **algorithm) == [bool(one) for one in stay]


def test_who_does_not_report_it_stays_or_goes_as_told():
    low = {"type": "threshold", "threshold": {"operator": "LessThan", "value": 1}}

    assert kept(5.0, None, **low) == [False, True]
    assert kept(5.0, None, more={"onMissing": "Fail"}, **low) == [False, False]
    assert kept(5.0, None, more={"onMissing": "Fail", "fallbackOnEmpty": True}, **low) == [True, True]


@pytest.mark.parametrize(
    ("plugin", "parameters", "wanted"),
    [
        ("endpoint-attribute-scorer", {"attributeKey": "x"}, "parameters.algorithm: is required"),
        (
            "endpoint-attribute-scorer",
            {
                "attributeKey": "x",
                "algorithm": {"type": "linear_lower_is_better", "normalization": {"fixedRange": {"min": 1, "max": 1}}},
            },
            "algorithm.normalization.fixedRange: fixedRange needs min < max",
        ),
        (
            "endpoint-attribute-scorer",
            {"attributeKey": "x", "algorithm": {"type": "linear_lower_is_better"}, "producer": "dcgm-extractor"},
            "parameters.producer: must be",
        ),
        ("endpoint-attribute-filter", {"attribute": "x", "algorithm": {"type": "threshold"}}, "needs `threshold`"),
        (
            "endpoint-attribute-filter",
            {"attribute": "dept", "algorithm": {"type": "topK"}},
            "plugins.endpoint-attribute-filter.parameters: no metric is called 'dept'; did you mean depth",
        ),
        ("endpoint-attribute-filter", {"attribute": "x", "algorithm": {"type": "range"}}, "needs `range`"),
        (
            "core-metrics-extractor",
            {"engineConfigs": [{"name": "vllm", "customMetrics": [{"attributeKey": "x", "metricSpec": "a b"}]}]},
            "customMetrics[0]: metricSpec must be name or name{label=value,...}, not 'a b'",
        ),
        (
            "core-metrics-extractor",
            {"engineConfigs": [{"name": "vllm", "kvUsageSpec": "x"}]},
            "engineConfigs[0].kvUsageSpec: is not supported",
        ),
    ],
)
def test_mistakes_are_told(plugin, parameters, wanted):
    with pytest.raises(errors.ConfigError, match="plugins") as caught:
        made(plugin, **parameters)

    assert wanted in str(caught.value)


def test_a_metric_is_the_sum_over_its_lines_with_the_labels():
    assert pages.attribute(PAGE, pages.metric("queue_depth")) == 57.0
    assert pages.attribute(PAGE, pages.metric("queue_depth{tier=gold}")) == 7.0
    assert pages.attribute(PAGE, pages.metric('queue_depth{tier="gold", engine="1"}')) == 4.0
    assert math.isnan(pages.attribute(PAGE, pages.metric("queue_depth{tier=none}")))
    assert math.isnan(pages.attribute(PAGE, pages.metric("queue")))


@given(st.text(max_size=40))
def test_any_metric_is_read_or_refused(text):
    try:
        wanted = pages.metric(text)
    except ValueError:
        return

    assert math.isnan(pages.attribute(b"x 1", wanted)) or wanted.name == b"x"


@pytest.mark.parametrize("spec", ["a{b}", "a{b=c", "a b", "", "a{b=c,,d=e}", "1a", "a{" + "b=c=" * 5000 + "{"])
def test_a_metric_that_is_written_wrong_is_refused(spec):
    with pytest.raises(ValueError, match="a metric is name or name"):
        pages.metric(spec)


def test_what_a_configuration_names_is_what_is_read():
    metrics = [{"attributeKey": "depth", "metricSpec": "queue_depth{tier=gold}", "optional": True}]
    document = {
        **HEAD,
        "plugins": [
            {
                "type": "core-metrics-extractor",
                "parameters": {"engineConfigs": [{"name": "vllm", "customMetrics": metrics}]},
            },
            {"type": "random-picker"},
        ],
    }

    named = settings.metrics(config.load(document, plugins.BUILTIN))

    assert named == {"vLLM": {"depth": pages.metric("queue_depth{tier=gold}")}}


def test_attributes_follow_their_endpoints():
    table = EndpointTable(capacity=1)
    table.watch({"depth"})
    row = table.upsert(Endpoint("10.0.0.1:80", "ns/a", "vLLM"))
    table.attributes["depth"][row] = 4.0
    other = table.upsert(Endpoint("10.0.0.2:80", "ns/b", "vLLM"))
    table.watch({"depth", "more"})

    assert table.attributes["depth"][row] == 4.0
    assert math.isnan(table.attributes["depth"][other])
    table.remove("10.0.0.1:80")
    assert math.isnan(table.attributes["depth"][table.upsert(Endpoint("10.0.0.3:80", "ns/c", "vLLM"))])
    table.watch(())
    assert table.attributes == {}
