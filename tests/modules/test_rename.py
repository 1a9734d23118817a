"""Another name is put where the picker says that the name stands; a span that is none leaves the body as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules import chunks
from tests.modules.streams import REQUEST, Script, examples

HOST = "10.0.0.1:8000"
LONGEST = 2048
chains = st.sampled_from((("rename",), ("keeps", "rename")))
bodies = st.binary(max_size=60) | st.integers(0, 9000).map(lambda size: b"0123456789" * (size // 10))
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(
    lambda name: f'"{name}"'.encode()
) | st.sampled_from((b"", b'"', b"demo", b'""', b'"' * LONGEST, b'"' * (LONGEST + 1), b'"demo'))


@st.composite
def spans(draw):
    """A body, and a span that lies in it, at its end, or outside."""
    body = draw(bodies)
    start = draw(
        st.integers(0, len(body)) | st.integers(0, len(body) + 3) | st.sampled_from((9_999_999_999, len(body)))
    )
    rest = max(0, len(body) - start)
    length = draw(
        st.integers(0, rest) | st.integers(0, rest + 3) | st.sampled_from((9_999_999_999, rest, rest + 1, len(body)))
    )
    return body, start, length


def renamed(body: bytes, start: int, length: int, name: bytes) -> bytes:
    if not name.startswith(b'"') or not 2 <= len(name) <= LONGEST or start + length > len(body):
        return body
    return body[:start] + name + body[start + length :]


def script(chain, span: str, name: bytes, *, copied: bool) -> Script:
    """The names of a try stand in metadata, those of a copy in a header."""
    begun = Script(*chain).failing(None)
    if copied:
        return begun.do("h", "x-matrixinfer-rename", span.encode() + b" " + name)
    begun.metadata("matrixinfer.names", span=span).metadata("matrixinfer.served", host=HOST)
    return begun.do("m", "matrixinfer.names", HOST, name)


@examples(120)
@given(
    what=spans(),
    name=names,
    cuts=chunks.cuts,
    sizes=chunks.sizes,
    chain=chains,
    copied=st.booleans(),
    trailers=st.booleans(),
)
def test_the_span_is_replaced_if_it_lies_in_the_body(module, *, what, name, cuts, sizes, chain, copied, trailers):
    body, start, length = what
    cuts = max(cuts, len(body) // 50 + 1) if isinstance(cuts, int) else cuts
    expected = renamed(body, start, length, name)
    begun = script(chain, f"{start}:{length}", name, copied=copied).request(content_length="before")

    outcome = module.run(begun.body(chunks.pieces(body, cuts, sizes) or [[]], trailers=trailers))

    assert outcome.body == expected
    assert outcome.body_ended == ("trailers" if trailers else "end")
    told = outcome.headers[REQUEST]["content-length"]
    assert told == (str(len(expected)).encode() if expected is not body else b"before")
    assert "x-matrixinfer-rename" not in outcome.headers[REQUEST]


@examples(60)
@given(
    span=st.text("0123456789:- x", max_size=24),
    name=names | st.binary(max_size=4),
    body=bodies,
    chain=chains,
    copied=st.booleans(),
    failing=st.none() | st.integers(0, 5),
)
def test_what_is_no_span_does_no_harm(module, *, span, name, body, chain, copied, failing):
    begun = script(chain, span, name, copied=copied).failing(failing).request()

    outcome = module.run(begun.body(chunks.pieces(body, [len(body) // 2]) or [[]]))

    assert outcome.body_ended == "end"
    assert outcome.body == body or name in outcome.body


@pytest.mark.parametrize("missing", ["matrixinfer.names span", "matrixinfer.served host", f"matrixinfer.names {HOST}"])
@pytest.mark.parametrize("number", [True, False])
def test_without_a_word_of_the_picker_s_the_body_is_not_waited_for(module, missing, number):
    space, key = missing.split()
    begun = Script("rename")
    for known in (
        ("matrixinfer.names", "span", "0:1"),
        ("matrixinfer.served", "host", HOST),
        ("matrixinfer.names", HOST, '"x"'),
    ):
        if known[:2] != (space, key):
            begun.do("m", *known)
        elif number:
            begun.do("n", *known)

    outcome = module.run(begun.request().do("b", "", b"abc"))

    assert outcome.body == b"abc"


def test_a_body_that_trailers_end_is_renamed(module):
    begun = script(("rename",), "1:1", b'"x"', copied=False).request()

    outcome = module.run(begun.body([[b"a"], [b"bc"]], trailers=True))

    assert outcome.body == b'a"x"c'
    assert outcome.headers[REQUEST]["content-length"] == b"5"


def test_a_request_without_a_body_is_passed_on(module):
    outcome = module.run(script(("rename",), "0:0", b'"x"', copied=True).request(end=True))

    assert outcome.passed
    assert outcome.headers[REQUEST] == {}
