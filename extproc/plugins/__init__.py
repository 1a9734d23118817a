"""The plugins: one file each, named for its type. `BUILTIN` lists them and says what a silent configuration means."""

from __future__ import annotations

from typing import Final

from extproc.plugins.active_request_scorer import ActiveRequestScorer
from extproc.plugins.always_disagg_pd_decider import AlwaysDisaggPdDecider
from extproc.plugins.anthropic_parser import AnthropicParser
from extproc.plugins.approx_prefix_cache_producer import ApproxPrefixCacheProducer
from extproc.plugins.bounded_load_filter import BoundedLoadFilter
from extproc.plugins.by_label import ByLabel
from extproc.plugins.by_label_selector import ByLabelSelector
from extproc.plugins.concurrency_detector import ConcurrencyDetector
from extproc.plugins.context_length_aware import ContextLengthAware
from extproc.plugins.core_metrics_extractor import CoreMetricsExtractor
from extproc.plugins.decode_filter import DecodeFilter
from extproc.plugins.disagg_headers_handler import DisaggHeadersHandler
from extproc.plugins.disagg_profile_handler import DisaggProfileHandler
from extproc.plugins.dynamo_cost_scorer import DynamoCostScorer
from extproc.plugins.encode_filter import EncodeFilter
from extproc.plugins.endpoint_attribute_filter import EndpointAttributeFilter
from extproc.plugins.endpoint_attribute_scorer import EndpointAttributeScorer
from extproc.plugins.endpoint_notification_source import EndpointNotificationSource
from extproc.plugins.fcfs_ordering_policy import FcfsOrderingPolicy
from extproc.plugins.global_strict_fairness_policy import GlobalStrictFairnessPolicy
from extproc.plugins.header_label_affinity_scorer import HeaderLabelAffinityScorer
from extproc.plugins.inflight_load_producer import InflightLoadProducer
from extproc.plugins.kv_cache_utilization_scorer import KvCacheUtilizationScorer
from extproc.plugins.label_selector_filter import LabelSelectorFilter
from extproc.plugins.lacking import LACKING
from extproc.plugins.latency_scorer import LatencyScorer
from extproc.plugins.least_latency_scorer import LeastLatencyScorer
from extproc.plugins.least_request_filter import LeastRequestFilter
from extproc.plugins.least_request_scorer import LeastRequestScorer
from extproc.plugins.lmetric_scorer import LmetricScorer
from extproc.plugins.load_aware_scorer import LoadAwareScorer
from extproc.plugins.lora_affinity_filter import LoraAffinityFilter
from extproc.plugins.lora_affinity_scorer import LoraAffinityScorer
from extproc.plugins.max_score_picker import MaxScorePicker
from extproc.plugins.metrics_data_source import MetricsDataSource
from extproc.plugins.models_data_extractor import ModelsDataExtractor
from extproc.plugins.models_data_source import ModelsDataSource
from extproc.plugins.never_disagg_pd_decider import NeverDisaggPdDecider
from extproc.plugins.no_hit_lru_scorer import NoHitLruScorer
from extproc.plugins.openai_parser import OpenaiParser
from extproc.plugins.pd_profile_handler import PdProfileHandler
from extproc.plugins.power_of_two_picker import PowerOfTwoPicker
from extproc.plugins.precise_prefix_cache_producer import PrecisePrefixCacheProducer
from extproc.plugins.precise_prefix_cache_scorer import PrecisePrefixCacheScorer
from extproc.plugins.predicted_latency_producer import PredictedLatencyProducer
from extproc.plugins.prefill_filter import PrefillFilter
from extproc.plugins.prefill_header_handler import PrefillHeaderHandler
from extproc.plugins.prefix_based_pd_decider import PrefixBasedPdDecider
from extproc.plugins.prefix_cache_affinity_filter import PrefixCacheAffinityFilter
from extproc.plugins.prefix_cache_scorer import PrefixCacheScorer
from extproc.plugins.prompt_length_pd_decider import PromptLengthPdDecider
from extproc.plugins.queue_scorer import QueueScorer
from extproc.plugins.random_picker import RandomPicker
from extproc.plugins.recent_failure_filter import RecentFailureFilter
from extproc.plugins.round_robin_fairness_policy import RoundRobinFairnessPolicy
from extproc.plugins.round_robin_picker import RoundRobinPicker
from extproc.plugins.running_requests_size_scorer import RunningRequestsSizeScorer
from extproc.plugins.session_affinity_filter import SessionAffinityFilter
from extproc.plugins.session_affinity_scorer import SessionAffinityScorer
from extproc.plugins.sglanghttp_parser import SglanghttpParser
from extproc.plugins.single_profile_handler import SingleProfileHandler
from extproc.plugins.slo_headroom_tier_filter import SloHeadroomTierFilter
from extproc.plugins.token_load_scorer import TokenLoadScorer
from extproc.plugins.token_producer import TokenProducer
from extproc.plugins.topology_affinity_filter import TopologyAffinityFilter
from extproc.plugins.topology_affinity_scorer import TopologyAffinityScorer
from extproc.plugins.topology_extractor import TopologyExtractor
from extproc.plugins.utilization_detector import UtilizationDetector
from extproc.plugins.utilization_filter import UtilizationFilter
from extproc.plugins.virtual_token_counter_fairness_policy import VirtualTokenCounterFairnessPolicy
from extproc.plugins.vllmhttp_parser import VllmhttpParser
from extproc.plugins.weighted_random_picker import WeightedRandomPicker
from extproc.scheduling.config import Catalogue

