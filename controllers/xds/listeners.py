"""The listener: how clients are spoken to, which replies Envoy makes itself, and what is logged."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import (
    Address,
    ApiVersion,
    CidrRange,
    Http1ProtocolOptions,
    Http2ProtocolOptions,
    HttpProtocolOptions,
    HttpProtocolOptionsHeadersWithUnderscoresAction,
    SocketAddress,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.access_loggers.grpc.v3 import (
    CommonGrpcAccessLogConfig,
    HttpGrpcAccessLogConfig,
)
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StdoutAccessLog
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    HttpConnectionManager,
    HttpConnectionManagerInternalAddressConfig,
    HttpConnectionManagerPathWithEscapedSlashesAction,
    HttpConnectionManagerServerHeaderTransformation,
    Rds,
    RequestIdExtension,
)
from envoy_data_plane.envoy.extensions.request_id.uuid.v3 import UuidRequestIdConfig
from envoy_data_plane.google.protobuf import Struct

from controllers.xds import tls
from controllers.xds.clusters import ads
from controllers.xds.filters import door, filters, picker_service
from controllers.xds.replies import local_replies
from controllers.xds.routes import ROUTES
from controllers.xds.typed import packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from controllers import ir

LOG_NAME = "matrixinfer"


def listener(one: ir.Listener, gateway: ir.Gateway) -> Listener:
    """Build one listener; all share the routes."""
    return Listener(
        name=one.name,
        address=Address(socket_address=SocketAddress(address=one.host, port_value=one.port)),
        # What may wait in memory for one client. It is the only bound that filters which need whole bodies obey.
        per_connection_buffer_limit_bytes=gateway.limits.body_bytes,
        tcp_backlog_size=4096,
        filter_chains=[
            FilterChain(
                filters=[
                    Filter(
                        name="envoy.filters.network.http_connection_manager",
                        typed_config=packed(_connection_manager(gateway)),
                    )
                ],
                transport_socket=tls.socket(one.tls) if one.tls is not None else None,
            )
        ],
    )


def _connection_manager(gateway: ir.Gateway) -> HttpConnectionManager:
    limits = gateway.limits
    return HttpConnectionManager(
        stat_prefix="gateway",
        rds=Rds(config_source=ads(), route_config_name=ROUTES),
        http_filters=filters(gateway),
        early_header_mutation_extensions=[door()],
        common_http_protocol_options=HttpProtocolOptions(
            idle_timeout=timedelta(minutes=10),
            max_headers_count=200,
            # `session_id` and its like are headers that clients of this field send.
            headers_with_underscores_action=HttpProtocolOptionsHeadersWithUnderscoresAction.ALLOW,
        ),
        http_protocol_options=Http1ProtocolOptions(accept_http_10=True, default_host_for_http_10="matrixinfer"),
        http2_protocol_options=Http2ProtocolOptions(max_concurrent_streams=1000),
        server_name="matrixinfer",
        server_header_transformation=HttpConnectionManagerServerHeaderTransformation.OVERWRITE,
        request_headers_timeout=timedelta(seconds=limits.headers_s),
        stream_idle_timeout=timedelta(seconds=limits.idle_s),
        use_remote_address=True,
        # Nobody's `x-envoy-*` headers (timeouts, retries) are obeyed, wherever they connect from.
        internal_address_config=HttpConnectionManagerInternalAddressConfig(
            cidr_ranges=[CidrRange(address_prefix="255.255.255.255", prefix_len=32)]
        ),
        generate_request_id=True,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        request_id_extension=RequestIdExtension(
            # The client's own id stays as it is, to the last digit.
            typed_config=packed(UuidRequestIdConfig(pack_trace_reason=False))
        ),
        normalize_path=True,
        merge_slashes=True,
        # Model names in paths may hold an escaped slash.
        path_with_escaped_slashes_action=HttpConnectionManagerPathWithEscapedSlashesAction.KEEP_UNCHANGED,
        local_reply_config=local_replies(limits),
        access_log=_access_logs(gateway),
    )


def _access_logs(gateway: ir.Gateway) -> list[AccessLog]:
    to_the_picker = HttpGrpcAccessLogConfig(
        common_config=CommonGrpcAccessLogConfig(
            log_name=LOG_NAME,
            grpc_service=picker_service(),
            transport_api_version=ApiVersion.V3,
            buffer_flush_interval=timedelta(seconds=0.05),
            buffer_size_bytes=64 * 1024,
        ),
    )
    logs = [AccessLog(name="envoy.access_loggers.http_grpc", typed_config=packed(to_the_picker))]
    if gateway.access_log == "-":
        logs.append(
            AccessLog(name="envoy.access_loggers.stdout", typed_config=packed(StdoutAccessLog(log_format=_line())))
        )
    elif gateway.access_log:
        to_a_file = FileAccessLog(path=gateway.access_log, log_format=_line())
        logs.append(AccessLog(name="envoy.access_loggers.file", typed_config=packed(to_a_file)))
    return logs


def _line() -> SubstitutionFormatString:
    return SubstitutionFormatString(
        json_format=Struct.from_dict(
            {
                "time": "%START_TIME%",
                "request_id": "%REQ(X-REQUEST-ID)%",
                "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
                "method": "%REQ(:METHOD)%",
                "path": "%REQ(:PATH)%",
                "protocol": "%PROTOCOL%",
                "status": "%RESPONSE_CODE%",
                "flags": "%RESPONSE_FLAGS%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "route": "%ROUTE_NAME%",
                "endpoint": "%UPSTREAM_HOST%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "duration_ms": "%DURATION%",
                "request_bytes": "%BYTES_RECEIVED%",
                "response_bytes": "%BYTES_SENT%",
                "ticket": f"%DYNAMIC_METADATA({dataplane.METADATA}:{dataplane.TICKET})%",
                "usage": f"%DYNAMIC_METADATA({dataplane.USAGE_METADATA})%",
                "first_token_ms": f"%DYNAMIC_METADATA({dataplane.TIMING_METADATA}:first_token_ms)%",
            }
        ),
    )
