"""The codec against the generated classes: what a gateway sends becomes values, what we send is what Envoy reads."""

import json
from contextlib import suppress

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from extproc import errors
from extproc.protocol import codec, lean, wire
from extproc.protocol.messages import (
    BodyMode,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from extproc.types import Reply, Usage
from tests.protocol.builders import a_decision, metadata, read, set_headers

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)


def a_head(*pairs, end=False):
    request = pb.ProcessingRequest()
    request.request_headers.SetInParent()
    for name, value in pairs:
        request.request_headers.headers.headers.add(key=name, raw_value=value)
    request.request_headers.end_of_stream = end
    return request


def with_subset(request, value):
    request.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
        {"x-gateway-destination-endpoint-subset": value}
    )
    return read(request).subset


def test_headers_are_lower_case_and_repeats_are_joined():
    event = read(a_head((":path", b"/v1/models"), ("Accept", b"a"), ("accept", b"b"), end=True))

    assert event == RequestHeaders({":path": "/v1/models", "accept": "a,b"}, end=True)


def test_raw_value_is_preferred_and_value_is_read_where_it_is_missing():
    request = pb.ProcessingRequest()
    request.request_headers.headers.headers.add(key="a", value="old", raw_value=b"new")
    request.request_headers.headers.headers.add(key="b", value="only")

    assert read(request).headers == {"a": "new", "b": "only"}


def test_a_header_that_is_not_utf8_does_not_hide_the_others():
    assert read(a_head(("a", b"\xff"), ("b", b"fine"))).headers == {"a": "\ufffd", "b": "fine"}


def joined(pairs):
    headers = {}
    for key, value, raw in pairs:
        name, text = key.lower(), raw.decode("utf-8", "replace") or value
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "b", "c"]) | TEXT, TEXT, st.binary(max_size=40)), max_size=8))
def test_headers_are_read_as_the_generated_classes_wrote_them(pairs):
    request = a_head()
    for name, value, raw in pairs:
        request.request_headers.headers.headers.add(key=name, value=value, raw_value=raw)

    assert read(request).headers == joined(pairs)
    assert read(request).headers == joined(pairs)  # and once more, where they are known


def test_all_that_is_read_has_its_place_in_the_lean_message():
    generated, ours = pb.ProcessingRequest.DESCRIPTOR, lean.ProcessingRequest.DESCRIPTOR

    assert [(field.number, field.name) for field in ours.fields] == [
        (field.number, field.name)
        for field in generated.fields
        if field.name not in {"attributes", "observability_mode"}
    ]
    assert [field.name for field in ours.oneofs_by_name["request"].fields] == [
        field.name for field in generated.oneofs_by_name["request"].fields
    ]


@pytest.mark.parametrize("kept", [("cookie", b"c" * 5000), ("authorization", b"Bearer sk"), ("X-API-Key", b"sk")])
def test_long_headers_and_credentials_are_not_kept(kept):
    read(a_head((":path", b"/")))
    before = dict(codec._known)

    headers = read(a_head((":path", b"/"), kept)).headers

    assert headers == {":path": "/", kept[0].lower(): kept[1].decode()}
    assert codec._known == before


def test_headers_that_are_kept_are_bounded():
    for number in range(3000):
        assert read(a_head(("x-request-id", b"%d" % number))).headers == {"x-request-id": str(number)}
    assert len(codec._known) <= 1024


@pytest.mark.parametrize("others", [[], [(b"a", b"\xff")], [(b"a", b"1"), (b"a", b"2")]])
def test_a_header_that_cannot_be_read_is_malformed(others):
    entries = [wire.field(b"\x0a", name) + wire.field(b"\x1a", value) for name, value in others]
    entries.append(b"\x0a\x7f")  # a name of 127 bytes, of which none is there
    head = wire.field(b"\x0a", b"".join(wire.field(b"\x0a", entry) for entry in entries))

    with pytest.raises(codec.Malformed):
        codec.decode(wire.field(b"\x12", head))


