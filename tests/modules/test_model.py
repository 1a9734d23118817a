"""The model of a request that the picker did not decide is the one that Python's json reads, and garbage has none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules import chunks
from tests.modules.streams import REQUEST, Script, examples

HEADER = "x-matrixinfer-model"
LONGEST = 1024
chains = st.sampled_from((("model",), ("keeps", "model")))
texts = st.text(max_size=12) | st.sampled_from(
    (
        "demo",
        "model",
        'a"b',
        "a\\",
        "{[",
        "]}",
        "x\n",
        "x\x7f",
        "\ud800",
        "\udc00x",
        "é☃𝄞",
        "m" * 1024,
        "m" * 1025,
        "é" * 512,
        "é" * 513,
    )
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
keys = st.sampled_from(("Model", "mode", "models", "stream", "")) | texts
names = st.sampled_from(("demo", 'a"b\\', "é☃𝄞", "a/b:c", "m" * 1024, "é" * 512)) | st.text(
    st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), min_size=1, max_size=12
)
models = st.tuples(st.just("model"), st.one_of(names, names, names, values))
blanks = st.sampled_from(("", "", " ", "\n", "\r\n\t "))


@st.composite
def strings(draw, text):
    """The text as a JSON string: every character as it is or escaped, as a few bits say."""
    bits = draw(st.integers(0, 255))
    written = []
    for number, character in enumerate(text):
        escaped = bits >> number % 8 & 1 or "\ud800" <= character < "\ue000"
        if escaped and character in '/"\\':
            written.append("\\" + character)
        elif escaped:
            units = character.encode("utf-16-be", "surrogatepass").hex()
            units = units.upper() if bits & 1 else units
            written += ["\\u" + units[at : at + 4] for at in range(0, len(units), 4)]
        elif character < " " or character in '"\\':
            written.append(json.dumps(character)[1:-1])
        else:
            written.append(character)
    return '"' + "".join(written) + '"'


@st.composite
def written(draw, value):
    """The value as JSON, an object's own strings written in many ways."""
    if isinstance(value, str):
        return draw(strings(value))
    return json.dumps(value, separators=draw(st.sampled_from(((",", ":"), (", ", ": ")))))


@st.composite
def objects(draw):
    """An object whose keys may occur twice."""
    pairs = draw(
        st.permutations([*draw(st.lists(st.tuples(keys, values), max_size=3)), *draw(st.lists(models, max_size=2))])
    )
    blank = draw(blanks)
    inner = [blank + draw(strings(key)) + blank + ":" + blank + draw(written(value)) + blank for key, value in pairs]
    return (blank + "{" + (",".join(inner) or blank) + "}" + blank).encode()


documents = st.one_of(objects(), objects(), objects(), values.map(lambda value: json.dumps(value).encode()))


def model_of(body: bytes) -> bytes | None:
    """The model, if it is a name that can stand in a header. Of keys that occur twice json, too, takes the last."""
    read = json.loads(body)
    name = read.get("model") if isinstance(read, dict) else None
    if not isinstance(name, str) or not name or any(c < " " or c == "\x7f" or "\ud800" <= c < "\ue000" for c in name):
        return None
    encoded = name.encode()
    return encoded if len(encoded) <= LONGEST else None


def undecided(module, body, cuts, sizes, chain=("model",), *, trailers=False, failing=None):
    script = Script(*chain).failing(failing).request().body(chunks.pieces(body, cuts, sizes) or [[]], trailers=trailers)
    outcome = module.run(script.complete())
    assert outcome.body == body
    assert outcome.body_ended == ("trailers" if trailers else "end")
    return outcome


@examples(150)
@given(body=documents, cuts=chunks.cuts, sizes=chunks.sizes, chain=chains, trailers=st.booleans())
def test_the_model_is_the_one_that_python_reads(module, *, body, cuts, sizes, chain, trailers):
    expected = model_of(body)

    outcome = undecided(module, body, cuts, sizes, chain, trailers=trailers)

    assert outcome.headers[REQUEST].get(HEADER) == expected
    assert outcome.other == (["route cleared"] if expected else [])


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"demo","stream":true}',
        b'{"n":1,"model":"demo"}',
        b'{"messages":[{"role":"user","content":"\\"model\\":\\"x\\"}"}],"model":"demo","temperature":0.5}',
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":null,"n":-1}',
        b'{"model":["a"],"model":"b"}',
        b'{"model":{"model":"a"}}',
        b'["model","a"]',
        b'{"mod\\u0065l":"\\ud834\\udd1e\\uDBFF\\uDFFF"}',
        b'{"model":"\\ud800\\udc00"}',
        b'{"model":"\\udbff\\u0041"}',
        *(b'{"model":"%b"}' % name for name in (b"m" * 1024, b"m" * 1025, b"\xc3\xa9" * 512, b"m" + b"\xc3\xa9" * 512)),
        b'{"model":"%b\\u00e9"}' % (b"m" * 1023),
    ],
    ids=lambda body: repr(body[-30:]),
)
def test_bodies_that_clients_might_send(module, body):
    for place in range(0, len(body), 1 + len(body) // 100):
        outcome = undecided(module, body, [place], [])

        assert outcome.headers[REQUEST].get(HEADER) == model_of(body)


FRAGMENTS = (
    *(
        b'{"model":"demo"}',
        b'{"model":',
        b'"model"',
        b'{"',
        b'"',
        b"\\",
        b"\\u",
        b"\\ud83",
        b"\\ud834\\u",
        b"\\ud834\\udd1",
        b"\\uD834",
    ),
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\xff", b"true", b"m" * 1030, b'"a":[1,{"b":2}],'),
)
garbage = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=4), max_size=16).map(b"".join)


@st.composite
def mutated(draw):
    """A document with some of its bytes cut out or exchanged, or cut short."""
    body = bytearray(draw(documents))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 6))] = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=3))
    return bytes(body[: draw(st.integers(0, len(body)))]) if draw(st.booleans()) else bytes(body)


@examples(100)
@given(body=garbage | mutated(), cuts=chunks.cuts, sizes=chunks.sizes, chain=chains)
def test_garbage_is_passed_on_and_gives_no_header_that_is_none(module, *, body, cuts, sizes, chain):
    name = undecided(module, body, cuts, sizes, chain).headers[REQUEST].get(HEADER, b"x")

    assert 0 < len(name) <= LONGEST
    assert all(byte >= ord(" ") and byte != 0x7F for byte in name)


@examples(40)
@given(body=documents, cuts=chunks.cuts, sizes=chunks.sizes, chain=chains, failing=st.integers(0, 6))
def test_without_memory_the_body_is_passed_on(module, *, body, cuts, sizes, chain, failing):
    undecided(module, body, cuts, sizes, chain, failing=failing)


@pytest.mark.parametrize("end", [True, False])
def test_nothing_is_read_of_a_request_that_is_decided_or_has_no_body(module, end):
    headers = {} if end else {"x_matrixinfer_target": "default/a"}

    outcome = module.run(Script("model").request(end=end, **headers).body([] if end else [[b'{"model":"demo"}']]))

    assert HEADER not in outcome.headers[REQUEST]
    assert outcome.passed
