"""Envoy's own replies as OpenAI error objects that say what happened.

The picker's immediate answers pass through here, too, and leave as they came. They are known by their response code
details: the picker gives none or a word of letters and hyphens, Envoy's own have underscores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLogFilter, ExtensionFilter
from envoy_data_plane.envoy.config.core.v3 import (
    DataSource,
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    SubstitutionFormatString,
)
from envoy_data_plane.envoy.extensions.access_loggers.filters.cel.v3 import ExpressionFilter
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager.v3 import (
    LocalReplyConfig,
    ResponseMapper,
)
from envoy_data_plane.google.protobuf import Struct

from controllers.xds.typed import packed
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from controllers import ir

COMPLETE: Final = 'response.code_details == "direct_response" || response.code_details.matches("^[a-z-]*$")'


@dataclass(frozen=True, slots=True)
class Reply:
    """What clients read when `when` (CEL) holds of a reply that Envoy makes."""

    when: str
    reason: str
    kind: str  # OpenAI's error type
    code: str | None
    message: str  # Envoy's format: %RESPONSE_FLAGS% and the like are filled in
    retry_after_s: int | None = None
    status: int | None = None  # instead of Envoy's
    challenge: str = ""  # www-authenticate


def _rule(name: str) -> str:
    return f'response.code_details.startsWith("rbac_access_denied_matched_policy[{name}")'


_REALM: Final = 'Bearer realm="matrixinfer"'
# What the filters of `access` refuse.
REFUSALS: Final = (
    Reply(
        'response.code_details.startsWith("jwt_authn_access_denied{Jwks_remote_fetch")',
        "keys-unavailable",
        "service_unavailable",
        "keys_unavailable",
        "The keys by which the token is checked cannot be fetched from its issuer. Try again in a moment.",
        retry_after_s=1,
        status=503,
    ),
    Reply(
        'response.code_details.startsWith("jwt_authn_access_denied")',
        "invalid-credentials",
        "invalid_request_error",
        "invalid_api_key",
        "The token is not accepted: %LOCAL_REPLY_BODY%.",
        status=401,
        challenge=_REALM + ', error="invalid_token"',
    ),
    Reply(
        'response.code_details.contains("api_key")',
        "invalid-credentials",
        "invalid_request_error",
        "invalid_api_key",
        "The API key is not known here.",
        status=401,
        challenge=_REALM + ', error="invalid_token"',
    ),
    Reply(
        _rule("anonymous"),
        "no-credentials",
        "invalid_request_error",
        "missing_credentials",
        "Credentials are needed: send a token or an API key as `Authorization: Bearer ...`, a key also as `x-api-key`.",
        status=401,
        challenge=_REALM,
    ),
    Reply(
        _rule("forbidden"),
        "forbidden",
        "permission_error",
        "model_not_allowed",
        f"%DYNAMIC_METADATA({dataplane.ACCESS_METADATA}:{dataplane.TENANT})% may not use the model"
        f" %REQ({dataplane.MODEL})%: no AccessPolicy grants it to these credentials. GET /v1/models lists those that do.",
        status=403,
    ),
    Reply(
        _rule("nameless"),
        "bad-request",
        "invalid_request_error",
        None,
        "The body must be JSON that names a `model`: it decides who may ask.",
        status=400,
    ),
    Reply(
        _rule("starting"),
        "starting",
        "service_unavailable",
        "starting",
        "The gateway does not know yet who may ask. Try again in a moment.",
        retry_after_s=1,
        status=503,
    ),
)


def local_replies(limits: ir.Limits) -> LocalReplyConfig:
    """Give every reply of Envoy's a body that clients of the OpenAI API can read."""
    return LocalReplyConfig(
        mappers=[
            ResponseMapper(filter=_holds(COMPLETE)),
            *(_mapper(reply) for reply in (*REFUSALS, *_replies(limits))),
        ],
        body_format=SubstitutionFormatString(
            text_format_source=DataSource(inline_string="%LOCAL_REPLY_BODY%"), content_type="application/json"
        ),
    )


