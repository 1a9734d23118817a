"""Plugin types that others have and this picker has not, each with what stands in its place: a configuration is told."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

_FAIR: Final = "tenants share by tokens: use virtual-token-counter-fairness-policy"
_FCFS: Final = "requests of one tenant go in the order of their arrival: use fcfs-ordering-policy"
_CEILING: Final = "a band may use whatever the pool has left; the highest priority that waits is next"
_GRPC: Final = "requests come as HTTP with JSON bodies, not as gRPC"
_MODEL: Final = "every body here must name its model, as the route and the prefix depend on it"
_DCGM: Final = "GPUs are not asked for themselves; kv-cache-utilization-scorer and running-requests-size-scorer tell how full an engine is"
_IMAGES: Final = "caches of encoded images are not followed; parts with images count for the prefix by their content"
_MULTICLUSTER: Final = "there is one cluster for each picker"
_SHEDDING: Final = "with flowControl, requests of negative priority are refused while the pool is saturated"

LACKING: Final = MappingProxyType(
    {
        # llm-d: scheduling
        "mm-embeddings-cache-scorer": _IMAGES,
        "mm-embeddings-cache-producer": _IMAGES,
        "multicluster-queue-scorer": _MULTICLUSTER,
        "multicluster-kv-cache-utilization-scorer": _MULTICLUSTER,
        "header-based-testing-filter": "a request cannot choose its endpoint; a gateway may narrow them by the subset hint",
        "header-profile-handler": "the profile is chosen by the profile handler, not by the client",
        "data-parallel-profile-handler": "each data-parallel rank that has an address of its own is an endpoint of its own",
        "dp-rank-header-handler": "each data-parallel rank that has an address of its own is an endpoint of its own",
        "always-disagg-multimodal-decider": "encoding images in pods of their own is not supported",
        # llm-d: producers
        "burst-prefix-cache-producer": "a decision is learned before the next one, so that a burst finds its siblings without waiting",
        "session-id-producer": "session-affinity-scorer and -filter read header or cookie themselves: give them sessionIdConfig",
        "agent-identity": "session-affinity-scorer and -filter read header or cookie themselves: give them sessionIdConfig",
        "p2p-source-producer": "KV blocks are not fetched from third endpoints",
        # llm-d: admission, reports, responses
        "latency-slo-admitter": _SHEDDING,
        "probabilistic-admitter": _SHEDDING,
        "request-attribute-reporter": "usage goes into Envoy's access log as metadata `matrixinfer.usage`",
        "disaggregatedset-rollout-screener": "pods of a rollout are told apart by labels: use label-selector-filter",
        "destination-endpoint-served-verifier": "the endpoint that served is in Envoy's access log as metadata `matrixinfer.served`",
        "models-responder": "/v1/models is always answered, from the routes",
        "thunder-agent": _FAIR,
        # llm-d: flow control
        "program-aware-fairness": _FAIR,
        "edf-ordering-policy": _FCFS,
        "slo-deadline-ordering-policy": _FCFS,
        "static-usage-limit-policy": _CEILING,
        "priority-holdback-policy": _CEILING,
        "soft-reflective-ceiling-policy": _CEILING,
        # llm-d: parsers and data layer
        "passthrough-parser": _MODEL,
        "vllmgrpc-parser": _GRPC,
        "vertexai-parser": _GRPC,
        "dcgm-data-source": _DCGM,
        "dcgm-extractor": _DCGM,
        "k8s-notification-source": "what is watched in the cluster is not configurable",
        "file-discovery": "endpoints come from ModelServers and their pods; `matrixinfer up --engine URL` makes these of addresses",
        "local-syncer": "pickers do not share what they know this way",
        # Kthena
        "gpu-usage": "it is Kthena's name of kv-cache-utilization-scorer",
        "least-request": "it is Kthena's name of least-request-filter and least-request-scorer",
        "least-latency": "it is Kthena's name of least-latency-scorer",
        "lora-affinity": "it is Kthena's name of lora-affinity-filter; there is a scorer, too",
        "prefix-cache": "it is Kthena's name of prefix-cache-scorer",
        "kvcache-aware": "it is Kthena's name of prefix-cache-scorer over exact prefixes",
        "random": "it is Kthena's name of random-picker",
    }
)
