"""External providers: a cluster for each, its route, and the filters by which the picker speaks with them.

Filters of the cluster, for each try:

    ext_proc              asks the picker's other service (`extproc.adapters.outward`) for host, path and headers of the request, and
                          which of the answer's headers go on
    credential_injector   puts in the credential, which comes as a secret of its own (SDS): a new one is used at once, and
                          Envoy's configuration dump does not show it

The picker does not see the credential, not even in a second try, whose headers are those of the first.

A filter of the listener, off until there is a provider: ext_proc again, for answers that the first has marked because client and
provider speak different APIs. It is not the cluster's that changes bodies: there, Envoy 1.40 crashes as soon as more
than its buffer's limit is on the way.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterDiscoveryType,
    ClusterDnsLookupFamily,
)
from envoy_data_plane.envoy.config.common.mutation_rules.v3 import HeaderMutationRules
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    DataSource,
    GrpcService,
    GrpcServiceEnvoyGrpc,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    Pipe,
    SocketAddress,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.config.route.v3 import (
    FilterConfig,
    RetryPolicy,
    RetryPolicyRateLimitedRetryBackOff,
    RetryPolicyResetHeader,
    RetryPolicyRetryBackOff,
    Route,
    RouteAction,
    RouteMatch,
)
from envoy_data_plane.envoy.extensions.common.matching.v3 import ExtensionWithMatcher
from envoy_data_plane.envoy.extensions.filters.common.matcher.action.v3 import SkipFilter
from envoy_data_plane.envoy.extensions.filters.http.credential_injector.v3 import CredentialInjector
from envoy_data_plane.envoy.extensions.filters.http.ext_proc.v3 import (
    ExternalProcessor,
    HeaderForwardingRules,
    MetadataOptions,
    MetadataOptionsMetadataNamespaces,
    ProcessingMode,
    ProcessingModeBodySendMode,
    ProcessingModeHeaderSendMode,
)
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.http.injected_credentials.generic.v3 import Generic
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    GenericSecret,
    SdsSecretConfig,
    Secret,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import HttpProtocolOptions as UpstreamHttpOptions
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsAutoHttpConfig,
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import HttpResponseHeaderMatchInput, ListStringMatcher, StringMatcher
from envoy_data_plane.google.protobuf import Any
from envoy_data_plane.xds.type.matcher.v3 import (
    Matcher,
    MatcherMatcherList,
    MatcherMatcherListFieldMatcher,
    MatcherMatcherListPredicate,
    MatcherMatcherListPredicateSinglePredicate,
    MatcherOnMatch,
)
from envoy_data_plane.xds.type.matcher.v3 import StringMatcher as XdsStringMatcher

from controllers import ir
from controllers.xds.clusters import MANY, UPSTREAM_HTTP, ads
from controllers.xds.typed import extension, packed, xds_extension
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from betterproto2 import Message

TRANSLATOR: Final = "translator"
ANSWERS: Final = "matrixinfer.answers"
BUSY: Final = (429, 503, 504, 529)  # 529: Anthropic's "overloaded". Not 502, by which a refused credential is told
_LONGEST_WAIT_S: Final = 5.0  # a `retry-after` beyond this is the client's to keep
_IDLE_S: Final = 50.0  # load balancers of large services close idle connections after a minute
_ANSWER_S: Final = 10.0  # for the picker to translate a chunk; its loop may be busy for a moment


def bare(provider: ir.Provider) -> ir.Provider:
    """Leave out what the cluster does not show: the credential itself."""
    credential = provider.credential
    return provider if credential is None else replace(provider, credential=replace(credential, value=""))


def secret(provider: ir.Provider) -> Secret:
    """Build the secret that the cluster's filter fetches."""
    value = provider.credential.value if provider.credential is not None else ""
    name = dataplane.provider_name(provider.namespace, provider.name)
    return Secret(name=name, generic_secret=GenericSecret(secret=DataSource(inline_string=value)))


def translator(picker: ir.Picker) -> ir.Address | None:
    """Say where the picker speaks with providers; None: it does not."""
    if picker.translator is not None or not picker.address.path:
        return picker.translator
    return ir.Address(path=dataplane.translator_socket(picker.address.path))


