from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors, plugins
from extproc.plugins.session_affinity_scorer import SessionIdConfig, Source
from extproc.plugins.utilization_filter import Condition
from extproc.scheduling import config
from extproc.scheduling.parameters import wire_name
from tests.scheduling.builders import HEAD, a_cycle, an_endpoint


def loaded(**sections):
    return config.load({**HEAD, **sections}, plugins.BUILTIN)


def problems(**sections):
    with pytest.raises(errors.ConfigError) as caught:
        loaded(**sections)
    return str(caught.value)


def members(result):
    return [name for name, _weight in result.profile.plugins]


def test_the_default_document_is_complete():
    result = config.load(plugins.DEFAULT, plugins.BUILTIN)

    assert result.profile.plugins == (
        ("recent-failure-filter", 1.0),
        ("bounded-load-filter", 1.0),
        ("prefix-cache-scorer", 3.0),
        ("least-request-scorer", 3.0),
        ("load-aware-scorer", 1.0),
        ("kv-cache-utilization-scorer", 1.0),
        ("no-hit-lru-scorer", 0.6),
        ("max-score-picker", 1.0),
    )
    assert result.prefix.block_bytes == 64
    assert result.prefix.max_blocks == 8192
    assert result.prefix.lru_capacity_per_server == 31250


def test_a_silent_document_means_the_default():
    assert loaded() == config.load(plugins.DEFAULT, plugins.BUILTIN)


def test_upstreams_old_group_is_read_too():
    result = config.load({**HEAD, "apiVersion": "inference.networking.x-k8s.io/v1alpha1"}, plugins.BUILTIN)

    assert result.profile.name == "default"


def test_a_configuration_of_llm_d_loads():
    result = loaded(
        featureGates=["flowControl=false", "haPopulateNonLeaderDatastore"],
        plugins=[
            {"type": "single-profile-handler"},
            {"type": "queue-scorer"},
            {"type": "kv-cache-utilization-scorer"},
            {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "approx"}},
            {
                "name": "approx",
                "type": "approx-prefix-cache-producer",
                "parameters": {"autoTune": False, "blockSizeTokens": 32, "lruCapacityPerServer": 1000},
            },
            {"type": "inflight-load-producer"},
        ],
        schedulingProfiles=[
            {
                "name": "default",
                "plugins": [
                    {"pluginRef": "queue-scorer", "weight": 2},
                    {"pluginRef": "kv-cache-utilization-scorer", "weight": 2},
                    {"pluginRef": "prefix-cache-scorer", "weight": 3},
                ],
            }
        ],
    )

    assert members(result) == [
        "recent-failure-filter",
        "queue-scorer",
        "kv-cache-utilization-scorer",
        "prefix-cache-scorer",
        "max-score-picker",
    ]
    assert (result.prefix.block_bytes, result.prefix.lru_capacity_per_server) == (128, 1000)


def test_without_profiles_all_plugins_form_one():
    result = loaded(plugins=[{"type": "queue-scorer"}, {"name": "mine", "type": "random-picker"}])

    assert result.profile.name == "default"
    assert members(result) == ["recent-failure-filter", "queue-scorer", "mine"]


def test_a_declared_plugin_is_used_where_one_would_be_injected():
    result = loaded(
        plugins=[{"type": "queue-scorer"}, {"name": "top", "type": "max-score-picker"}],
        schedulingProfiles=[{"name": "default", "plugins": [{"pluginRef": "queue-scorer"}]}],
    )

    assert members(result)[-1] == "top"


def test_a_standing_filter_keeps_the_place_that_a_profile_gives_it():
    result = loaded(
        plugins=[{"type": "bounded-load-filter"}, {"type": "recent-failure-filter"}, {"type": "random-picker"}]
    )

    assert members(result) == ["bounded-load-filter", "recent-failure-filter", "random-picker"]


