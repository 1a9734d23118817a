"""llm-d's well-known configurations: each loads, or is refused for exactly what this picker lacks.

The shapes are those of llm-d-router's guides and sample files (its `wellknown_configs_test.go`, `deploy/config`, chart values and
`test/perf`): the same plugins, parameters and profiles, written shorter.
"""

from __future__ import annotations

import pytest

from extproc import errors, plugins
from extproc.scheduling import config
from tests.scheduling.builders import a_cycle, an_endpoint

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def profile(name, *members):
    """One scheduling profile; a member may have its weight behind a blank."""
    entries = [
        f"{{pluginRef: {one.split()[0]}" + (f", weight: {one.split()[1]}}}" if " " in one else "}") for one in members
    ]
    return f"- {{name: {name}, plugins: [{', '.join(entries)}]}}\n"


def shape(declared, *profiles, more="", head=HEAD):
    """A document: plugins by type, or as they stand if they begin with a brace; then profiles and other sections."""
    listed = "".join(f"- {one if one.startswith('{') else f'{{type: {one}}}'}\n" for one in declared)
    return f"{head}plugins:\n{listed}" + ("schedulingProfiles:\n" + "".join(profiles) if profiles else "") + more


PD_PROFILES = (
    profile(
        "prefill",
        "prefill-filter",
        "prefix-cache-scorer 3",
        "queue-scorer 2",
        "kv-cache-utilization-scorer 2",
        "max-score-picker",
    ),
    profile("decode", "decode-filter", "active-request-scorer 2", "prefix-cache-scorer 3", "max-score-picker"),
)
PD_PLUGINS = (
    "disagg-headers-handler",
    "{type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}",
    "always-disagg-pd-decider",
    "prefill-filter",
    "decode-filter",
    "prefix-cache-scorer",
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "active-request-scorer",
    "max-score-picker",
)
DECIDER = "{type: prefix-based-pd-decider, parameters: {nonCachedTokens: 16}}"
BY_PREFIX = "{type: disagg-profile-handler, parameters: {deciders: {prefill: prefix-based-pd-decider}}}"
APPROX = "{type: approx-prefix-cache-producer, parameters: {blockSizeTokens: 16, autoTune: false, maxPrefixTokensToMatch: 4096, lruCapacityPerServer: 31250}}"
MEASURED = (
    "{type: precise-prefix-cache-producer, parameters: {"
    "tokenProcessorConfig: {blockSizeTokens: 16}, speculativeIndexing: true, "
    "kvEventsConfig: {topicFilter: 'kv@', concurrency: 32, discoverPods: true, podDiscoveryConfig: {socketPort: 5557}}}}"
)
OWN = (
    "{type: core-metrics-extractor, parameters: {engineConfigs: [{name: vllm, customMetrics: "
    "[{attributeKey: depth, metricSpec: 'queue_depth{tier=gold}', optional: true}]}]}}"
)
METRICS = "{pluginRef: metrics-data-source, extractors: [{pluginRef: core-metrics-extractor}]}"

