"""`networking.matrixinfer.ai/v1alpha1`: engines, other people's engines, which model goes where, and who may.

Kinds: ModelServer, ExternalModelProvider, ModelRoute, AccessPolicy.

The one source for these kinds: the CRDs, the checks of webhook, command line and directories, and the reference page are
generated from the fields, bounds, defaults and `RULES` here. Every list has a bound, so that a rule's cost has one, too.
"""

from __future__ import annotations

from typing import Final

from matrixinfer.api import kinds
from matrixinfer.api.networking.access_policy import (
    AccessPolicy,
    AccessPolicySpec,
    AccessPolicyStatus,
    AccessRule,
    ApiKeys,
    Claim,
    KeySet,
    SecretRef,
    TargetRef,
    TokenIssuer,
)
from matrixinfer.api.networking.external_model_provider import (
    ExternalModelProvider,
    ExternalModelProviderSpec,
    ExternalModelProviderStatus,
    ProviderAuth,
    SecretKeyRef,
)
from matrixinfer.api.networking.handling import (
    DEFAULT_ATTEMPTS,
    FURTHER_TARGETS,
    TRIES_EACH,
    Handling,
    handling,
    retry_of,
    tries,
)
from matrixinfer.api.networking.model_route import (
    DEFAULT_WEIGHT,
    BodyMatch,
    ModelMatch,
    ModelRoute,
    ModelRouteSpec,
    ModelRouteStatus,
    ParentReference,
    RouteRule,
    StringMatch,
    TargetModel,
)
from matrixinfer.api.networking.model_server import (
    RETRY_ON,
    KVConnector,
    ModelServer,
    ModelServerSpec,
    ModelServerStatus,
    PDGroup,
    Retry,
    TrafficPolicy,
    WorkloadPort,
    WorkloadSelector,
    port_number,
)
from matrixinfer.api.networking.rate_limit import UNIT_S, CallerRateLimit, GlobalRateLimit, RateLimit, Redis
from matrixinfer.api.networking.traffic import Mirror, RouteTrafficPolicy, StickyBy

__all__ = [
    "ACCEPTED",
    "API_VERSION",
    "DEFAULT_ATTEMPTS",
    "DEFAULT_WEIGHT",
    "FURTHER_TARGETS",
    "PROGRAMMED",
    "READY",
    "RESOLVED_REFS",
    "RETRY_ON",
    "TRIES_EACH",
    "UNIT_S",
    "AccessPolicy",
    "AccessPolicySpec",
    "AccessPolicyStatus",
    "AccessRule",
    "ApiKeys",
    "BodyMatch",
    "CallerRateLimit",
    "Claim",
    "ExternalModelProvider",
    "ExternalModelProviderSpec",
    "ExternalModelProviderStatus",
    "GlobalRateLimit",
    "Handling",
    "KVConnector",
    "KeySet",
    "Mirror",
    "ModelMatch",
    "ModelRoute",
    "ModelRouteSpec",
    "ModelRouteStatus",
    "ModelServer",
    "ModelServerSpec",
    "ModelServerStatus",
    "PDGroup",
    "ParentReference",
    "ProviderAuth",
    "RateLimit",
    "Redis",
    "Retry",
    "RouteRule",
    "RouteTrafficPolicy",
    "SecretKeyRef",
    "SecretRef",
    "StickyBy",
    "StringMatch",
    "TargetModel",
    "TargetRef",
    "TokenIssuer",
    "TrafficPolicy",
    "WorkloadPort",
    "WorkloadSelector",
    "handling",
    "port_number",
    "retry_of",
    "tries",
]

API_VERSION: Final = kinds.MODEL_SERVER.api_version

# Condition types of both kinds.
ACCEPTED: Final = "Accepted"  # the object is valid and in use
RESOLVED_REFS: Final = "ResolvedRefs"  # everything that it names exists
PROGRAMMED: Final = "Programmed"  # Envoy has taken the configuration made of it
READY: Final = "Ready"  # requests can be answered
