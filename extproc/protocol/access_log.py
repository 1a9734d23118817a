"""Envoy's gRPC access log to outcomes: one `Outcome` for each HTTP entry of a message.

Whatever an entry lacks is None, 0 or "" in the outcome; bytes that are no message, and entries that cannot be read,
give none. Decoding is upb's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.message import DecodeError

from extproc.types import Outcome
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fields of `ResponseFlags` and Envoy's short words for them, as its text logs write them.
FLAGS: Final[Mapping[str, str]] = {
    "failed_local_healthcheck": "LH",
    "no_healthy_upstream": "UH",
    "upstream_request_timeout": "UT",
    "local_reset": "LR",
    "upstream_remote_reset": "UR",
    "upstream_connection_failure": "UF",
    "upstream_connection_termination": "UC",
    "upstream_overflow": "UO",
    "no_route_found": "NR",
    "delay_injected": "DI",
    "fault_injected": "FI",
    "rate_limited": "RL",
    "unauthorized_details": "UAEX",
    "rate_limit_service_error": "RLSE",
    "downstream_connection_termination": "DC",
    "upstream_retry_limit_exceeded": "URX",
    "stream_idle_timeout": "SI",
    "invalid_envoy_request_headers": "IH",
    "downstream_protocol_error": "DPE",
    "upstream_max_stream_duration_reached": "UMSDR",
    "response_from_cache_filter": "RFCF",
    "no_filter_config_found": "NFCF",
    "duration_timeout": "DT",
    "upstream_protocol_error": "UPE",
    "no_cluster_found": "NC",
    "overload_manager": "OM",
    "dns_resolution_failure": "DF",
    "downstream_remote_reset": "DR",
}

_parse = als_pb2.StreamAccessLogsMessage.FromString


def decode(data: bytes) -> list[Outcome]:
    """Return the outcomes in one StreamAccessLogsMessage, in its order."""
    try:
        message = _parse(data)
    except DecodeError:
        return []
    # An entry that Envoy writes while a request goes on is not its end.
    return [_outcome(entry) for entry in message.http_logs.log_entry if not _intermediate(entry)]


def _intermediate(entry: Any) -> bool:
    return bool(entry.common_properties.intermediate_log_entry)


def _outcome(entry: Any) -> Outcome:
    common, request, response = entry.common_properties, entry.request, entry.response
    namespaces = common.metadata.filter_metadata
    ours = _fields(namespaces, dataplane.METADATA)
    usage = _fields(namespaces, dataplane.USAGE_METADATA)
    started_at = _seconds(common.start_time)
    first_ms = _number(_fields(namespaces, dataplane.TIMING_METADATA), "first_token_ms")
    ticket = _text(ours, dataplane.TICKET)
    return Outcome(
        ticket=ticket or _text(ours, dataplane.OFFERED),
        request_id=request.request_id,
        model=_text(usage, "model"),
        endpoint=_text(_fields(namespaces, dataplane.SERVED_METADATA), "host") or _upstream(common),
        status=response.response_code.value,
        flags=_flags(common.response_flags) if common.HasField("response_flags") else (),
        details=response.response_code_details,
        attempts=common.upstream_request_attempt_count,
        started_at=started_at,
        duration_s=_duration(common),
        first_token_s=None if first_ms is None or not started_at else max(0.0, first_ms / 1000 - started_at),
        prompt_tokens=_count(usage, "prompt_tokens"),
        completion_tokens=_count(usage, "completion_tokens"),
        cached_tokens=_count(usage, "cached_tokens"),
        request_bytes=request.request_body_bytes,
        response_bytes=response.response_body_bytes,
        placed=bool(ticket),
        sent_s=_sent(common),
    )


def _seconds(stamp: Any) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


def _duration(common: Any) -> float:
    """Seconds from the first byte of the request to the last of the answer; Envoy older than 1.25 has no `duration`."""
    if common.HasField("duration"):
        return _seconds(common.duration)
    return _seconds(common.time_to_last_downstream_tx_byte)


def _sent(common: Any) -> float | None:
    """Seconds until the last byte of the request had gone to the endpoint that Envoy tried last."""
    return _seconds(common.time_to_last_upstream_tx_byte) if common.HasField("time_to_last_upstream_tx_byte") else None


def _upstream(common: Any) -> str:
    if not common.HasField("upstream_remote_address"):
        return ""
    socket = common.upstream_remote_address.socket_address
    if not socket.address:
        return ""
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"


def _flags(flags: Any) -> tuple[str, ...]:
    return tuple(FLAGS[field.name] for field, _ in flags.ListFields() if field.name in FLAGS)


def _fields(namespaces: Any, name: str) -> Any:
    """Return the fields of one metadata namespace, None if it is not there."""
    return namespaces[name].fields if name in namespaces else None


def _text(fields: Any, key: str) -> str:
    return str(fields[key].string_value) if fields is not None and key in fields else ""


def _number(fields: Any, key: str) -> float | None:
    """Return a number, also one that was written as text; None for anything else, or out of any use."""
    if fields is None or key not in fields:
        return None
    value = fields[key]
    if value.HasField("number_value"):
        number = value.number_value
    else:
        try:
            number = float(value.string_value)
        except ValueError:
            return None
    return number if 0 <= number < 2**53 else None  # false for NaN, too


def _count(fields: Any, key: str) -> int | None:
    number = _number(fields, key)
    return None if number is None else int(number)
