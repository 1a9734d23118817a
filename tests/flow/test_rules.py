"""The `flowControl` section: what it means, and what is said of mistakes."""

import pytest

from extproc import errors, plugins
from extproc.scheduling import config
from extproc.scheduling.flow import Band, Prices

HEAD = {"apiVersion": config.API_VERSIONS[0], "kind": config.KIND}


def loaded(*, gates=(), declared=(), **section):
    document = {**HEAD, "featureGates": list(gates), "plugins": list(declared), "flowControl": section or None}
    return config.load(document, plugins.BUILTIN)


def problems(**section):
    declared = section.pop("declared", ())
    with pytest.raises(errors.ConfigError) as caught:
        loaded(declared=declared, **section)
    return str(caught.value)


def test_nothing_waits_unless_it_is_asked_for():
    assert loaded().flow is None
    assert loaded(gates=["flowControl=false"], maxRequests=5).flow is None


def test_the_gate_alone_means_the_defaults():
    flow = loaded(gates=["flowControl"]).flow

    assert flow.detector == "utilization-detector"
    prices = Prices(request=0, input=1, cached=0.1, output=2, locality=2048)
    assert flow.default == Band(5000, 10**9, 60.0, prices)
    assert flow.band(7) == flow.default
    assert flow.band(-7) == flow.default._replace(waits=False)
    assert (flow.max_requests, flow.max_bytes, flow.no_endpoint_ttl_s) == (0, 0, 0)
    assert flow.longest_s == 60


def test_bands_say_what_the_default_band_does_not():
    flow = loaded(
        declared=[{"type": "global-strict-fairness-policy"}, {"type": "concurrency-detector", "name": "slots"}],
        saturationDetector={"pluginRef": "slots"},
        maxRequests="2k",
        maxBytes="1Gi",
        defaultRequestTTL="30s",
        noEndpointRequestTTL="5m",
        defaultPriorityBand={"maxRequests": 10, "fairnessPolicyRef": "global-strict-fairness-policy"},
        priorityBands=[{"priority": 5, "maxBytes": 1000, "defaultRequestTTL": "1m30s"}],
        defaultNegativePriorityBand={"maxRequests": 1},
    ).flow

    assert flow.detector == "slots"
    assert (flow.max_requests, flow.max_bytes, flow.no_endpoint_ttl_s, flow.longest_s) == (2000, 1 << 30, 300, 300)
    assert flow.band(0) == Band(10, 10**9, 30.0, None)
    assert flow.band(5) == Band(10, 1000, 90.0, None)
    assert flow.band(-1) == Band(1, 10**9, 30.0, None)


def test_round_robin_counts_requests():
    flow = loaded(
        declared=[{"type": "round-robin-fairness-policy"}],
        defaultPriorityBand={"fairnessPolicyRef": "round-robin-fairness-policy"},
    ).flow

    assert flow.default.prices.weighed(1000, 10, 50) == 1


def test_the_detector_is_made_with_its_parameters():
    found = loaded(
        declared=[{"type": "concurrency-detector", "parameters": {"maxConcurrency": 7}}],
        saturationDetector={"pluginRef": "concurrency-detector"},
    )

    assert config.detector(found).params.max_concurrency == 7
    assert config.detector(loaded()) is None


@pytest.mark.parametrize(
    ("section", "wanted"),
    [
        ({"maxRequest": 5}, "flowControl.maxRequest: unknown parameter; did you mean maxRequests"),
        ({"maxRequests": -1}, "maxRequests must be a number such as 5000 or 1Gi, not '-1'"),
        ({"defaultRequestTTL": "11m"}, "defaultRequestTTL must be more than 0s and at most 10m"),
        ({"defaultRequestTTL": "0s"}, "defaultRequestTTL must be more than 0s"),
        ({"noEndpointRequestTTL": "soon"}, "noEndpointRequestTTL must be a duration such as 60s"),
        ({"enableEviction": True}, "flowControl.enableEviction: is not supported: what an engine computes"),
        ({"usageLimitPolicyPluginRef": "x"}, "flowControl.usageLimitPolicyPluginRef: is not supported"),
        ({"saturationDetector": {"pluginRef": "no"}}, "saturationDetector.pluginRef: no plugin is called 'no'"),
        (
            {"declared": [{"type": "queue-scorer"}], "saturationDetector": {"pluginRef": "queue-scorer"}},
            "flowControl.saturationDetector.pluginRef: queue-scorer is no saturation detector",
        ),
        (
            {"declared": [{"type": "fcfs-ordering-policy"}], "priorityBands": [{"priority": 1, "fairnessPolicyRef": "fcfs-ordering-policy"}]},
            "flowControl.priorityBands[0].fairnessPolicyRef: fcfs-ordering-policy is no fairness policy",
        ),
        ({"priorityBands": [{"maxRequests": 1}]}, "flowControl.priorityBands[0].priority: is required"),
        ({"priorityBands": [{"priority": 1}, {"priority": 1}]}, "priorityBands[1].priority: another band has priority 1"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "flowControl.tenants[1].name: another entry is called 'a'"),
        ({"tenants": [{"name": "a", "weight": 0}]}, "flowControl.tenants[0].weight: must be a number at least 0.001"),
        ({"objectives": [{"name": "a"}]}, "flowControl.objectives[0].priority: is required"),
        ({"redis": {"address": "redis"}}, "address must be host:port, not 'redis'"),
        ({"saturationDetector": "x"}, "flowControl.saturationDetector: must be a mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_path(section, wanted):
    assert wanted in problems(**section)