def _replies(limits: ir.Limits) -> tuple[Reply, ...]:
    invalid, unavailable = "invalid_request_error", "service_unavailable"
    return (
        Reply(
            _is("request_payload_too_large"),
            "too-large",
            invalid,
            "request_too_large",
            f"The request body is over the limit of {limits.body_bytes} bytes.",
        ),
        Reply(
            _is("response_payload_too_large"),
            "answer-too-large",
            "upstream_error",
            "answer_too_large",
            f"The provider's answer is over the limit of {limits.body_bytes} bytes for what is translated as a whole.",
            status=502,
        ),
        Reply(
            _begins("ext_proc"),
            "picker-unavailable",
            unavailable,
            "no_picker",
            "The endpoint picker does not answer. Try again in a moment.",
            retry_after_s=1,
            status=503,
        ),
        Reply(
            _begins("no_healthy_upstream", "cluster_not_found", "no_cluster"),
            "no-endpoints",
            unavailable,
            "no_endpoints",
            "No endpoint of this model is ready. Try again in a moment.",
            retry_after_s=1,
        ),
        Reply(
            _begins("upstream_reset_before_response_started{overflow", "overload"),
            "overloaded",
            unavailable,
            "overloaded",
            "The gateway is at its limit of open requests. Try again in a moment.",
            retry_after_s=1,
        ),
        Reply(
            _begins("upstream_per_try_idle_timeout"),
            "engine-timeout",
            "timeout_error",
            "engine_timeout",
            "The engine was silent for longer than the route's idleTimeout allows"
            " (attempts: %UPSTREAM_REQUEST_ATTEMPT_COUNT%).",
        ),
        Reply(
            _begins("upstream_response_timeout", "upstream_per_try_timeout"),
            "engine-timeout",
            "timeout_error",
            "engine_timeout",
            "The engine did not begin to answer in the time that its ModelServer or route allows"
            " (attempts: %UPSTREAM_REQUEST_ATTEMPT_COUNT%).",
        ),
        Reply(
            _begins("upstream_reset", "upstream_transport_failure", "upstream_max_stream"),
            "engine-failed",
            unavailable,
            "engine_failed",
            "The engine failed before it answered (%RESPONSE_FLAGS%, attempts: %UPSTREAM_REQUEST_ATTEMPT_COUNT%)."
            " Try again in a moment.",
            retry_after_s=1,
        ),
        Reply(
            _begins("stream_idle_timeout", "request_header_timeout", "request_overall_timeout", "duration_timeout"),
            "timeout",
            "timeout_error",
            "timeout",
            "The request took too long (%RESPONSE_CODE_DETAILS%).",
        ),
        Reply(
            _begins("route_not_found"),
            "not-found",
            invalid,
            "not_found",
            "The gateway serves nothing at this path.",
        ),
        Reply(
            "response.code < 500",
            "bad-request",
            invalid,
            None,
            "The gateway does not accept the request: %LOCAL_REPLY_BODY% (%RESPONSE_CODE_DETAILS%).",
        ),
        Reply(
            "true",
            "internal",
            "internal_error",
            None,
            "The gateway failed: %LOCAL_REPLY_BODY% (%RESPONSE_CODE_DETAILS%).",
        ),
    )


def _mapper(reply: Reply) -> ResponseMapper:
    error = {"message": reply.message, "type": reply.kind, "param": None, "code": reply.code}
    headers = {dataplane.REASON: reply.reason}
    if reply.retry_after_s is not None:
        headers["retry-after"] = str(reply.retry_after_s)
    if reply.challenge:
        headers["www-authenticate"] = reply.challenge
    return ResponseMapper(
        filter=_holds(reply.when),
        status_code=reply.status,
        body_format_override=SubstitutionFormatString(json_format=Struct.from_dict({"error": error})),
        headers_to_add=[
            HeaderValueOption(
                header=HeaderValue(key=key, value=value),
                append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for key, value in headers.items()
        ],
    )


def _is(details: str) -> str:
    return f'response.code_details == "{details}"'


def _begins(*details: str) -> str:
    return " || ".join(f'response.code_details.startsWith("{one}")' for one in details)


def _holds(expression: str) -> AccessLogFilter:
    return AccessLogFilter(
        extension_filter=ExtensionFilter(
            name="envoy.access_loggers.extension_filters.cel",
            typed_config=packed(ExpressionFilter(expression=expression)),
        )
    )