def translator_cluster(address: ir.Address) -> Cluster:
    """Build the cluster behind which the picker prepares requests to providers and translates their answers."""
    where = (
        Address(pipe=Pipe(path=address.path))
        if address.path
        else Address(socket_address=SocketAddress(address=address.host, port_value=address.port))
    )
    return Cluster(
        name=TRANSLATOR,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=0.5),
        circuit_breakers=_breakers(MANY),
        typed_extension_protocol_options={
            UPSTREAM_HTTP: packed(
                UpstreamHttpOptions(
                    explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
                        http2_protocol_options=Http2ProtocolOptions()
                    )
                )
            )
        },
        load_assignment=_assignment(TRANSLATOR, where),
    )


def cluster(provider: ir.Provider, authorities: str) -> Cluster:
    """Build the cluster of one provider; `authorities` is a file that says who may sign certificates."""
    name = dataplane.provider_name(provider.namespace, provider.name)
    return Cluster(
        name=name,
        # One host, whatever the name resolves to: new connections go to the newest answer, and none is cut by it.
        type=ClusterDiscoveryType.LOGICAL_DNS,
        dns_lookup_family=ClusterDnsLookupFamily.ALL,
        connect_timeout=timedelta(seconds=5),
        circuit_breakers=_breakers(provider.most_requests),
        transport_socket=_tls(provider, authorities) if provider.tls else None,
        typed_extension_protocol_options={UPSTREAM_HTTP: packed(_spoken(name, provider))},
        load_assignment=_assignment(
            name, Address(socket_address=SocketAddress(address=provider.host, port_value=provider.port))
        ),
    )


def route(provider: ir.Provider, limits: ir.Limits) -> Route:
    """Build the route of requests that the picker sends to the provider."""
    name = dataplane.provider_name(provider.namespace, provider.name)
    return Route(
        name=name,
        match=RouteMatch(prefix="/"),
        route=RouteAction(
            cluster=name,
            timeout=timedelta(0),
            idle_timeout=timedelta(seconds=limits.idle_s),
            retry_policy=RetryPolicy(
                retry_on="connect-failure,refused-stream,reset,retriable-status-codes",
                retriable_status_codes=sorted({*BUSY, *(int(one) for one in provider.retry.on if one.isdigit())}),
                num_retries=provider.retry.attempts,
                per_try_timeout=None if provider.timeout_s is None else timedelta(seconds=provider.timeout_s),
                retry_back_off=RetryPolicyRetryBackOff(
                    base_interval=timedelta(seconds=provider.retry.interval_s),
                    max_interval=timedelta(seconds=provider.retry.interval_s * 10),
                ),
                rate_limited_retry_back_off=RetryPolicyRateLimitedRetryBackOff(
                    reset_headers=[RetryPolicyResetHeader(name="retry-after")],
                    max_interval=timedelta(seconds=_LONGEST_WAIT_S),
                ),
            ),
        ),
        request_body_buffer_limit=limits.body_bytes,
    )


def _spoken(name: str, provider: ir.Provider) -> UpstreamHttpOptions:
    both = HttpProtocolOptionsAutoHttpConfig(
        http_protocol_options=Http1ProtocolOptions(), http2_protocol_options=Http2ProtocolOptions()
    )
    plain = HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=Http1ProtocolOptions())
    return UpstreamHttpOptions(
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=timedelta(seconds=_IDLE_S)),
        auto_config=both if provider.tls else None,
        explicit_http_config=None if provider.tls else plain,
        http_filters=[
            _filter("matrixinfer.provider", _ask_the_picker()),
            *([_filter("matrixinfer.credential", _inject(name, provider.credential))] if provider.credential else []),
            _filter("envoy.filters.http.upstream_codec", UpstreamCodec()),
        ],
    )


def _filter(name: str, message: Message) -> HttpFilter:
    return HttpFilter(name=name, typed_config=packed(message))


