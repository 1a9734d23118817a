"""ModelServer and ModelRoute as the data plane and the control plane use them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from matrixinfer.api import core, dataplane, networking
from matrixinfer.api.meta import Duration


def a_server(**spec):
    spec = {
        "inferenceEngine": "vLLM",
        "workloadSelector": {"matchLabels": {"app": "demo", "tier": "gpu"}},
        "workloadPort": {"port": 8000},
    } | spec
    return networking.ModelServer.model_validate({"metadata": {"name": "demo", "namespace": "ns"}, "spec": spec})


def a_pod(*, ip="10.0.0.1", namespace="ns", labels=None, annotations=None):
    labels = {"app": "demo", "tier": "gpu", "more": "x"} if labels is None else labels
    metadata = {"name": "p", "namespace": namespace, "labels": labels, "annotations": annotations or {}}
    return core.Pod.model_validate({"metadata": metadata, "status": {"podIP": ip}})


def a_match(**conditions):
    return networking.ModelMatch.model_validate(conditions)


def a_route_spec(*rules):
    return networking.ModelRouteSpec.model_validate({"modelName": "demo", "rules": list(rules)})


def a_rule(name, **match):
    rule = {"name": name, "targetModels": [{"modelServerName": name}]}
    return rule | ({"modelMatch": match} if match else {})


def test_a_server_selects_pods_of_its_namespace_with_all_its_labels():
    server = a_server()

    assert server.selects(a_pod())
    assert not server.selects(a_pod(labels={"app": "demo"}))
    assert not server.selects(a_pod(labels={"app": "demo", "tier": "cpu"}))
    assert not server.selects(a_pod(namespace="other"))


@pytest.mark.parametrize(
    ("ip", "annotation", "address"),
    [
        ("10.0.0.1", None, "10.0.0.1:8000"),
        ("fd00::1", None, "[fd00::1]:8000"),
        ("10.0.0.1", "8123", "10.0.0.1:8123"),
        ("fd00::1", "8123", "[fd00::1]:8123"),
        ("", None, None),
        ("10.0.0.1", "0", None),
        ("10.0.0.1", "65536", None),
        ("10.0.0.1", "http", None),
        ("10.0.0.1", "٣", None),
    ],
)
def test_the_address_of_a_pod(ip, annotation, address):
    annotations = {} if annotation is None else {dataplane.PORT_ANNOTATION: annotation}

    assert a_server().address(a_pod(ip=ip, annotations=annotations)) == address


def test_a_server_has_the_defaults_of_the_reference():
    server = a_server(trafficPolicy={"retry": {"attempts": 2}}, kvConnector={})

    assert server.spec.workload_port.protocol == "http"
    assert server.spec.traffic_policy.timeout is None
    assert server.spec.traffic_policy.retry.retry_interval.seconds == 0.1
    assert server.spec.kv_connector.type == "http"
    assert server.spec.model is None


def test_a_route_has_the_defaults_of_the_reference():
    spec = networking.ModelRouteSpec.model_validate(
        {
            "loraAdapters": ["sql"],
            "parentRefs": [{"name": "g"}],
            "rules": [{"targetModels": [{"modelServerName": "demo"}]}],
            "rateLimit": {"inputTokensPerUnit": 5},
        }
    )

    assert spec.model_name == ""
    assert spec.rules[0].target_models[0].weight == 100
    assert spec.rate_limit.unit == "second"
    assert (spec.parent_refs[0].group, spec.parent_refs[0].kind) == ("gateway.networking.k8s.io", "Gateway")


@pytest.mark.parametrize(
    ("condition", "value", "matches"),
    [
        ({}, "anything", True),
        ({"exact": "premium"}, "premium", True),
        ({"exact": "premium"}, "premium-plus", False),
        ({"exact": ""}, "", True),
        ({"exact": ""}, "x", False),
        ({"prefix": "pre"}, "premium", True),
        ({"prefix": "pre"}, "supreme", False),
        ({"regex": "em"}, "premium", True),
        ({"regex": "^em"}, "premium", False),
        ({"regex": "^(basic|premium)$"}, "premium", True),
    ],
)
def test_a_string_matches(condition, value, matches):
    assert networking.StringMatch.model_validate(condition).matches(value) is matches


def test_a_string_match_with_two_ways_is_refused():
    with pytest.raises(ValidationError, match="set only one of exact, prefix and regex"):
        networking.StringMatch.model_validate({"exact": "a", "prefix": "a"})


def test_all_conditions_of_a_rule_must_hold():
    match = a_match(
        headers={"User-Type": {"exact": "premium"}, "region": {"prefix": "eu"}},
        uri={"prefix": "/v1/chat"},
        body={"model": "demo"},
    )
    request = {
        "headers": {"user-type": "premium", "region": "eu-west"},
        "path": "/v1/chat/completions",
        "model": "demo",
    }

    assert match.matches(**request)
    assert not match.matches(**request | {"headers": {"user-type": "premium", "region": "us"}})
    assert not match.matches(**request | {"headers": {"region": "eu-west"}})
    assert not match.matches(**request | {"path": "/v1/completions"})
    assert not match.matches(**request | {"model": "other"})


def test_a_missing_header_counts_as_empty():
    match = a_match(headers={"user-type": {"exact": ""}})

    assert match.matches(headers={}, path="/", model="")


def test_the_first_rule_that_matches_decides():
    spec = a_route_spec(
        a_rule("premium", headers={"user-type": {"exact": "premium"}}),
        a_rule("all"),
        a_rule("never", uri={"prefix": "/"}),
    )

    assert spec.match(headers={"user-type": "premium"}, path="/", model="demo").name == "premium"
    assert spec.match(headers={"user-type": "basic"}, path="/", model="demo").name == "all"


def test_a_route_may_have_no_rule_for_a_request():
    spec = a_route_spec(a_rule("chat", uri={"exact": "/v1/chat/completions"}))

    assert spec.match(headers={}, path="/v1/embeddings", model="demo") is None


def test_objects_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        a_server().spec.model = "other"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("2h45m", 9900),
        ("10us", 1e-5),
        ("10µs", 1e-5),
        ("7ns", 7e-9),
        (".5s", 0.5),
        ("1.s", 1),
    ],
)
def test_a_duration_is_read_as_go_reads_it(text, seconds):
    duration = Duration(text)

    assert duration.seconds == pytest.approx(seconds)
    assert duration == text


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1d", "1 s", "1s ", "1e3s", "0s", "1s\n", "٣s", "9" * 40 + "s"])
def test_what_is_not_a_duration_above_zero_is_refused(text):
    with pytest.raises(ValueError, match=r"duration|zero"):
        Duration(text)
