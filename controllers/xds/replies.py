"""Envoy's own replies as OpenAI error objects that say what happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from envoy_data_plane.envoy.config.core.v3 import DataSource, SubstitutionFormatString
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import LocalReplyConfig

if TYPE_CHECKING:
    from controllers import ir


def local_replies(gateway: ir.Gateway) -> LocalReplyConfig:
    return LocalReplyConfig(
        body_format=SubstitutionFormatString(
            text_format_source=DataSource(inline_string="%LOCAL_REPLY_BODY%|%RESPONSE_CODE_DETAILS%|%RESPONSE_FLAGS%")
        )
    )