def test_parameters_become_fields():
    result = loaded(plugins=[{"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 2}}])

    assert result.plugins[0].params.max_num_of_endpoints == 2


def test_a_whole_number_will_do_where_a_number_is_wanted():
    result = loaded(plugins=[{"type": "bounded-load-filter", "parameters": {"loadFactor": 2}}])

    assert result.plugins[0].params.load_factor == 2


@pytest.mark.parametrize(
    ("sections", "wanted"),
    [
        (
            {"apiVersion": "v1"},
            "apiVersion: must be llm-d.ai/v1alpha1 or llm-d.ai/v1 or inference.networking.x-k8s.io/v1alpha1, not 'v1'",
        ),
        ({"kind": None}, "kind: must be EndpointPickerConfig, not nothing"),
        ({"plugin": []}, "plugin: unknown key; did you mean plugins?"),
        ({"plugins": {}, "schedulingProfiles": "x"}, "schedulingProfiles: must be a list, not 'x'"),
        ({"plugins": ["queue-scorer"]}, "plugins[0]: must be a mapping, not 'queue-scorer'"),
        ({"plugins": [{"name": "x"}]}, "plugins[0].type: is required; we have: recent-failure-filter"),
        (
            {"plugins": [{"type": "que-scorer"}]},
            "plugins[0].type: unknown plugin type 'que-scorer'; did you mean queue-scorer",
        ),
        ({"plugins": [{"type": "latency-scores"}]}, "We have: recent-failure-filter, least-request-filter"),
        (
            {"plugins": [{"type": "queue-scorer", "parameter": {}}]},
            "plugins[0].parameter: unknown key; did you mean parameters?",
        ),
        (
            {"plugins": [{"type": "queue-scorer"}, {"type": "queue-scorer"}]},
            "plugins[1].name: another plugin is called queue-scorer, too",
        ),
        ({"plugins": [{"type": "queue-scorer", "name": 7}]}, "plugins[0].name: must be a string, not 7"),
        (
            {"plugins": [{"type": "queue-scorer", "parameters": {"threshold": 1}}]},
            "plugins[0].parameters.threshold: unknown parameter; queue-scorer takes none",
        ),
        (
            {"plugins": [{"type": "load-aware-scorer", "parameters": {"treshold": 1}}]},
            "plugins[0].parameters.treshold: unknown parameter; did you mean threshold?",
        ),
        (
            {"plugins": [{"type": "load-aware-scorer", "parameters": {"threshold": "1"}}]},
            "plugins[0].parameters.threshold: must be a whole number at least 1, not '1'",
        ),
        (
            {"plugins": [{"type": "load-aware-scorer", "parameters": {"threshold": True}}]},
            "plugins[0].parameters.threshold: must be a whole number at least 1, not True",
        ),
        (
            {"plugins": [{"type": "prefix-cache-scorer", "parameters": {"matchLengthWeight": 1.5}}]},
            "plugins[0].parameters.matchLengthWeight: must be a number at least 0 and at most 1, not 1.5",
        ),
        (
            {"plugins": [{"type": "bounded-load-filter", "parameters": {"loadFactor": float("nan")}}]},
            "plugins[0].parameters.loadFactor: must be a number at least 1, not nan",
        ),
        (
            {"plugins": [{"type": "approx-prefix-cache-producer", "parameters": {"autoTune": True}}]},
            "plugins[0].parameters: autoTune must be false",
        ),
        (
            {"plugins": [{"type": "approx-prefix-cache-producer", "parameters": {"autoTune": 1}}]},
            "plugins[0].parameters.autoTune: must be true or false, not 1",
        ),
        (
            {"plugins": [{"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "precise"}}]},
            "parameters.prefixMatchInfoProducerName: no prefix producer is called 'precise'",
        ),
        (
            {
                "plugins": [
                    {"type": "approx-prefix-cache-producer"},
                    {"type": "approx-prefix-cache-producer", "name": "cpu"},
                ]
            },
            "there is one prefix index, so one approx-prefix-cache-producer only, not approx-prefix-cache-producer, cpu",
        ),
        (
            {"plugins": [{"type": "single-profile-handler"}, {"type": "single-profile-handler", "name": "b"}]},
            "there can be one profile handler only, not single-profile-handler, b",
        ),
        (
            {"dataLayer": {"injectDefaults": False}},
            "dataLayer.injectDefaults: must be true: engines' metrics are always",
        ),
        (
            {"dataLayer": {"discovery": {"pluginRef": "x"}}},
            "dataLayer.discovery: is not supported: endpoints come from",
        ),
        ({"dataLayer": {"source": []}}, "dataLayer.source: unknown key; did you mean sources"),
        ({"dataLayer": {"sources": [{}]}}, "dataLayer.sources[0].pluginRef: is required"),
        ({"data": 3}, "data: must be a mapping, not 3"),
        (
            {"plugins": [{"type": "queue-scorer"}], "dataLayer": {"sources": [{"pluginRef": "queue-scorer"}]}},
            "dataLayer.sources[0].pluginRef: queue-scorer is no data source",
        ),
        (
            {"requestHandler": {"parsers": [{"pluginRef": "openai-parser"}]}},
            "requestHandler.parsers[0].pluginRef: no plugin is called 'openai-parser'; add it to `plugins`",
        ),
        ({"parser": "openai-parser"}, "parser: must be a mapping, not 'openai-parser'"),
        (
            {"plugins": [{"type": "gpu-usage"}]},
            "plugins[0].type: gpu-usage is not supported: it is Kthena's name of kv-cache",
        ),
        ({"plugins": [{"type": "metrics-data-source", "parameters": {"insecureSkipVerify": False}}]}, "must be true"),
        (
            {"flowControl": {"maxBytes": "much"}},
            "flowControl: maxBytes must be a number such as 5000 or 1Gi, not 'much'",
        ),
        ({"saturationDetector": {"queueDepthThreshold": 5}}, "saturationDetector: is not supported"),
        (
            {"featureGates": ["prepareDataPlugins=false"]},
            "featureGates[0]: prepareDataPlugins cannot be false in this picker",
        ),
        (
            {"featureGates": ["flowControll"]},
            "featureGates[0]: unknown feature gate 'flowControll'; did you mean flowControl",
        ),
        ({"featureGates": ["flowControl=no"]}, "featureGates[0]: must be a name, name=true or name=false"),
        ({"featureGates": [3]}, "featureGates[0]: unknown feature gate 3"),
    ],
)
def test_mistakes_are_named_with_their_path(sections, wanted):
    assert wanted in problems(**sections)


@pytest.mark.parametrize(
    ("profiles", "wanted"),
    [
        (
            [{"name": "a", "plugins": []}, {"name": "b", "plugins": []}],
            "schedulingProfiles: single-profile-handler runs exactly one scheduling profile, there are 2",
        ),
        ([{"name": "a"}, {"name": "a"}], "schedulingProfiles[1].name: another profile is called a, too"),
        ([{"plugins": []}], "schedulingProfiles[0].name: is required"),
        ([{"name": "a", "plugin": []}], "schedulingProfiles[0].plugin: unknown key; did you mean plugins?"),
        ([{"name": "a", "plugins": [{}]}], "schedulingProfiles[0].plugins[0].pluginRef: is required"),
        (
            [{"name": "a", "plugins": [{"pluginRef": "queue"}]}],
            "schedulingProfiles[0].plugins[0].pluginRef: no plugin is called 'queue'; did you mean queue-scorer",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "token-load-scorer"}]}],
            "token-load-scorer is not among `plugins`; add `- type: token-load-scorer` there",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "queue-scorer"}, {"pluginRef": "queue-scorer"}]}],
            "schedulingProfiles[0].plugins[1].pluginRef: queue-scorer stands in this profile already",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "random-picker"}, {"pluginRef": "max-score-picker"}]}],
            "schedulingProfiles[0].plugins[1].pluginRef: max-score-picker is a second picker",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "single-profile-handler"}]}],
            "single-profile-handler is no filter, scorer or picker",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "queue-scorer", "weight": -1}]}],
            "schedulingProfiles[0].plugins[0].weight: must be a number at least 0, not -1",
        ),
        (
            [{"name": "a", "plugins": [{"pluginRef": "random-picker", "weight": 1}]}],
            "schedulingProfiles[0].plugins[0].weight: only scorers have a weight, and random-picker is a picker",
        ),
    ],
)
def test_mistakes_in_profiles_are_named_with_their_path(profiles, wanted):
    declared = ["queue-scorer", "random-picker", "max-score-picker", "single-profile-handler"]

    assert wanted in problems(plugins=[{"type": one} for one in declared], schedulingProfiles=profiles)