def answers(picker: ir.Picker) -> tuple[HttpFilter, ...]:
    """Write the filter that has marked answers translated; none where the picker does not."""
    if translator(picker) is None:
        return ()
    marked = MatcherMatcherListPredicate(
        single_predicate=MatcherMatcherListPredicateSinglePredicate(
            input=xds_extension("response-headers", HttpResponseHeaderMatchInput(header_name=dataplane.TRANSLATE)),
            value_match=XdsStringMatcher(exact="1"),
        )
    )
    other = MatcherMatcherListFieldMatcher(
        predicate=MatcherMatcherListPredicate(not_matcher=marked),
        on_match=MatcherOnMatch(action=xds_extension("skip", SkipFilter())),
    )
    only_marked = ExtensionWithMatcher(
        extension_config=extension("envoy.filters.http.ext_proc", _translate()),
        xds_matcher=Matcher(matcher_list=MatcherMatcherList(matchers=[other])),
    )
    return (HttpFilter(name=ANSWERS, typed_config=packed(only_marked), disabled=True),)


def switched_on(*, on: bool) -> dict[str, Any]:
    """Write what routes say of that filter."""
    return {ANSWERS: packed(FilterConfig(config=Any()))} if on else {}


def _translate() -> ExternalProcessor:
    return _asks(
        ProcessingMode(
            request_header_mode=ProcessingModeHeaderSendMode.SKIP,
            request_body_mode=ProcessingModeBodySendMode.NONE,
            request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            response_header_mode=ProcessingModeHeaderSendMode.SEND,
            response_body_mode=ProcessingModeBodySendMode.STREAMED,
            response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
        )
    )


def _ask_the_picker() -> ExternalProcessor:
    return _asks(
        ProcessingMode(
            request_header_mode=ProcessingModeHeaderSendMode.SEND,
            request_body_mode=ProcessingModeBodySendMode.NONE,
            request_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
            response_header_mode=ProcessingModeHeaderSendMode.SEND,
            response_body_mode=ProcessingModeBodySendMode.NONE,
            response_trailer_mode=ProcessingModeHeaderSendMode.SKIP,
        )
    )


def _asks(mode: ProcessingMode) -> ExternalProcessor:
    return ExternalProcessor(
        grpc_service=GrpcService(envoy_grpc=GrpcServiceEnvoyGrpc(cluster_name=TRANSLATOR)),
        failure_mode_allow=False,
        message_timeout=timedelta(seconds=_ANSWER_S),
        allow_mode_override=True,
        processing_mode=mode,
        forward_rules=HeaderForwardingRules(
            disallowed_headers=ListStringMatcher(patterns=[StringMatcher(exact=one) for one in dataplane.CREDENTIALS])
        ),
        metadata_options=MetadataOptions(
            forwarding_namespaces=MetadataOptionsMetadataNamespaces(untyped=[dataplane.METADATA])
        ),
        mutation_rules=HeaderMutationRules(allow_all_routing=True),
        stat_prefix="providers",
    )


def _inject(name: str, credential: ir.Credential) -> CredentialInjector:
    fetched = SdsSecretConfig(name=name, sds_config=ads())
    return CredentialInjector(
        overwrite=True,
        credential=extension(
            "envoy.http.injected_credentials.generic",
            Generic(credential=fetched, header=credential.header, header_value_prefix=credential.prefix),
        ),
    )


def _tls(provider: ir.Provider, authorities: str) -> TransportSocket:
    host = provider.host
    try:
        ip_address(host)
        numeric = True
    except ValueError:
        numeric = False
    context = None
    if provider.verify:
        san = SubjectAltNameMatcherSanType.IP_ADDRESS if numeric else SubjectAltNameMatcherSanType.DNS
        context = CertificateValidationContext(
            trusted_ca=DataSource(inline_string=provider.ca) if provider.ca else DataSource(filename=authorities),
            match_typed_subject_alt_names=[SubjectAltNameMatcher(san_type=san, matcher=StringMatcher(exact=host))],
        )
    return TransportSocket(
        name="envoy.transport_sockets.tls",
        typed_config=packed(
            UpstreamTlsContext(
                sni="" if numeric else host,
                common_tls_context=CommonTlsContext(validation_context=context, alpn_protocols=["h2", "http/1.1"]),
            )
        ),
    )


def _breakers(most: int) -> CircuitBreakers:
    # A bound on connections would have requests wait for one; that on requests refuses them.
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=MANY, max_pending_requests=MANY, max_requests=most, max_retries=most
            )
        ]
    )


def _assignment(name: str, where: Address) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=where))])],
    )
