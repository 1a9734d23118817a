"""Clusters and their endpoints: one for each backend, and the picker's own.

A backend's cluster takes the picker's ordered list from metadata (`override_host`); without one, least request decides.
Named hosts are used whatever Envoy thinks of their health: the picker knows better; health checks and ejection guide
only the choice without it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from envoy_data_plane.envoy.config.cluster.v3 import (
    CircuitBreakers,
    CircuitBreakersThresholds,
    Cluster,
    ClusterCommonLbConfig,
    ClusterDiscoveryType,
    ClusterDnsLookupFamily,
    ClusterEdsClusterConfig,
    ClusterTransportSocketMatch,
    LoadBalancingPolicy,
    LoadBalancingPolicyPolicy,
    OutlierDetection,
    UpstreamConnectionOptions,
)
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    AggregatedConfigSource,
    ApiVersion,
    ConfigSource,
    DataSource,
    HealthCheck,
    HealthCheckHttpHealthCheck,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    KeepaliveSettings,
    Metadata,
    Pipe,
    RuntimeDouble,
    SocketAddress,
    TcpKeepalive,
    TransportSocket,
)
from envoy_data_plane.envoy.config.endpoint.v3 import (
    ClusterLoadAssignment,
    Endpoint,
    LbEndpoint,
    LocalityLbEndpoints,
)
from envoy_data_plane.envoy.extensions.filters.http.upstream_codec.v3 import UpstreamCodec
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import HttpFilter
from envoy_data_plane.envoy.extensions.load_balancing_policies.least_request.v3 import LeastRequest
from envoy_data_plane.envoy.extensions.load_balancing_policies.override_host.v3 import (
    OverrideHost,
    OverrideHostOverrideHostSource,
)
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CertificateValidationContext,
    CommonTlsContext,
    SubjectAltNameMatcher,
    SubjectAltNameMatcherSanType,
    UpstreamTlsContext,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptions as UpstreamHttpOptions,
)
from envoy_data_plane.envoy.extensions.upstreams.http.v3 import (
    HttpProtocolOptionsExplicitHttpConfig,
)
from envoy_data_plane.envoy.type.matcher.v3 import StringMatcher
from envoy_data_plane.envoy.type.metadata.v3 import MetadataKey, MetadataKeyPathSegment
from envoy_data_plane.envoy.type.v3 import CodecClientType, Percent
from envoy_data_plane.google.protobuf import Struct

from controllers.xds.typed import extension, packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Iterable

    from controllers import ir

PICKER = "picker"
UPSTREAM_HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

UPSTREAM_CODEC = HttpFilter(name="envoy.filters.http.upstream_codec", typed_config=packed(UpstreamCodec()))

# Engines queue by themselves and the picker admits: Envoy's own breakers only bound a runaway.
MANY = 20_000
# uvicorn (vLLM, SGLang) closes connections that were idle for 5 s: we close first, so no request meets a closing one.
IDLE_UPSTREAM = timedelta(seconds=4)


def ads() -> ConfigSource:
    """Say "over the stream that brought this resource"."""
    return ConfigSource(ads=AggregatedConfigSource(), resource_api_version=ApiVersion.V3)


def cluster(backend: ir.Backend) -> Cluster:
    """Build the cluster of one ModelServer; its endpoints come by EDS."""
    return Cluster(
        name=dataplane.cluster_name(backend.namespace, backend.name),
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ads()),
        connect_timeout=timedelta(seconds=1),
        load_balancing_policy=_picked_or_least_request(),
        common_lb_config=ClusterCommonLbConfig(
            # Below 1 % healthy, that is with none, all are tried: better a retry than a certain 503.
            healthy_panic_threshold=Percent(value=1.0),
        ),
        health_checks=[_health_check()],
        # A pod that is gone from the list gets nothing new; what it is answering goes on.
        ignore_health_on_host_removal=True,
        outlier_detection=_outlier_detection(),
        circuit_breakers=_breakers(),
        upstream_connection_options=_keepalive(),
        transport_socket=_tls() if backend.tls else None,
        typed_extension_protocol_options={UPSTREAM_HTTP: packed(_http1())},
    )


def _keepalive() -> UpstreamConnectionOptions:
    return UpstreamConnectionOptions(
        tcp_keepalive=TcpKeepalive(keepalive_time=30, keepalive_interval=10, keepalive_probes=3)
    )


def _http1(filters: Iterable[HttpFilter] = ()) -> UpstreamHttpOptions:
    return UpstreamHttpOptions(
        common_http_protocol_options=HttpProtocolOptions(idle_timeout=IDLE_UPSTREAM),
        explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(http_protocol_options=Http1ProtocolOptions()),
        http_filters=list(filters),
    )


def group(name: str, *filters: HttpFilter) -> Cluster:
    """Build a cluster beside those of the ModelServers: of several that fail over to one another, or of one for copies.

    The picker's list leads from one ModelServer to the next, and least request decides for copies, which have no list.
    Nobody's health is asked: the picker knows better, and nobody waits for what becomes of a copy. `filters` see every
    try.
    """
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.EDS,
        eds_cluster_config=ClusterEdsClusterConfig(eds_config=ads()),
        connect_timeout=timedelta(seconds=1),
        load_balancing_policy=_picked_or_least_request(),
        common_lb_config=ClusterCommonLbConfig(healthy_panic_threshold=Percent(value=1.0)),
        circuit_breakers=_breakers(),
        upstream_connection_options=_keepalive(),
        transport_socket_matches=[
            ClusterTransportSocketMatch(name="tls", match=Struct.from_dict({"tls": True}), transport_socket=_tls())
        ],
        typed_extension_protocol_options={UPSTREAM_HTTP: packed(_http1((*filters, UPSTREAM_CODEC)))},
    )


def group_assignment(
    name: str, backends: tuple[ir.Backend, ...], *further: LocalityLbEndpoints
) -> ClusterLoadAssignment:
    """List the endpoints of these ModelServers, each once, and `further` ones."""
    tls = Metadata(filter_metadata={"envoy.transport_socket_match": Struct.from_dict({"tls": True})})
    found = {endpoint: backend.tls for backend in backends for endpoint in backend.endpoints}
    return ClusterLoadAssignment(
        cluster_name=name,
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[
                    LbEndpoint(
                        endpoint=Endpoint(address=_socket(endpoint.address, endpoint.port)),
                        metadata=tls if found[endpoint] else None,
                    )
                    for endpoint in sorted(found)
                ]
            ),
            *further,
        ],
    )


def assignment(backend: ir.Backend) -> ClusterLoadAssignment:
    """List the endpoints of one ModelServer."""
    return ClusterLoadAssignment(
        cluster_name=dataplane.cluster_name(backend.namespace, backend.name),
        endpoints=[
            LocalityLbEndpoints(
                lb_endpoints=[
                    LbEndpoint(endpoint=Endpoint(address=_socket(endpoint.address, endpoint.port)))
                    for endpoint in backend.endpoints
                ]
            )
        ],
    )


def picker_cluster(picker: ir.Picker) -> Cluster:
    """Build the cluster behind which the picker answers and takes access logs."""
    address = picker.address
    where = Address(pipe=Pipe(path=address.path)) if address.path else _socket(address.host, address.port)
    return Cluster(
        name=PICKER,
        type=ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=0.5),
        circuit_breakers=_breakers(),
        typed_extension_protocol_options={
            UPSTREAM_HTTP: packed(
                UpstreamHttpOptions(
                    explicit_http_config=HttpProtocolOptionsExplicitHttpConfig(
                        http2_protocol_options=Http2ProtocolOptions(
                            # A frozen picker's connection is dropped, so that a restarted one is found at once.
                            connection_keepalive=KeepaliveSettings(
                                interval=timedelta(seconds=10), timeout=timedelta(seconds=5)
                            ),
                        )
                    )
                )
            )
        },
        load_assignment=ClusterLoadAssignment(
            cluster_name=PICKER,
            endpoints=[LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=where))])],
        ),
    )


def keys_cluster(name: str, url: str, authorities: str) -> Cluster:
    """Build the cluster behind which an issuer's keys are fetched; one of `authorities` has to have signed its certificate."""
    parts = urlsplit(url)
    secure, host = parts.scheme == "https", parts.hostname or ""
    where = _socket(host, parts.port or (443 if secure else 80))
    return Cluster(
        name=name,
        type=ClusterDiscoveryType.STRICT_DNS,
        dns_lookup_family=ClusterDnsLookupFamily.ALL,
        connect_timeout=timedelta(seconds=2),
        transport_socket=_tls_of(host, authorities) if secure else None,
        load_assignment=ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[LocalityLbEndpoints(lb_endpoints=[LbEndpoint(endpoint=Endpoint(address=where))])],
        ),
    )


