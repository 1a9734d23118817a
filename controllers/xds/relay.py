"""The relay: how a request whose tries at engines have failed goes on to an external provider, in the provider's words.

    client ─▶ listener ─▶ router ─▶ engine, engine, ...
                                └─▶ relay ─▶ ask the picker ─▶ router ─▶ provider

The relay is a listener inside of Envoy, and stands as the last endpoint in the clusters of rules that have a provider which
overflows. What it gets has the engine's words; it asks the picker for the provider's, and from there on all is as for
requests that go to a provider at once.

For the router before it, the relay is the last word. Asked with `expect: 100-continue`, its connection manager answers 100
at once; then the router tries nobody else, and the engines' timeout, which bounds a try until an answer begins, is over. The
client sees nothing of that 100: a connection manager passes it on only if it is told to.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutation, HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    EnvoyInternalAddress,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    HttpProtocolOptions,
    Metadata,
)
from envoy_data_plane.envoy.config.endpoint.v3 import Endpoint, LbEndpoint, LocalityLbEndpoints
from envoy_data_plane.envoy.config.listener.v3 import (
    Filter,
    FilterChain,
    Listener,
    ListenerInternalListenerConfig,
)
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    HeaderForwardingRules,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
)
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import HeaderMutation as HeaderMutationFilter
from envoy_data_plane.envoy.extensions.filters.http.header_mutation.v3 import Mutations
from envoy_data_plane.envoy.extensions.filters.http.router.v3 import Router
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerServerHeaderTransformation,
    HttpFilter,
    Rds,
)
from envoy_data_plane.envoy.type.matcher.v3 import ListStringMatcher, StringMatcher
from envoy_data_plane.envoy.type.v3 import HttpStatus, StatusCode
from envoy_data_plane.google.protobuf import Struct

from controllers.xds import providers
from controllers.xds.clusters import ads
from controllers.xds.filters import the_whole_request
from controllers.xds.replies import local_replies
from controllers.xds.routes import EXT_PROC, RELAYED
from controllers.xds.typed import packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from betterproto2 import Message

    from controllers import ir

_EXPECT: Final = "expect"
_HEADERS_KB: Final = 96  # the listener lets 60 in


def wanted(config: ir.IR) -> bool:
    """Tell whether there is somebody to go on to, and a picker that finds the words."""
    return bool(config.providers) and providers.translator(config.gateway.picker) is not None


def listener(gateway: ir.Gateway) -> Listener:
    """Build the relay. Only Envoy itself can connect to it; it logs nothing, as the listener before it does."""
    return Listener(
        name=dataplane.RELAY_LISTENER,
        internal_listener=ListenerInternalListenerConfig(),
        ignore_global_conn_limit=True,  # the client's connection is counted
        per_connection_buffer_limit_bytes=gateway.limits.body_bytes,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=packed(_connection_manager(gateway)),
                    )
                ]
            )
        ],
    )


def _connection_manager(gateway: ir.Gateway) -> HttpConnectionManager:
    return HttpConnectionManager(
        stat_prefix="relay",
        rds=Rds(config_source=ads(), route_config_name=RELAYED),
        http_filters=[
            _filter(EXT_PROC, _ask_the_picker(gateway.picker)),
            *providers.answers(gateway.picker),
            _filter("envoy.filters.http.router", Router(suppress_envoy_headers=True)),
        ],
        common_http_protocol_options=HttpProtocolOptions(max_headers_count=250),
        max_request_headers_kb=_HEADERS_KB,
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.PASS_THROUGH,
        stream_idle_timeout=timedelta(seconds=gateway.limits.idle_s),
        generate_request_id=False,
        skip_xff_append=True,
        local_reply_config=local_replies(gateway.limits),
    )


def _ask_the_picker(picker: ir.Picker) -> ExternalProcessor:
    return ExternalProcessor(
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=providers.TRANSLATOR)),
        failure_mode_allow=False,
        status_on_error=HttpStatus(code=StatusCode.ServiceUnavailable),
        message_timeout=timedelta(seconds=picker.timeout_s),
        processing_mode=the_whole_request(),
        forward_rules=HeaderForwardingRules(
            disallowed_headers=ListStringMatcher(patterns=[StringMatcher(exact=one) for one in dataplane.CREDENTIALS])
        ),
        metadata_options=MetadataOptions(
            receiving_namespaces=MetadataOptionsMetadataNamespaces(untyped=[dataplane.METADATA])
        ),
        mutation_rules=HeaderMutationRules(),
        stat_prefix="relay",
    )


def endpoint() -> LocalityLbEndpoints:
    """Build the relay as an endpoint: of the last priority, so that nobody gets there but by the picker's list."""
    inside = EnvoyInternalAddress(server_listener_name=dataplane.RELAY_LISTENER)
    said = Struct.from_dict({_EXPECT: "100-continue"})
    return LocalityLbEndpoints(
        priority=1,
        lb_endpoints=[
            LbEndpoint(
                endpoint=Endpoint(address=Address(envoy_internal_address=inside)),
                metadata=Metadata(filter_metadata={dataplane.METADATA: said}),
            )
        ],
    )


def introduction() -> HttpFilter:
    """Write the filter that says to the relay, and to no engine, what it has to know: whose request it is."""
    told = f"%UPSTREAM_METADATA({dataplane.METADATA}:{_EXPECT})%"
    ticket = f"%DYNAMIC_METADATA({dataplane.METADATA}:{dataplane.TICKET})%"
    add = HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    # Of an engine's metadata the first two say nothing, which adds no header; the third adds none where there is none.
    steps = (
        (_EXPECT, told, add),
        (dataplane.RELAY, told, add),
        (dataplane.RELAY, ticket, HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS),
    )
    changes = [
        HeaderMutation(append=HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=how))
        for name, value, how in steps
    ]
    return _filter("matrixinfer.relay", HeaderMutationFilter(mutations=Mutations(request_mutations=changes)))


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(message))