def test_all_mistakes_are_reported_at_once():
    text = problems(plugins=[{"type": "nope"}, {"type": "load-aware-scorer", "parameters": {"threshold": 0}}], other=1)

    assert text.splitlines()[0].startswith("other: unknown key")
    assert "plugins[0].type" in text
    assert "plugins[1].parameters.threshold" in text


def parameters(plugin, **given):
    """What goes wrong with one plugin's parameters."""
    return problems(plugins=[{"type": plugin, "parameters": given}])


@pytest.mark.parametrize(
    ("plugin", "given", "wanted"),
    [
        ("by-label", {}, "plugins[0].parameters.label: is required"),
        ("by-label", {"label": "x", "validValues": "a"}, "parameters.validValues: must be a list, not 'a'"),
        ("by-label", {"label": "x", "validValues": ["a", 1]}, "parameters.validValues[1]: must be a string, not 1"),
        ("by-label", {"label": "x"}, "plugins[0].parameters: validValues must be given, or allowsNoLabel be true"),
        ("label-selector-filter", {"matchLabels": ["a"]}, "parameters.matchLabels: must be a mapping, not ['a']"),
        ("label-selector-filter", {"matchLabels": {"a": 1}}, "matchLabels.a: must be a string, not 1; quote it"),
        (
            "label-selector-filter",
            {"matchExpressions": [{"key": "a", "operator": "In", "values": ["x"]}, {"key": "a", "operator": "Is"}]},
            "matchExpressions[1].operator: must be In or NotIn or Exists or DoesNotExist, not 'Is'",
        ),
        (
            "label-selector-filter",
            {"matchExpressions": [{"key": "a", "operator": "In"}]},
            "plugins[0].parameters.matchExpressions[0]: operator In needs values",
        ),
        ("utilization-filter", {"conditions": []}, "parameters: conditions must have an entry such as"),
        (
            "utilization-filter",
            {"conditions": [{"metric": "waiting-queue", "maxValue": -1}]},
            "plugins[0].parameters.conditions[0].maxValue: must be a number at least 0, not -1",
        ),
        ("utilization-filter", {"conditions": [3]}, "conditions[0]: must be a mapping, not 3"),
        (
            "prefix-cache-affinity-filter",
            {"maxTtftPenaltyMs": 1},
            "parameters.maxTtftPenaltyMs: unknown parameter; did you mean maxTTFTPenaltyMs",
        ),
        ("prefix-cache-affinity-filter", {"ttftSource": "x"}, "must be prefillThroughput or latencyPredictor, not 'x'"),
        (
            "prefix-cache-affinity-filter",
            {"prefixMatchInfoProducerName": "other"},
            "prefixMatchInfoProducerName: no prefix producer is called 'other'",
        ),
        ("session-affinity-scorer", {}, "needs a header in the response, which is Envoy's alone"),
        ("session-affinity-filter", {"strategy": "encoded_endpoint_header"}, "write `strategy: session_id`"),
        (
            "session-affinity-filter",
            {"strategy": "session_id", "sessionIdConfig": {"sources": [{"attribute": "agent-identity"}]}},
            "parameters.sessionIdConfig.sources[0]: there are no request attributes here",
        ),
        (
            "session-affinity-filter",
            {"strategy": "session_id", "sessionIdConfig": {"sources": [{}]}},
            "parameters.sessionIdConfig.sources[0]: give either header or cookie",
        ),
        (
            "session-affinity-filter",
            {"strategy": "session_id", "sessionIdConfig": {"sources": []}},
            "parameters.sessionIdConfig: sources must name one",
        ),
        ("header-label-affinity-scorer", {"headerName": "x"}, "parameters.labelKey: is required"),
        ("context-length-aware", {"label": ""}, "parameters: label must name a pod label"),
    ],
)
def test_mistakes_in_parameters_are_named_with_their_path(plugin, given, wanted):
    assert wanted in parameters(plugin, **given)