def _tls_of(host: str, authorities: str) -> TransportSocket:
    context = CertificateValidationContext(
        trusted_ca=DataSource(filename=authorities),
        match_typed_subject_alt_names=[
            SubjectAltNameMatcher(san_type=SubjectAltNameMatcherSanType.DNS, matcher=StringMatcher(exact=host))
        ],
    )
    return TransportSocket(
        name="envoy.transport_sockets.tls",
        typed_config=packed(
            UpstreamTlsContext(sni=host, common_tls_context=CommonTlsContext(validation_context=context))
        ),
    )


def _socket(host: str, port: int) -> Address:
    return Address(socket_address=SocketAddress(address=host, port_value=port))


def _least_request() -> LeastRequest:
    return LeastRequest(
        choice_count=3,
        # Long generations weigh in full; the default, too, but said, since all depends on it.
        active_request_bias=RuntimeDouble(default_value=1.0, runtime_key="matrixinfer.active_request_bias"),
    )


def _picked_or_least_request() -> LoadBalancingPolicy:
    override = OverrideHost(
        override_host_sources=[
            OverrideHostOverrideHostSource(metadata=_metadata_key(dataplane.ENDPOINT_METADATA, dataplane.ENDPOINT))
        ],
        selected_host_key=_metadata_key(dataplane.SERVED_METADATA, "host"),
        fallback_policy=_policy("envoy.load_balancing_policies.least_request", _least_request()),
    )
    return _policy("envoy.load_balancing_policies.override_host", override)


