"""ext_proc messages to and from bytes: `decode` for what the gateway says, one function for each answer of ours.

Decoding is upb's, by the generated classes of xds-protos (headers: by `lean`), into the values of `messages`. The answers of the fast path
are constants or written by `wire`; the others are built with the generated classes. `ProcessingResponse` field 11 is
never set: generated classes and Envoy disagree about it.
"""

from __future__ import annotations

import json
from functools import lru_cache
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Final

from envoy.config.core.v3.base_pb2 import HeaderValue
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import BytesValue

from extproc.protocol import lean, messages
from extproc.protocol.wire import field, varint
from extproc.types import Reply
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Iterator

    from extproc.errors import Rejection
    from extproc.types import Decision

MAX_CHUNK: Final = 62_000  # bytes of body in one duplex answer: gateways take 64 KiB messages at least
# Headers that are kept as they were read: most of a request's are among them, which takes a third less than reading all.
_KEPT_HEADERS: Final = 1024
_MOST_KEPT: Final = 4096  # bytes of a request's headers; of longer ones none is kept, or they could take 60 MB

_parse = lean.ProcessingRequest.FromString


class Malformed(ValueError):
    """Bytes that are no message of the protocol."""


# ---- in


def decode(data: bytes) -> messages.Message:
    """Return the message in `data`. Raises Malformed."""
    try:
        request = _parse(data)
    except DecodeError as error:
        raise Malformed("not a ProcessingRequest") from error
    kind = request.WhichOneof("request")
    if kind == "request_body":
        body = request.request_body
        return messages.RequestBody(body.body, body.end_of_stream, _subset(_namespaces(request)))
    if kind == "request_headers":
        return _request_headers(request)
    if kind == "response_body":
        return messages.ResponseBody(request.response_body.body, request.response_body.end_of_stream)
    if kind == "response_headers":
        return _response_headers(request)
    if kind == "request_trailers":
        return messages.RequestTrailers(_subset(_namespaces(request)))
    if kind == "response_trailers":
        return messages.ResponseTrailers()
    raise Malformed("a ProcessingRequest without a request")


def _header(entry: bytes) -> Any:
    try:
        return HeaderValue.FromString(entry)
    except DecodeError as error:
        raise Malformed("a header that cannot be read") from error


def _read(entry: bytes) -> tuple[str, str]:
    header = _header(entry)
    return header.key.lower(), header.raw_value.decode() or header.value


class _Known(dict[bytes, tuple[str, str]]):
    """What headers say that came before; of credentials nothing is kept."""

    def __missing__(self, entry: bytes) -> tuple[str, str]:
        found = _read(entry)
        if found[0] not in dataplane.CREDENTIALS:
            if len(self) >= _KEPT_HEADERS:
                self.clear()
            self[entry] = found
        return found


_known = _Known()


def _headers(entries: Any) -> dict[str, str]:
    raw: list[bytes] = list(entries)
    try:
        headers = dict(map(_known.__getitem__ if sum(map(len, raw)) <= _MOST_KEPT else _read, raw))
    except UnicodeDecodeError:
        headers = {}
    if len(headers) == len(raw):
        return headers
    headers = {}  # a header twice, or one that is not UTF-8
    for entry in map(_header, raw):
        name, value = entry.key.lower(), entry.raw_value.decode("utf-8", "replace") or entry.value
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _config(request: Any) -> messages.ProtocolConfig | None:
    if not request.HasField("protocol_config"):
        return None
    config = request.protocol_config
    return messages.ProtocolConfig(
        config.request_body_mode, config.response_body_mode, config.send_body_without_waiting_for_header_response
    )


def _namespaces(request: Any) -> Any:
    return request.metadata_context.filter_metadata if request.HasField("metadata_context") else ()


