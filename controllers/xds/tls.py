"""TLS of a listener. Certificates come from files that Envoy watches: a new one serves the next connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.core.v3 import ApiVersion, ConfigSource, PathConfigSource, TransportSocket
from envoy_data_plane.envoy.extensions.transport_sockets.tls.v3 import (
    CommonTlsContext,
    DownstreamTlsContext,
    SdsSecretConfig,
    TlsParameters,
    TlsParametersTlsProtocol,
)

from controllers.xds.typed import packed

if TYPE_CHECKING:
    from controllers import ir

CERTIFICATE: Final = "certificate"
CLIENTS: Final = "clients"


def socket(tls: ir.Tls) -> TransportSocket:
    """Speak TLS 1.2 or newer, HTTP/2 or HTTP/1.1; ask clients for certificates if it is so wanted."""
    return TransportSocket(
        name="envoy.transport_sockets.tls",
        typed_config=packed(
            DownstreamTlsContext(
                common_tls_context=CommonTlsContext(
                    tls_params=TlsParameters(tls_minimum_protocol_version=TlsParametersTlsProtocol.TLSv1_2),
                    tls_certificate_sds_secret_configs=[_secret(tls.certificate, CERTIFICATE)],
                    validation_context_sds_secret_config=_secret(tls.clients, CLIENTS) if tls.clients else None,
                    alpn_protocols=["h2", "http/1.1"],
                ),
                require_client_certificate=tls.required,
            )
        ),
    )


def _secret(file: str, name: str) -> SdsSecretConfig:
    return SdsSecretConfig(
        name=name,
        sds_config=ConfigSource(path_config_source=PathConfigSource(path=file), resource_api_version=ApiVersion.V3),
    )