def _policy(name: str, message: LeastRequest | OverrideHost) -> LoadBalancingPolicy:
    return LoadBalancingPolicy(policies=[LoadBalancingPolicyPolicy(typed_extension_config=extension(name, message))])


def _metadata_key(namespace: str, key: str) -> MetadataKey:
    return MetadataKey(key=namespace, path=[MetadataKeyPathSegment(key=key)])


def _health_check() -> HealthCheck:
    return HealthCheck(
        timeout=timedelta(seconds=2),
        # Under uvicorn's 5 s keep-alive, so that one connection carries the checks.
        interval=timedelta(seconds=4),
        interval_jitter=timedelta(seconds=0.5),
        no_traffic_interval=timedelta(seconds=4),
        unhealthy_interval=timedelta(seconds=1),
        unhealthy_edge_interval=timedelta(seconds=1),
        unhealthy_threshold=2,
        healthy_threshold=1,
        reuse_connection=True,
        http_health_check=HealthCheckHttpHealthCheck(path="/health", codec_client_type=CodecClientType.HTTP1),
    )


def _outlier_detection() -> OutlierDetection:
    return OutlierDetection(
        interval=timedelta(seconds=2),
        base_ejection_time=timedelta(seconds=5),
        max_ejection_time=timedelta(seconds=30),
        max_ejection_percent=50,
        split_external_local_origin_errors=True,
        consecutive_local_origin_failure=3,
        enforcing_consecutive_local_origin_failure=100,
        consecutive_gateway_failure=5,
        enforcing_consecutive_gateway_failure=100,
        # An engine that answers 500 to a request it dislikes is not dead.
        enforcing_consecutive_5xx=0,
        enforcing_success_rate=0,
        enforcing_local_origin_success_rate=0,
    )


def _breakers() -> CircuitBreakers:
    return CircuitBreakers(
        thresholds=[
            CircuitBreakersThresholds(
                max_connections=MANY, max_pending_requests=MANY, max_requests=MANY, max_retries=MANY
            )
        ]
    )


def _tls() -> TransportSocket:
    # Engines in a cluster carry certificates nobody signed for their pod's address: encrypted, not verified.
    return TransportSocket(name="envoy.transport_sockets.tls", typed_config=packed(UpstreamTlsContext()))