def test_the_first_message_tells_the_body_modes():
    request = a_head((":path", b"/"))
    request.protocol_config.request_body_mode = 1
    request.protocol_config.response_body_mode = 4
    request.protocol_config.send_body_without_waiting_for_header_response = True

    assert read(request).config == (BodyMode.STREAMED, BodyMode.FULL_DUPLEX_STREAMED, True)


def test_a_body_and_a_name_come_along_with_the_headers():
    request = a_head((":path", b"/"))
    request.metadata_context.typed_filter_metadata["matrixinfer.body"].Pack(BytesValue(value=b"\xff{}"))
    request.metadata_context.filter_metadata["matrixinfer"].update({"offered": "module-1"})

    event = read(request)

    assert (event.body, event.ticket) == (b"\xff{}", "module-1")


def test_a_body_may_come_along_without_a_name_and_metadata_of_others_is_none():
    request = a_head((":path", b"/"))
    request.metadata_context.typed_filter_metadata["somebody.else"].Pack(BytesValue(value=b"{}"))

    assert (read(request).body, read(request).ticket) == (None, "")
    request.metadata_context.typed_filter_metadata["matrixinfer.body"].Pack(BytesValue(value=b"{}"))
    assert (read(request).body, read(request).ticket) == (b"{}", "")


def test_metadata_that_is_no_body_is_malformed():
    request = a_head((":path", b"/"))
    request.metadata_context.typed_filter_metadata["matrixinfer.body"].value = b"\x0a\xff"

    with pytest.raises(codec.Malformed):
        read(request)


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x", end_of_stream=True)), RequestBody(b"x", end=True)),
        (pb.ProcessingRequest(request_trailers=pb.HttpTrailers()), RequestTrailers()),
        (pb.ProcessingRequest(response_body=pb.HttpBody(body=b"y")), ResponseBody(b"y", end=False)),
        (pb.ProcessingRequest(response_trailers=pb.HttpTrailers()), ResponseTrailers()),
        (pb.ProcessingRequest(response_headers=pb.HttpHeaders()), ResponseHeaders(0, end=False)),
    ],
)
def test_every_kind_of_message_has_its_event(message, event):
    assert read(message) == event


def test_served_endpoint_and_status_come_with_the_response_headers():
    request = pb.ProcessingRequest()
    request.response_headers.headers.headers.add(key=":status", raw_value=b"503")
    request.metadata_context.filter_metadata["envoy.lb"].update(
        {"x-gateway-destination-endpoint-served": "10.0.0.7:8000"}
    )

    assert read(request) == ResponseHeaders(503, end=False, served="10.0.0.7:8000")


@pytest.mark.parametrize(
    ("value", "subset"),
    [
        (["10.0.0.1:8000", "10.0.0.2:8001"], ("10.0.0.1:8000", "10.0.0.2:8001")),
        ("10.0.0.1:8000, 10.0.0.2:8001", ("10.0.0.1:8000", "10.0.0.2:8001")),
        (["[0:0:0:0:0:0:0:1]:8000"], ("[::1]:8000",)),
        (["[nonsense]:1"], ("[nonsense]:1",)),
        ([], ()),
        ("", ()),
        (7, ()),
        (None, None),
    ],
)
def test_subset_hint_is_a_list_or_a_comma_string(value, subset):
    assert with_subset(a_head((":path", b"/")), value) == subset


def test_without_a_subset_hint_there_is_no_restriction():
    request = a_head((":path", b"/"))
    request.metadata_context.filter_metadata["other"].update({"a": 1})

    assert read(request).subset is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(data):
    with suppress(codec.Malformed):
        assert codec.decode(data) is not None


# ---- out


def test_a_decided_body_names_endpoints_twice_and_clears_the_route():
    answer = pb.ProcessingResponse.FromString(codec.decided(a_decision(), at_headers=False))

    common = answer.request_body.response
    assert common.clear_route_cache
    assert not common.HasField("body_mutation")
    assert set_headers(common.header_mutation) == {
        "x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000",
        "x-matrixinfer-target": "default/demo",
    }
    assert all(option.append_action == 2 for option in common.header_mutation.set_headers)
    assert metadata(answer) == {
        "envoy.lb": {"x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000"},
        "matrixinfer": {"ticket": "t-1"},
    }


