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

__all__ = [
    "ACCEPTED",
    "API_VERSION",
    "DEFAULT_WEIGHT",
    "PROGRAMMED",
    "READY",
    "RESOLVED_REFS",
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
    "KVConnector",
    "KeySet",
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
    "SecretKeyRef",
    "SecretRef",
    "StringMatch",
    "TargetModel",
    "TargetRef",
    "TokenIssuer",
    "TrafficPolicy",
    "WorkloadPort",
    "WorkloadSelector",
    "port_number",
]

API_VERSION: Final = kinds.MODEL_SERVER.api_version

# Condition types of both kinds.
ACCEPTED: Final = "Accepted"  # the object is valid and in use
RESOLVED_REFS: Final = "ResolvedRefs"  # everything that it names exists
PROGRAMMED: Final = "Programmed"  # Envoy has taken the configuration made of it
READY: Final = "Ready"  # requests can be answered
