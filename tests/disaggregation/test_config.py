"""Configurations with a profile for each half: upstream's load, mistakes are told by their path."""

import pytest

from extproc import plugins
from extproc.errors import ConfigError
from extproc.scheduling import config
from extproc.scheduling.disaggregation import Settings

FORMER = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates:
- prepareDataPlugins
plugins:
- type: prefill-header-handler
- type: prefix-cache-scorer
- type: queue-scorer
- type: prefill-filter
- type: decode-filter
- type: max-score-picker
- type: prefix-based-pd-decider
  parameters: {nonCachedTokens: 16}
- type: pd-profile-handler
  parameters: {primaryPort: 0, deciderPluginName: prefix-based-pd-decider}
schedulingProfiles:
- name: prefill
  plugins:
  - pluginRef: prefill-filter
  - pluginRef: max-score-picker
  - {pluginRef: prefix-cache-scorer, weight: 2}
- name: decode
  plugins:
  - pluginRef: decode-filter
  - pluginRef: max-score-picker
  - {pluginRef: prefix-cache-scorer, weight: 2}
"""


def load(text):
    return config.load(config.parse(text), plugins.BUILTIN)


def handler(**parameters):
    lines = "".join(f"\n    {name}: {value}" for name, value in parameters.items())
    return f"""\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-profile-handler
  parameters:{lines or " {}"}
- type: always-disagg-pd-decider
- type: queue-scorer
schedulingProfiles:
- {{name: decode, plugins: [{{pluginRef: queue-scorer}}]}}
- {{name: prefill, plugins: [{{pluginRef: queue-scorer}}]}}
"""


def test_upstreams_former_configuration_loads():
    read = load(FORMER)

    assert (read.profile.name, read.prefill.name) == ("decode", "prefill")
    assert read.disaggregation.decider == "prefix-based-pd-decider"
    assert read.disaggregation.settings.leg == "proxy"
    assert config.build(read).disaggregation.verdict(100, 90).reason == "cached"


def test_without_a_handler_the_gateway_disaggregates_by_pd_group_alone():
    read = load("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n")

    assert read.prefill is None
    assert read.disaggregation == config.Disaggregated(Settings())
    assert config.build(read).disaggregation.verdict(1, 0).remote


def test_settings_are_the_handlers_parameters():
    read = load(
        handler(
            prefillLeg="gateway",
            acrossGroups="true",
            aggregatedFallback="never",
            prefillTimeoutSeconds="7.5",
            maxPrefillTries="3",
            bootstrapPort="9000",
        )
    )

    assert read.disaggregation.settings == Settings("gateway", True, "never", 7.5, 3, 9000)


@pytest.mark.parametrize(
    ("parameters", "path", "words"),
    [
        ({"deciders": "{prefill: nobody}"}, "plugins.disagg-profile-handler.parameters", "nobody"),
        (
            {"deciderPluginName": "queue-scorer"},
            "plugins.disagg-profile-handler.parameters",
            "always-disagg-pd-decider",
        ),
        ({"deciders": "{encode: always-disagg-pd-decider}"}, "plugins[0].parameters", "encode"),
        ({"deciders": "{prefill: a}", "deciderPluginName": "b"}, "plugins[0].parameters", "different"),
        ({"decodeProfile": "other"}, "schedulingProfiles", "other"),
        ({"prefillLeg": "envoy"}, "plugins[0].parameters.prefillLeg", "gateway"),
        ({"prefillTimeoutSeconds": "300"}, "plugins[0].parameters.prefillTimeoutSeconds", "55"),
        ({"stageOrder": "prefill-first"}, "plugins[0].parameters.stageOrder", "decode-first"),
        ({"primaryPort": "8000"}, "plugins[0].parameters.primaryPort", "unknown"),
    ],
)
def test_a_mistake_is_told_with_its_path(parameters, path, words):
    with pytest.raises(ConfigError) as error:
        load(handler(**parameters))

    assert error.value.path == path
    assert words in error.value.message


def test_a_decider_is_not_for_a_profile():
    text = handler().replace("decode, plugins: [", "decode, plugins: [{pluginRef: always-disagg-pd-decider}, ")

    with pytest.raises(ConfigError, match="no filter, scorer or picker"):
        load(text)