@given(
    ticket=TEXT,
    endpoints=st.lists(TEXT, max_size=40),
    target=TEXT,
    explanation=TEXT,
    body=st.none() | st.binary(max_size=400) | st.integers(100, 70_000).map(bytes),
    at_headers=st.booleans(),
    usage=st.sampled_from(Usage),
)
def test_the_hand_written_answer_reads_back_as_what_was_decided(**drawn):
    body, at_headers = drawn.pop("body"), drawn.pop("at_headers")
    decision = a_decision(**{**drawn, "endpoints": tuple(drawn["endpoints"])})
    length = None if body is None else len(body)

    data = codec.decided(decision, at_headers=at_headers, length=length, body=body)

    answer = pb.ProcessingResponse.FromString(data)
    size = answer.ByteSize()
    answer.DiscardUnknownFields()
    assert answer.ByteSize() == size
    common = (answer.request_headers if at_headers else answer.request_body).response
    found = set_headers(common.header_mutation)
    assert found["x-gateway-destination-endpoint"] == ",".join(decision.endpoints)
    assert found["x-matrixinfer-target"] == decision.target
    assert found.get("content-length") == (None if body is None else str(length))
    assert common.body_mutation.body == (body or b"")
    ours = {"ticket": decision.ticket, "usage_chunks": decision.usage.value, "decision": decision.explanation}
    assert metadata(answer)["matrixinfer"] == {k: v for k, v in ours.items() if v or k == "ticket"}


@given(st.integers(0, 300_000), st.booleans(), st.booleans())
def test_echo_carries_the_body_in_small_pieces_and_ends_once(size, end, request_side):
    body = bytes(i % 251 for i in range(size))

    chunks = []
    for data in codec.echoed(body, end=end, request=request_side):
        answer = pb.ProcessingResponse.FromString(data)
        side = answer.request_body if request_side else answer.response_body
        chunks.append(side.response.body_mutation.streamed_response)

    assert b"".join(chunk.body for chunk in chunks) == body
    assert all(len(chunk.body) <= 62_000 for chunk in chunks)
    assert [chunk.end_of_stream for chunk in chunks] == [False] * (len(chunks) - 1) + [end]


def test_immediate_reply_has_status_headers_body_and_details():
    reply = Reply(429, b"{}", (("retry-after", "3"),), "saturated")

    answer = pb.ProcessingResponse.FromString(codec.immediate(reply)).immediate_response

    assert (answer.status.code, answer.body, answer.details) == (429, b"{}", "saturated")
    assert set_headers(answer.headers) == {"retry-after": "3"}


def test_a_refusal_is_an_openai_error_with_reason_and_retry_after():
    reply = codec.refusal(errors.UnknownModel("no model 'x'\ud800", param="model", retry_after_s=2))

    assert reply.status == 404
    assert json.loads(reply.body) == {
        "error": {
            "message": "no model 'x'\ud800",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert dict(reply.headers) == {
        "content-type": "application/json",
        "x-matrixinfer-reason": "unknown-model",
        "retry-after": "2",
    }


def test_waiting_only_overrides_the_timeout():
    answer = pb.ProcessingResponse.FromString(codec.waiting(30.5))

    assert answer.WhichOneof("response") is None
    assert answer.override_message_timeout.ToMilliseconds() == 30_500


def test_field_11_is_never_sent():
    constants = [value for name, value in vars(codec).items() if name.startswith(("CONTINUE", "CLEAR"))]

    assert len(constants) == 7
    for data in [
        *constants,
        codec.waiting(1),
        codec.immediate(Reply(200, b"")),
        codec.decided(a_decision(), at_headers=True),
    ]:
        assert not pb.ProcessingResponse.FromString(data).request_drain


@given(st.integers(0, 1 << 40))
def test_varint_is_protobufs(number):
    value, shift = 0, 0
    for byte in wire.varint(number):
        value |= (byte & 0x7F) << shift
        shift += 7

    assert value == number