def _subset(namespaces: Any) -> tuple[str, ...] | None:
    if dataplane.SUBSET_METADATA not in namespaces:
        return None
    fields = namespaces[dataplane.SUBSET_METADATA].fields
    if dataplane.SUBSET not in fields:
        return None
    value = fields[dataplane.SUBSET]
    kind = value.WhichOneof("kind")
    if kind == "list_value":
        hints = [item.string_value for item in value.list_value.values]
    elif kind == "string_value":
        hints = value.string_value.split(",")
    elif kind == "null_value":
        return None
    else:
        return ()  # a restriction that nobody can meet, rather than none
    return tuple(endpoint_name(hint) for hint in hints if hint.strip())


def _caller(namespaces: Any) -> messages.Caller | None:
    if dataplane.ACCESS_METADATA not in namespaces:
        return None
    fields = namespaces[dataplane.ACCESS_METADATA].fields
    tenant = fields[dataplane.TENANT].string_value if dataplane.TENANT in fields else ""
    key = fields[dataplane.CLIENT].string_value.rpartition("|")[2] if dataplane.CLIENT in fields else ""
    if dataplane.ALLOWED not in fields:
        return messages.Caller(tenant, key)
    names = fields[dataplane.ALLOWED].list_value.values
    return messages.Caller(tenant, key, frozenset(name.string_value for name in names))


def endpoint_name(address: str) -> str:
    """Return "ip:port" as the endpoint table writes it: no blanks, IPv6 in brackets and in its shortest form."""
    address = address.strip()
    if not address.startswith("["):
        return address
    host, bracket, rest = address[1:].partition("]")
    try:
        return f"[{IPv6Address(host)}{bracket}{rest}"
    except ValueError:
        return address


def _request_headers(request: Any) -> messages.RequestHeaders:
    head = request.request_headers
    headers, end, config = _headers(head.headers.headers), head.end_of_stream, _config(request)
    if not request.HasField("metadata_context"):
        return messages.RequestHeaders(headers, end, config)
    metadata = request.metadata_context
    namespaces, typed = metadata.filter_metadata, metadata.typed_filter_metadata
    body, ticket = _along(typed, namespaces) if dataplane.BODY_METADATA in typed else (None, "")
    return messages.RequestHeaders(headers, end, config, _subset(namespaces), _caller(namespaces), body, ticket)


def _along(typed: Any, namespaces: Any) -> tuple[bytes, str]:
    """Return the body that came along with the headers, and the name of the request."""
    try:
        body: bytes = BytesValue.FromString(typed[dataplane.BODY_METADATA].value).value
    except DecodeError as error:
        raise Malformed("metadata that is no body") from error
    if dataplane.METADATA not in namespaces:
        return body, ""
    return body, namespaces[dataplane.METADATA].fields[dataplane.OFFERED].string_value


def _response_headers(request: Any) -> messages.ResponseHeaders:
    head = request.response_headers
    headers = _headers(head.headers.headers)
    status = headers.get(":status", "")
    served = headers.get(dataplane.SERVED, "")
    if request.HasField("metadata_context"):
        namespaces = request.metadata_context.filter_metadata
        if dataplane.ENDPOINT_METADATA in namespaces:
            fields = namespaces[dataplane.ENDPOINT_METADATA].fields
            if dataplane.SERVED in fields:
                served = fields[dataplane.SERVED].string_value
    return messages.ResponseHeaders(
        int(status) if status.isascii() and status.isdigit() else 0,
        head.end_of_stream,
        endpoint_name(served),
        _config(request),
    )


# ---- out

CONTINUE_REQUEST_HEADERS: Final[bytes] = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
CONTINUE_REQUEST_BODY: Final[bytes] = pb.ProcessingResponse(request_body=pb.BodyResponse()).SerializeToString()
CONTINUE_REQUEST_TRAILERS: Final[bytes] = pb.ProcessingResponse(
    request_trailers=pb.TrailersResponse()
).SerializeToString()
CONTINUE_RESPONSE_HEADERS: Final[bytes] = pb.ProcessingResponse(
    response_headers=pb.HeadersResponse()
).SerializeToString()
CONTINUE_RESPONSE_BODY: Final[bytes] = pb.ProcessingResponse(response_body=pb.BodyResponse()).SerializeToString()
CONTINUE_RESPONSE_TRAILERS: Final[bytes] = pb.ProcessingResponse(
    response_trailers=pb.TrailersResponse()
).SerializeToString()
CLEAR_REQUEST_BODY: Final[bytes] = pb.ProcessingResponse(
    request_body=pb.BodyResponse(response=pb.CommonResponse(body_mutation=pb.BodyMutation(clear_body=True)))
).SerializeToString()