LOAD = {
    "flow-control": shape(
        [
            "queue-scorer",
            "round-robin-fairness-policy",
            "fcfs-ordering-policy",
            "{type: concurrency-detector, parameters: {maxConcurrency: 132, concurrencyMode: requests, headroom: 0.0}}",
        ],
        profile("default", "queue-scorer 2"),
        more="featureGates: [flowControl]\nflowControl: {saturationDetector: {pluginRef: concurrency-detector}, maxBytes: 10Gi, "
        "defaultRequestTTL: 1m, defaultPriorityBand: {fairnessPolicyRef: round-robin-fairness-policy}, "
        "priorityBands: [{priority: 100, maxRequests: 1k, orderingPolicyRef: fcfs-ordering-policy}]}\n",
    ),
    "chart default": shape(
        ["queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer"],
        profile("default", "queue-scorer 2", "kv-cache-utilization-scorer 2", "prefix-cache-scorer 3"),
    ),
    "optimized-baseline": shape(
        ["queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer", "no-hit-lru-scorer"],
        profile(
            "default", "queue-scorer 2", "kv-cache-utilization-scorer 2", "prefix-cache-scorer 3", "no-hit-lru-scorer 2"
        ),
    ),
    "optimized-baseline, sticky until saturated": shape(
        [
            "{type: prefix-cache-affinity-filter, parameters: {affinityThreshold: 0.8, maxTTFTPenaltyMs: 18000}}",
            "token-load-scorer",
            "inflight-load-producer",
        ],
        profile("default", "prefix-cache-affinity-filter", "token-load-scorer 1"),
    ),
    "pd-disaggregation": shape(PD_PLUGINS, *PD_PROFILES),
    "wide-ep-lws": shape(
        PD_PLUGINS,
        PD_PROFILES[0],
        profile("decode", "decode-filter", "active-request-scorer 2", "prefix-cache-scorer", "max-score-picker"),
    ),
    "wide-ep-lws, aware of data-parallel ranks": shape(
        [
            "token-producer",
            "prefix-based-pd-decider",
            "disagg-headers-handler",
            "prefill-filter",
            "decode-filter",
            "prefix-cache-scorer",
            "active-request-scorer",
            "queue-scorer",
            BY_PREFIX,
        ],
        profile("prefill", "prefill-filter", "prefix-cache-scorer 3", "active-request-scorer 2", "queue-scorer 2"),
        profile("decode", "decode-filter", "active-request-scorer 1", "queue-scorer 1"),
    ),
    "prefill and decode by the uncached prefix": shape(
        [
            APPROX,
            "prefix-cache-scorer",
            "queue-scorer",
            "prefill-filter",
            "decode-filter",
            "max-score-picker",
            DECIDER,
            BY_PREFIX,
        ],
        profile("prefill", "prefill-filter", "max-score-picker", "prefix-cache-scorer 2", "queue-scorer 1"),
        profile("decode", "decode-filter", "max-score-picker", "prefix-cache-scorer 2", "queue-scorer 1"),
    ),
    "prefill and decode in their former form": shape(
        [
            "prefill-header-handler",
            APPROX,
            "prefix-cache-scorer",
            "prefill-filter",
            "decode-filter",
            "max-score-picker",
            DECIDER,
            "{type: pd-profile-handler, parameters: {deciderPluginName: prefix-based-pd-decider}}",
        ],
        profile("prefill", "prefill-filter", "max-score-picker", "prefix-cache-scorer 2"),
        profile("decode", "decode-filter", "max-score-picker", "prefix-cache-scorer 2"),
    ),
    "prefill near decode": shape(
        [
            APPROX,
            "prefix-cache-scorer",
            "queue-scorer",
            "prefill-filter",
            "decode-filter",
            "max-score-picker",
            "topology-extractor",
            "topology-affinity-filter",
            "topology-affinity-scorer",
            DECIDER,
            BY_PREFIX,
        ],
        profile(
            "prefill",
            "prefill-filter",
            "topology-affinity-filter",
            "max-score-picker",
            "prefix-cache-scorer 2",
            "queue-scorer 1",
            "topology-affinity-scorer 1",
        ),
        profile("decode", "decode-filter", "max-score-picker", "prefix-cache-scorer 2", "queue-scorer 1"),
    ),
    "one pool of decode endpoints": shape(
        ["decode-filter", "queue-scorer", "max-score-picker", "single-profile-handler"],
        profile("default", "decode-filter", "queue-scorer 1", "max-score-picker"),
    ),
    "exact prefixes": shape(
        [
            "token-producer",
            "endpoint-notification-source",
            "metrics-data-source",
            "core-metrics-extractor",
            "single-profile-handler",
            "decode-filter",
            (
                "{type: precise-prefix-cache-producer, parameters: {tokenProcessorConfig: {blockSize: 64}, "
                "indexerConfig: {kvBlockIndexConfig: {enableMetrics: true}}}}"
            ),
            "{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}",
            "kv-cache-utilization-scorer",
            "queue-scorer",
            "max-score-picker",
        ],
        profile(
            "default",
            "decode-filter",
            "prefix-cache-scorer 2.0",
            "kv-cache-utilization-scorer 1.0",
            "queue-scorer 1.0",
            "max-score-picker",
        ),
        more=f"dataLayer: {{sources: [{METRICS}, {{pluginRef: endpoint-notification-source, extractors: [{{pluginRef: precise-prefix-cache-producer}}]}}]}}\n",
    ),
    "exact prefixes, measured": shape(
        [
            "token-producer",
            MEASURED,
            "active-request-scorer",
            "kv-cache-utilization-scorer",
            "{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}",
            "no-hit-lru-scorer",
        ],
        profile(
            "default",
            "active-request-scorer 4",
            "kv-cache-utilization-scorer 2",
            "prefix-cache-scorer 2",
            "no-hit-lru-scorer 2",
        ),
    ),
    "exact prefixes, LMetric": shape(
        [
            "token-producer",
            "endpoint-notification-source",
            "{type: inflight-load-producer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}",
            "precise-prefix-cache-producer",
            "{type: lmetric-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer, inFlightLoadProducerName: inflight-load-producer}}",
        ],
        profile("default", "lmetric-scorer 1"),
    ),
    "exact prefixes, and cold requests in turn": shape(
        [
            "precise-prefix-cache-producer",
            "{type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: precise-prefix-cache-producer}}",
            "{type: no-hit-lru-scorer, parameters: {lruSize: 2048}}",
            "decode-filter",
            "max-score-picker",
            "single-profile-handler",
        ],
        profile("default", "decode-filter", "max-score-picker", "prefix-cache-scorer 2", "no-hit-lru-scorer 1"),
    ),
    "predicted latency": shape(
        [
            "queue-scorer",
            "{type: metrics-data-source, parameters: {insecureSkipVerify: true, path: /metrics, scheme: http}}",
            "core-metrics-extractor",
            "{type: predicted-latency-producer, parameters: {streamingMode: true}}",
            "{type: prefix-cache-affinity-filter, name: strict, parameters: {affinityThreshold: 0.99}}",
            "{type: prefix-cache-affinity-filter, name: loose, parameters: {affinityThreshold: 0.8}}",
            "latency-scorer",
            "weighted-random-picker",
            "slo-headroom-tier-filter",
        ],
        profile(
            "default",
            "predicted-latency-producer",
            "strict",
            "slo-headroom-tier-filter",
            "loose",
            "latency-scorer",
            "weighted-random-picker",
        ),
    ),
    "metrics of one's own": shape(
        [
            "metrics-data-source",
            OWN,
            (
                "{type: endpoint-attribute-filter, parameters: {attribute: depth, onMissing: Pass, fallbackOnEmpty: true, "
                "algorithm: {type: percentile, percentile: {percentile: 25, higherIsBetter: false}}}}"
            ),
            (
                "{type: endpoint-attribute-scorer, parameters: {attributeKey: depth, algorithm: {type: linear_lower_is_better, "
                "normalization: {fixedRange: {min: 0.0, max: 100.0}}}}}"
            ),
        ],
        profile("default", "endpoint-attribute-filter", "endpoint-attribute-scorer 2.0"),
        more=f"dataLayer: {{sources: [{METRICS}]}}\n",
    ),
    "session affinity": shape(
        [
            "{type: session-affinity-filter, parameters: {strategy: session_id}}",
            "{type: load-aware-scorer, parameters: {threshold: 128}}",
            "weighted-random-picker",
            "openai-parser",
        ],
        profile("default", "session-affinity-filter", "load-aware-scorer 5", "weighted-random-picker"),
        more="requestHandler: {parsers: [{pluginRef: openai-parser}]}\n",
    ),
    "old group, all defaults": "apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n",
}