# What is meant where neither plugins nor profiles are given; docs/scheduling.md has the reasoning.
DEFAULT: Final = {
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [
        {"type": "bounded-load-filter", "parameters": {"loadFactor": 2.0, "minRequests": 16}},
        {
            "type": "prefix-cache-scorer",
            "parameters": {
                "minTrunkShare": 0.5,
                "minTrunkTokens": 512,
                "minContinuationScore": 0.5,
                "homeWeight": 0.5,
            },
        },
        {"type": "least-request-scorer", "parameters": {"scaleRequests": 10}},
        {"type": "load-aware-scorer", "parameters": {"threshold": 32}},
        {"type": "kv-cache-utilization-scorer"},
        {"type": "no-hit-lru-scorer", "parameters": {"minTrunkShare": 0.5, "minTrunkTokens": 512}},
        {"type": "max-score-picker", "parameters": {"maxNumOfEndpoints": 4}},
    ],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": "bounded-load-filter"},
                {"pluginRef": "prefix-cache-scorer", "weight": 3},
                {"pluginRef": "least-request-scorer", "weight": 3},
                {"pluginRef": "load-aware-scorer", "weight": 1},
                {"pluginRef": "kv-cache-utilization-scorer", "weight": 1},
                {"pluginRef": "no-hit-lru-scorer", "weight": 0.6},
                {"pluginRef": "max-score-picker"},
            ],
        }
    ],
}

BUILTIN: Final = Catalogue(
    types=(
        RecentFailureFilter,
        LeastRequestFilter,
        BoundedLoadFilter,
        UtilizationFilter,
        PrefixCacheAffinityFilter,
        SessionAffinityFilter,
        LoraAffinityFilter,
        LabelSelectorFilter,
        ByLabelSelector,
        ByLabel,
        PrefillFilter,
        DecodeFilter,
        EncodeFilter,
        TopologyAffinityFilter,
        EndpointAttributeFilter,
        SloHeadroomTierFilter,
        ContextLengthAware,
        QueueScorer,
        KvCacheUtilizationScorer,
        RunningRequestsSizeScorer,
        ActiveRequestScorer,
        TokenLoadScorer,
        LeastRequestScorer,
        LoadAwareScorer,
        LeastLatencyScorer,
        LatencyScorer,
        PrefixCacheScorer,
        PrecisePrefixCacheScorer,
        NoHitLruScorer,
        LmetricScorer,
        DynamoCostScorer,
        SessionAffinityScorer,
        LoraAffinityScorer,
        HeaderLabelAffinityScorer,
        TopologyAffinityScorer,
        EndpointAttributeScorer,
        MaxScorePicker,
        WeightedRandomPicker,
        RandomPicker,
        RoundRobinPicker,
        PowerOfTwoPicker,
        SingleProfileHandler,
        DisaggProfileHandler,
        PdProfileHandler,
        AlwaysDisaggPdDecider,
        NeverDisaggPdDecider,
        PrefixBasedPdDecider,
        PromptLengthPdDecider,
        DisaggHeadersHandler,
        PrefillHeaderHandler,
        UtilizationDetector,
        ConcurrencyDetector,
        VirtualTokenCounterFairnessPolicy,
        RoundRobinFairnessPolicy,
        GlobalStrictFairnessPolicy,
        FcfsOrderingPolicy,
        ApproxPrefixCacheProducer,
        InflightLoadProducer,
        TokenProducer,
        PrecisePrefixCacheProducer,
        PredictedLatencyProducer,
        TopologyExtractor,
        MetricsDataSource,
        CoreMetricsExtractor,
        ModelsDataSource,
        ModelsDataExtractor,
        EndpointNotificationSource,
        OpenaiParser,
        AnthropicParser,
        VllmhttpParser,
        SglanghttpParser,
    ),
    default=DEFAULT,
    every_profile=(RecentFailureFilter.TYPE,),
    picker=MaxScorePicker.TYPE,
    handler=SingleProfileHandler.TYPE,
    producer=ApproxPrefixCacheProducer.TYPE,
    prefixes=(PrecisePrefixCacheProducer.TYPE,),
    lacking=LACKING,
)