def test_parameters_may_have_lists_and_mappings_within():
    result = loaded(
        plugins=[
            {"type": "label-selector-filter", "parameters": {"matchLabels": {"a": "b"}}},
            {
                "type": "utilization-filter",
                "parameters": {"conditions": [{"metric": "waiting-queue", "maxValue": 3}], "fallbackOnEmpty": True},
            },
            {
                "type": "session-affinity-scorer",
                "parameters": {
                    "strategy": "session_id",
                    "sessionIdConfig": {"sources": [{"header": "x"}, {"cookie": "y"}], "evictionTtlSeconds": 9},
                },
            },
        ]
    )
    selector, utilization, session = (spec.params for spec in result.plugins[:3])

    assert selector.match_labels == {"a": "b"}
    assert utilization.conditions == (Condition("waiting-queue", 3),)
    assert session.session_id_config == SessionIdConfig((Source(header="x"), Source(cookie="y")), 9)


def test_a_plugin_that_filters_and_scores_stands_in_both_places_and_has_a_weight():
    result = loaded(
        plugins=[{"type": "context-length-aware"}],
        schedulingProfiles=[{"name": "default", "plugins": [{"pluginRef": "context-length-aware", "weight": 2}]}],
    )
    profile = config.build(result).profile

    assert [name for name, _plugin in profile.filters] == ["recent-failure-filter", "context-length-aware"]
    assert [(name, weight) for name, weight, _plugin in profile.scorers] == [("context-length-aware", 2.0)]