# Tags of the fields that the hot answers are made of: number << 3 | 2 (length-delimited).
_REQUEST_HEADERS, _REQUEST_BODY, _RESPONSE_BODY, _METADATA = b"\x0a", b"\x1a", b"\x22", b"\x42"  # ProcessingResponse
_RESPONSE = b"\x0a"  # HeadersResponse, BodyResponse
_HEADER_MUTATION, _BODY_MUTATION = b"\x12", b"\x1a"  # CommonResponse
_CLEAR_ROUTE_CACHE = b"\x28\x01"  # the same, a bool
_COMPLETE = b"\x08\x01"  # the same, its status: CONTINUE_AND_REPLACE, after which Envoy sends nothing more
_WHOLE_BODY, _STREAMED_BODY = b"\x0a", b"\x1a"  # BodyMutation
_CHUNK = b"\x0a"  # StreamedBodyResponse
_CHUNK_END = b"\x10\x01"  # the same, a bool
_OVERWRITE = b"\x18\x02"  # HeaderValueOption.append_action: OVERWRITE_IF_EXISTS_OR_ADD
_ENTRY, _KEY, _VALUE, _STRING, _STRUCT = b"\x0a", b"\x0a", b"\x12", b"\x1a", b"\x2a"  # Struct, its map, Value


def _head(name: str) -> bytes:
    return field(b"\x0a", name.encode())


_ENDPOINT, _TARGET, _LENGTH = _head(dataplane.ENDPOINT), _head(dataplane.TARGET), _head("content-length")
_OUR_LENGTH = _head(dataplane.LENGTH)
_NAMES = _head(dataplane.NAMES_METADATA)
_LB, _OURS = _head(dataplane.ENDPOINT_METADATA), _head(dataplane.METADATA)
_TICKET, _USAGE, _EXPLANATION = _head(dataplane.TICKET), _head(dataplane.USAGE_CHUNKS), _head(dataplane.EXPLANATION)
_OFFERED, _PROVIDER = _head(dataplane.OFFERED), _head(dataplane.PROVIDER)


def _set_header(name: bytes, value: bytes) -> bytes:
    return field(b"\x0a", field(b"\x0a", name + field(b"\x1a", value)) + _OVERWRITE)


def _string_entry(key: bytes, value: bytes) -> bytes:
    return field(_ENTRY, key + field(_VALUE, field(_STRING, value)))


def _struct_entry(key: bytes, entries: bytes) -> bytes:
    return field(_ENTRY, key + field(_VALUE, field(_STRUCT, entries)))


@lru_cache(maxsize=4096)
def _placed(endpoints: tuple[str, ...], target: str) -> tuple[bytes, bytes]:
    """Return what a placement is told by, twice: as headers, and as the load balancer's metadata."""
    listed = ",".join(endpoints).encode()
    headers = _set_header(_ENDPOINT, listed) + _set_header(_TARGET, target.encode())
    return headers, _struct_entry(_LB, _string_entry(_ENDPOINT, listed))


def admitted(ticket: str) -> bytes:
    """Return the answer that lets the request's headers through, and tells the name under which it will be decided."""
    ours = _string_entry(_OFFERED, ticket.encode())
    return CONTINUE_REQUEST_HEADERS + field(_METADATA, _struct_entry(_OURS, ours))


