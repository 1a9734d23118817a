"""The names on which Envoy's configuration and the picker must agree.

`controllers.xds` writes them into Envoy's configuration, `extproc` into its answers. Upstream's names (Gateway API
Inference Extension, endpoint-picker protocol 1.0) are kept where there is one; the rest start with `matrixinfer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

# Endpoint-picker protocol: the ordered list "ip:port[,ip:port...]" that the picker answers, as header and as metadata.
ENDPOINT: Final = "x-gateway-destination-endpoint"
ENDPOINT_METADATA: Final = "envoy.lb"
# A gateway's restriction of the choice: metadata namespace, and the key in it (a list of "ip:port").
SUBSET_METADATA: Final = "envoy.lb.subset_hint"
SUBSET: Final = "x-gateway-destination-endpoint-subset"
# What a gateway reports on the response headers: the endpoint that answered.
SERVED: Final = "x-gateway-destination-endpoint-served"

# Request header, set by the picker only and never sent on: the ModelServer ("namespace/name") whose route applies.
TARGET: Final = "x-matrixinfer-target"
# Request header, set by the picker only and never sent on: the key of the rule's handling (`networking.Handling`), where
# it has one; with one of the endings if only a part of it is for this request.
HANDLING: Final = "x-matrixinfer-handling"
STREAM: Final = "-stream"  # the answer is a stream, so silence in it is bounded
ALONE: Final = "-alone"  # the body is for this target only: it fails over to no other, and nobody gets a copy
RELAYED: Final = "-relayed"  # after all endpoints it may go on to the provider that overflows
# Where such a request goes: a listener inside of Envoy, its name as an endpoint, and the header by which the request's ticket gets
# there. That is set on this try only, by Envoy, of the picker's metadata; at the door a client's is removed.
RELAY_LISTENER: Final = "relay"
RELAY_ENDPOINT: Final = "envoy://relay/"
RELAY: Final = "x-matrixinfer-relay"
# Request header of a copy, set by Envoy only and never sent on: where its body names the model, and the name to put there.
RENAME: Final = "x-matrixinfer-rename"
# Request header, set by Envoy only and never sent on: the model that it read in the body, where it had to.
MODEL: Final = "x-matrixinfer-model"
# Request header of a client that asks for the decision; response header that carries it (compact JSON).
EXPLAIN: Final = "x-matrixinfer-explain"
DECISION: Final = "x-matrixinfer-decision"
# Response header on refusals: why, as a stable word (`no-endpoints`, `unknown-model`, ...).
REASON: Final = "x-matrixinfer-reason"
# Request header, set by the picker only and never sent on: the length of the body that it puts in place of one that came
# along with the headers, as Envoy takes content-length out then.
LENGTH: Final = "x-matrixinfer-length"
# Response header between our filters: the answer of an external provider that speaks another API than the client.
TRANSLATE: Final = "x-matrixinfer-translate"
REQUEST_ID: Final = "x-request-id"
# Request headers that carry credentials: a client's never reach a provider, and a provider's never the picker.
CREDENTIALS: Final = ("authorization", "x-api-key", "proxy-authorization", "cookie")

# Dynamic metadata that the picker sets on a decided request (namespace, then keys). All values are strings.
METADATA: Final = "matrixinfer"
TICKET: Final = "ticket"  # the picker's own name for the request: what its settlement is matched by
OFFERED: Final = "offered"  # the same, told before the decision: all that Envoy has if the client leaves meanwhile
USAGE_CHUNKS: Final = "usage_chunks"  # what to do with usage that the client did not ask for: one of the two below
HIDE_ALL: Final = "hide-all"  # drop the final usage-only chunk, and usage inside other chunks
HIDE_RUNNING: Final = "hide-running"  # the client asked for final usage: strip it from the other chunks only
PROVIDER: Final = "provider"  # how an external provider is spoken to (compact JSON), for the filter before it
EXPLANATION: Final = "decision"  # becomes the response header DECISION
# What a route's limits leave: each is the name of a response header, and the key of its value.
LIMITS: Final = tuple(
    f"x-ratelimit-{what}-{unit}" for unit in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)

# Dynamic metadata that the picker sets where others than its target may get the body, and know the model by another name.
# The names are JSON strings, in ASCII. Keys are endpoints ("ip:port"), the cluster names of mirrors, and SPAN.
NAMES_METADATA: Final = "matrixinfer.names"
SPAN: Final = "span"  # "start:length" of the name's JSON string in the body that is sent

# Dynamic metadata that Envoy itself writes, for the access log.
USAGE_METADATA: Final = "matrixinfer.usage"  # numbers: prompt_tokens, completion_tokens, cached_tokens; string: model
TIMING_METADATA: Final = (
    "matrixinfer.timing"  # first_token_ms: ms since the epoch of the first body chunk that holds data
)
SERVED_METADATA: Final = "matrixinfer.served"  # host: "ip:port" that the load balancer really used
REQUEST_METADATA: Final = "matrixinfer.request"  # model: read by Envoy when the picker is away (fail open)
ACCESS_METADATA: Final = "matrixinfer.access"  # who asks, where an AccessPolicy is in force; told to the picker
# Typed metadata (a BytesValue) that the module writes before the picker is asked: the request's body. It sets OFFERED, too.
BODY_METADATA: Final = "matrixinfer.body"
TENANT: Final = "tenant"  # string: in whose name
ALLOWED: Final = "models"  # list of strings, for GET /v1/models: the served names that the caller may use
CERTIFICATE: Final = "certificate"  # string: the same, if a client's certificate says so
CLIENT: Final = "client"  # string, between Envoy's filters: ",policy,policy,|client" of an API key

# Paths that Envoy answers by itself, to anybody.
HEALTH_PATHS: Final = ("/healthz", "/readyz")

# Pod annotation: the port of this pod's engine where it differs from the ModelServer's workloadPort.
PORT_ANNOTATION: Final = "networking.matrixinfer.ai/port"

# ModelServer annotation: when requests last waited for want of an engine (RFC 3339), for whoever starts engines.
HELD_ANNOTATION: Final = "networking.matrixinfer.ai/held-requests-at"


def cluster_name(namespace: str, name: str) -> str:
    """Name of the Envoy cluster that holds the endpoints of ModelServer `namespace/name`."""
    return f"modelserver/{namespace}/{name}"


def together_name(namespace: str, names: Sequence[str]) -> str:
    """Name of the Envoy cluster that holds the endpoints of all these ModelServers; `names` are sorted."""
    return f"modelservers/{namespace}/{'+'.join(names)}"


def relayed_name(namespace: str, names: Sequence[str]) -> str:
    """Name of the Envoy cluster that holds the endpoints of these ModelServers, and the relay; `names` are sorted."""
    return f"{together_name(namespace, names)}/relayed"


def mirror_name(namespace: str, name: str) -> str:
    """Name of the Envoy cluster that takes copies for ModelServer `namespace/name`."""
    return f"mirror/{namespace}/{name}"


def provider_name(namespace: str, name: str) -> str:
    """Name of ExternalModelProvider `namespace/name`: of its Envoy cluster, of its secret, and as value of TARGET."""
    return f"provider/{namespace}/{name}"


def endpoint(ip: str, port: int) -> str:
    """Name of an endpoint, "ip:port"."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def translator_socket(picker: str) -> str:
    """Path of the socket by which providers are spoken to, beside that of the picker."""
    return f"{picker}.out"


def target_name(namespace: str, name: str) -> str:
    """Value of the TARGET header for ModelServer `namespace/name`."""
    return f"{namespace}/{name}"