@pytest.mark.parametrize("document", [None, [], "x", 3])
def test_a_document_that_is_no_mapping_is_refused(document):
    with pytest.raises(errors.ConfigError):
        config.load(document, plugins.BUILTIN)


def test_yaml_is_read():
    assert config.parse("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}


def test_a_key_given_twice_is_refused_with_its_line():
    with pytest.raises(errors.ConfigError, match="line 2, column 1: not YAML: key 'a' is given twice"):
        config.parse("a: 1\na: 2\n")


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: *b", "? [a]\n: b", "!!python/object:x {}", "<<: 3"])
def test_what_is_not_plain_yaml_is_refused(text):
    with pytest.raises(errors.ConfigError, match="not YAML"):
        config.parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["queue-scorer", "name", "default"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["plugins", "schedulingProfiles", "type", "name", "parameters", "pluginRef", "weight", "featureGates"]
            )
            | st.integers(0, 2),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(VALUES)
def test_any_document_gives_a_configuration_or_a_config_error(value):
    document = {**HEAD, **value} if isinstance(value, dict) else {**HEAD, "plugins": value}
    try:
        result = config.load(document, plugins.BUILTIN)
    except errors.ConfigError:
        return

    config.build(result)


WORDS = ["session_id", "waiting-queue", "prefillThroughput", "In", "Exists", "x", ""]
KEYS = ["metric", "maxValue", "key", "operator", "values", "sources", "header", "cookie", "evictionTtlSeconds", 1]
GIVEN = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), st.sampled_from(plugins.BUILTIN.types))
def test_any_parameters_give_a_plugin_that_works_or_a_config_error(data, plugin):
    keys = [wire_name(one) for one in fields(plugin.Params)]
    given_parameters = data.draw(st.dictionaries(st.sampled_from(keys or ["x"]), GIVEN, max_size=4))
    document = {**HEAD, "plugins": [{"type": plugin.TYPE, "parameters": given_parameters}]}
    try:
        result = config.load(document, plugins.BUILTIN)
    except errors.ConfigError:
        return

    cycle = a_cycle(an_endpoint(queue=1), an_endpoint(inflight=2, matched=2), an_endpoint(tokens=9), blocks=3)
    try:
        chosen = config.build(result).schedule(cycle).rows
    except errors.Saturated:
        return
    assert set(chosen) <= {0, 1, 2}
    assert chosen