def decided(  # noqa: PLR0913 - what an answer may say, each by its name
    decision: Decision,
    *,
    at_headers: bool,
    length: int | None = None,
    body: bytes | None = None,
    reroute: bool = True,
    complete: bool = False,
) -> bytes:
    """Return the answer that places a request: to its headers, or to its body.

    `complete`: the body came along with the headers, so that there is nothing more to be sent, or to be waited for.
    `length` becomes content-length; a `body` that replaces a buffered one needs it, or Envoy refuses the answer. With
    `reroute` the gateway looks for the route again; asked after it has sent the headers on, Envoy reports a bug.
    """
    mutation, lb = _placed(decision.endpoints, decision.target)
    for name, value in decision.headers:
        mutation += _set_header(_head(name), value.encode())
    if length is not None:
        mutation += _set_header(_OUR_LENGTH if complete else _LENGTH, b"%d" % length)
    ours = _string_entry(_TICKET, decision.ticket.encode())
    if decision.usage.value:
        ours += _string_entry(_USAGE, decision.usage.value.encode())
    if decision.explanation:
        ours += _string_entry(_EXPLANATION, decision.explanation.encode("utf-8", "replace"))
    if decision.provider:
        ours += _string_entry(_PROVIDER, decision.provider.encode())
    for name, value in decision.told:
        ours += _string_entry(_head(name), value.encode())
    others = lb
    if decision.names:
        others += _struct_entry(
            _NAMES, b"".join([_string_entry(_head(key), name.encode()) for key, name in decision.names])
        )
    metadata = field(_METADATA, others + _struct_entry(_OURS, ours))
    common = field(_HEADER_MUTATION, mutation) + (_CLEAR_ROUTE_CACHE if reroute else b"")
    if complete:
        common += _COMPLETE
    outer = _REQUEST_HEADERS if at_headers else _REQUEST_BODY
    if body is None:
        return field(outer, field(_RESPONSE, common)) + metadata
    # The body is copied once: what stands before it is written from the inside out, with sizes only.
    before = _WHOLE_BODY + varint(len(body))
    before = common + _BODY_MUTATION + varint(len(before) + len(body)) + before
    before = _RESPONSE + varint(len(before) + len(body)) + before
    return b"".join((outer, varint(len(before) + len(body)), before, body, metadata))


def replaced_chunk(body: bytes) -> bytes:
    """Return the answer to one chunk of a streamed request body that puts `body` in its place."""
    return field(_REQUEST_BODY, field(_RESPONSE, field(_BODY_MUTATION, field(_WHOLE_BODY, body))))


def echoed(body: bytes, *, end: bool, request: bool) -> Iterator[bytes]:
    """Yield duplex answers that carry `body` in pieces of at most MAX_CHUNK; `end` marks the last of them."""
    tag = _REQUEST_BODY if request else _RESPONSE_BODY
    size = len(body)
    for start in range(0, size or 1, MAX_CHUNK):
        chunk = field(_CHUNK, body[start : start + MAX_CHUNK]) if size else b""
        if end and start + MAX_CHUNK >= size:
            chunk += _CHUNK_END
        yield field(tag, field(_RESPONSE, field(_BODY_MUTATION, field(_STREAMED_BODY, chunk))))


def waiting(seconds: float) -> bytes:
    """Return the message that asks the gateway for patience: the answer may take `seconds` from now on."""
    response = pb.ProcessingResponse()
    response.override_message_timeout.FromNanoseconds(int(seconds * 1e9))
    return bytes(response.SerializeToString())


def immediate(reply: Reply) -> bytes:
    """Return the answer that the client gets from us instead of an engine's."""
    response = pb.ProcessingResponse()
    answer = response.immediate_response
    answer.status.code = reply.status
    answer.body = reply.body
    answer.details = reply.details
    for name, value in reply.headers:
        option = answer.headers.set_headers.add()
        option.header.key = name
        option.header.raw_value = value.encode()
        option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
    return bytes(response.SerializeToString())


def refusal(rejection: Rejection) -> Reply:
    """Return the OpenAI error object, with the headers that say why and when to come back."""
    error = {
        "message": rejection.message,
        "type": rejection.type,
        "param": rejection.param,
        "code": rejection.code,
    }
    headers = [("content-type", "application/json"), (dataplane.REASON, rejection.reason)]
    if rejection.retry_after_s is not None:
        headers.append(("retry-after", str(rejection.retry_after_s)))
    headers += rejection.headers
    return Reply(
        status=rejection.status,
        body=json.dumps({"error": error}).encode(),
        headers=tuple(headers),
        details=rejection.reason,
    )
