"""The request's body goes along with the headers, byte by byte or not at all, and is forgotten when the answer begins."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.wrappers_pb2 import BytesValue
from hypothesis import given
from hypothesis import strategies as st

from tests.modules import chunks
from tests.modules.streams import REQUEST, Script, examples

LARGEST = 16384
BODY = "matrixinfer.body"
# The filter alone, before the picker's filter that waits as well, and behind another one that has waited.
chains = st.sampled_from((("response",), ("response", "keeps", "model"), ("keeps", "response")))
# Around every length at which a length takes one more byte, and around the largest.
lengths = st.one_of(
    st.integers(0, 40),
    st.integers(60, 140),
    st.integers(LARGEST - 60, LARGEST + 3),
    st.integers(0, 2 * LARGEST),
)


@st.composite
def bodies(draw):
    piece = draw(st.binary(min_size=1, max_size=24))
    length = draw(lengths)
    return (piece * (length // len(piece) + 1))[:length]


def bytes_of(any_bytes: bytes) -> bytes:
    value = Any.FromString(any_bytes)
    assert value.type_url == "type.googleapis.com/google.protobuf.BytesValue"
    return BytesValue.FromString(value.value).value


@examples(120)
@given(
    body=bodies(),
    cuts=chunks.cuts,
    sizes=chunks.sizes,
    chain=chains,
    trailers=st.booleans(),
    told=st.booleans(),
    answered=st.booleans(),
)
def test_the_body_is_offered_as_it_is_up_to_the_largest(module, *, body, cuts, sizes, chain, trailers, told, answered):
    cuts = max(cuts, len(body) // 50 + 1) if isinstance(cuts, int) else cuts
    headers = {"content_length": str(len(body))} if told else {}
    script = Script(*chain).request(**headers).body(chunks.pieces(body, cuts, sizes) or [[]], trailers=trailers)
    if answered:
        script.answer([[b"{}"]], kind="application/json")

    outcome = module.run(script.complete())

    if len(body) <= LARGEST:
        assert [(space, bytes_of(value)) for space, value in outcome.typed] == [(BODY, body), (BODY, b"")]
        assert outcome.strings["matrixinfer"]["offered"]
    else:
        assert outcome.typed == []
        assert outcome.strings == {}
    assert outcome.body == body
    assert outcome.body_ended == ("trailers" if trailers else "end")


@pytest.mark.parametrize("length", [*range(3), *range(115, 130), *range(LARGEST - 10, LARGEST + 3)])
def test_every_length_is_written_as_protobuf_does(module, length):
    body = b"x" * length

    outcome = module.run(Script("response").request().body([[body]]).complete())

    assert [bytes_of(value) for _, value in outcome.typed] == ([body, b""] if length <= LARGEST else [])


@examples(40)
@given(body=bodies(), cuts=st.lists(st.integers(0, 1 << 16), max_size=4), chain=chains, failing=st.integers(0, 12))
def test_without_memory_the_body_is_passed_on(module, *, body, cuts, chain, failing):
    outcome = module.run(Script(*chain).failing(failing).request().body(chunks.pieces(body, cuts) or [[]]).complete())

    assert outcome.body == body


@pytest.mark.parametrize("length", ["16385", "100000", "99999999999999999999999999", f"{(1 << 64) + 1}"])
def test_a_body_that_is_said_to_be_larger_is_not_waited_for(module, length):
    outcome = module.run(Script("response").request(content_length=length).do("b", "", b"one"))

    assert outcome.body == b"one"
    assert outcome.typed == []


def test_a_request_without_a_body_offers_none(module):
    outcome = module.run(Script("response", "model").request(end=True).answer([[b"{}"]]).complete())

    assert outcome.passed
    assert outcome.typed == []


def test_every_request_has_a_name_of_its_own(module):
    names = [
        module.run(Script("response").request().body([[b"{}"]])).strings["matrixinfer"]["offered"] for _ in range(20)
    ]

    assert len(set(names)) == 20


@examples(40)
@given(length=st.none() | st.text("0123456789, -x", min_size=1, max_size=12), end=st.booleans())
def test_the_length_of_the_picker_s_body_takes_the_place_of_the_client_s(module, *, length, end):
    headers = {} if length is None else {"x_matrixinfer_length": length}

    outcome = module.run(
        Script("model").request(end=end, content_length="3", x_matrixinfer_target="default/a", **headers)
    )

    assert outcome.headers[REQUEST].get("content-length") == (length or "3").encode()
    assert "x-matrixinfer-length" not in outcome.headers[REQUEST]