DCGM = "GPUs are not asked for themselves"
REFUSED = {
    "tiered-prefix-cache-cpu": (
        shape(
            [
                "token-producer",
                "{type: approx-prefix-cache-producer, name: cpu, parameters: {autoTune: false, lruCapacityPerServer: 1000}}",
                "approx-prefix-cache-producer",
                "queue-scorer",
                "prefix-cache-scorer",
                "{type: prefix-cache-scorer, name: cpu-scorer, parameters: {prefixMatchInfoProducerName: cpu}}",
            ],
            profile("default", "queue-scorer 2", "prefix-cache-scorer 1", "cpu-scorer 1"),
        ),
        ["there is one prefix index"],
    ),
    "predicted-latency-slo": (
        shape(
            ["predicted-latency-producer", "latency-scorer", "latency-slo-admitter"],
            profile("default", "predicted-latency-producer", "latency-scorer"),
        ),
        ["plugins[2].type: latency-slo-admitter is not supported: with flowControl, requests of negative priority"],
    ),
    "payload-agnostic": (
        shape(
            ["passthrough-parser", "active-request-scorer", "session-affinity-scorer"],
            profile("default", "active-request-scorer 1", "session-affinity-scorer 1"),
            more="requestHandler: {parsers: [{pluginRef: passthrough-parser}]}\n",
        ),
        [
            "plugins[0].type: passthrough-parser is not supported: every body here must name its model",
            "plugins[2].parameters: strategy encoded_endpoint_header (it is the default) needs a header in the response",
        ],
    ),
    "session affinity in its former form": (
        shape(
            [
                "{type: session-affinity-filter, parameters: {strategy: session_id, headerName: x-session-token}}",
                "load-aware-scorer",
            ]
        ),
        ["plugins[0].parameters.headerName: is not supported: name the header in sessionIdConfig.sources"],
    ),
    "exact prefixes by a server that renders": (
        shape(
            [
                "{type: token-producer, parameters: {backend: vllm, modelName: m, vllm: {url: 'http://localhost:8000'}}}",
                "queue-scorer",
            ]
        ),
        [
            "plugins[0].parameters.backend: is not supported: prompts are tokenized here, without a server",
            "plugins[0].parameters.modelName: is not supported: each model has its own tokenizer; name it in `tokenizers`",
            "plugins[0].parameters.vllm: is not supported: prompts are tokenized here",
        ],
    ),
    "exact prefixes by one socket for all": (
        shape(
            [
                "{type: precise-prefix-cache-producer, parameters: {kvEventsConfig: {zmqEndpoint: 'tcp://0.0.0.0:5557'}}}",
                "queue-scorer",
            ]
        ),
        [
            "plugins[0].parameters.kvEventsConfig: zmqEndpoint is not supported: each engine is followed at its own socket"
        ],
    ),
    "burst prefix": (
        shape(
            [
                "{type: burst-prefix-cache-producer, parameters: {windowDurationMs: 100, maxPerReplica: -1, minColocateBlocks: 0}}",
                "prefix-cache-scorer",
                "load-aware-scorer",
            ],
            profile("default", "prefix-cache-scorer 2.0", "load-aware-scorer 1.0"),
        ),
        ["plugins[0].type: burst-prefix-cache-producer is not supported: a decision is learned before the next one"],
    ),
    "images in pods of their own (e-p-d)": (
        shape(
            [
                "queue-scorer",
                "encode-filter",
                "prefill-filter",
                "decode-filter",
                "always-disagg-multimodal-decider",
                "always-disagg-pd-decider",
                "{type: disagg-profile-handler, parameters: {deciders: {encode: always-disagg-multimodal-decider, prefill: always-disagg-pd-decider}}}",
            ],
            profile("encode", "encode-filter"),
            profile("prefill", "prefill-filter", "queue-scorer 1"),
            profile("decode", "decode-filter", "queue-scorer 1"),
        ),
        [
            "plugins[4].type: always-disagg-multimodal-decider is not supported: encoding images in pods of their own",
            "plugins[6].parameters: deciders.encode is not supported: engines encode images themselves; remove it",
        ],
    ),
    "cached images": (
        shape(
            [
                "{type: mm-embeddings-cache-producer, parameters: {cacheSizeInMBPerServer: 2048}}",
                "mm-embeddings-cache-scorer",
                "queue-scorer",
            ],
            profile("default", "queue-scorer 1", "mm-embeddings-cache-scorer 4"),
        ),
        [
            "plugins[0].type: mm-embeddings-cache-producer is not supported: caches of encoded images are not followed",
            "plugins[1].type: mm-embeddings-cache-scorer is not supported",
        ],
    ),
    "programs of agents": (
        shape(
            [
                "{type: utilization-detector, parameters: {headroom: 0.2}}",
                "agent-identity",
                "{type: thunder-agent, name: thunder}",
                "queue-scorer",
            ],
            profile("default", "utilization-detector", "thunder 3", "queue-scorer 1"),
            more="featureGates: [flowControl]\nflowControl: {saturationDetector: {pluginRef: thunder}}\n",
            head="apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n",
        ),
        [
            "plugins[1].type: agent-identity is not supported: session-affinity-scorer and -filter read header or cookie",
            "plugins[2].type: thunder-agent is not supported: tenants share by tokens",
        ],
    ),
    "probabilistic admitter": (
        shape(
            [
                "probabilistic-admitter",
                "random-picker",
                "{type: utilization-detector, parameters: {queueDepthThreshold: 999999999}}",
            ],
            profile("default", "random-picker"),
            more="saturationDetector: {pluginRef: utilization-detector}\n",
        ),
        [
            "plugins[0].type: probabilistic-admitter is not supported: with flowControl, requests of negative priority",
            "saturationDetector: is not supported: its place is flowControl.saturationDetector",
        ],
    ),
    "soft-reflective-ceiling": (
        shape(
            ["soft-reflective-ceiling-policy", "queue-scorer"],
            more="flowControl: {usageLimitPolicyPluginRef: soft-reflective-ceiling-policy}\n",
        ),
        [
            "plugins[0].type: soft-reflective-ceiling-policy is not supported: a band may use whatever",
            "flowControl.usageLimitPolicyPluginRef: is not supported: a band may use whatever",
        ],
    ),
    "utilisation of GPUs": (
        shape(
            [
                "{type: dcgm-data-source, name: dcgm, parameters: {port: 9400}}",
                "dcgm-extractor",
                (
                    "{type: endpoint-attribute-filter, name: gpu-filter, parameters: {attribute: GPUUtilization, producer: dcgm-extractor, "
                    "algorithm: {type: threshold, threshold: {operator: LessThanOrEqual, value: 0.9}}}}"
                ),
                (
                    "{type: endpoint-attribute-scorer, name: gpu-scorer, parameters: {attributeKey: GPUUtilization, "
                    "producer: dcgm-extractor, algorithm: {type: linear_lower_is_better}}}"
                ),
                "kv-cache-utilization-scorer",
            ],
            profile("default", "gpu-filter", "gpu-scorer 2.0", "kv-cache-utilization-scorer 1.0"),
            more="dataLayer: {sources: [{pluginRef: dcgm, extractors: [{pluginRef: dcgm-extractor}]}]}\n",
        ),
        [
            f"plugins[0].type: dcgm-data-source is not supported: {DCGM}",
            f"plugins[1].type: dcgm-extractor is not supported: {DCGM}",
            'plugins[2].parameters.producer: must be "" or core-metrics-extractor, not',
            'plugins[3].parameters.producer: must be "" or core-metrics-extractor, not',
        ],
    ),
    "hashes from metadata": (
        shape(
            ["{type: approx-prefix-cache-producer, parameters: {prefixHashSource: metadata}}", "prefix-cache-scorer"]
        ),
        ["plugins[0].parameters.prefixHashSource: is not supported: blocks are hashed here"],
    ),
    "the models' own answer": (
        shape(["prefix-cache-scorer", "models-responder"], profile("default", "prefix-cache-scorer 2")),
        ["plugins[1].type: models-responder is not supported: /v1/models is always answered, from the routes"],
    ),
}


@pytest.mark.parametrize("text", LOAD.values(), ids=LOAD)
def test_it_loads_and_finds_an_endpoint(text):
    scheduler = config.build(config.load(config.parse(text), plugins.BUILTIN))
    roles = [{"llm-d.ai/role": role} for role in ("prefill-decode", "decode", "prefill")]

    assert scheduler.schedule(a_cycle(*(an_endpoint(labels=labels) for labels in roles))).rows


@pytest.mark.parametrize(("text", "wanted"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_for_exactly_what_is_lacking(text, wanted):
    with pytest.raises(errors.ConfigError) as caught:
        config.load(config.parse(text), plugins.BUILTIN)

    lines = str(caught.value).splitlines()
    assert len(lines) == len(wanted)
    for line, part in zip(lines, wanted, strict=True):
        assert part in line


def test_nothing_is_both_here_and_lacking():
    assert not [one.TYPE for one in plugins.BUILTIN.types if one.TYPE in plugins.BUILTIN.lacking]
