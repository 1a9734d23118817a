"""Answers through the filter `response`: any chunking gives the client the same bytes and the log the same usage, and both
are what a reader of whole events in Python makes of them.
"""

from __future__ import annotations

import itertools
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.modules import chunks
from tests.modules.streams import Script, examples

ALL, RUNNING, HIDE_ALL = "", "hide-running", "hide-all"
modes = st.sampled_from((ALL, RUNNING, HIDE_ALL))
endings = st.sampled_from(("end", "empty", "trailers"))
NAMES = ("prompt_tokens", "completion_tokens", "cached_tokens")

# ---- streams as engines send them

counts = st.integers(0, 1 << 53)
# What a model writes may look like what is looked for.
TRICKY = (
    '"usage":{"completion_tokens":99}',
    'data: \n\n "choices":[]',
    "\\",
    '\\"',
    '"model":"x"',
    "{[}",
    "é☃",
    "ggg",
    "",
)
words = st.sampled_from(TRICKY) | st.text(max_size=20)
models = st.sampled_from(("demo", "é☃", "m" * 255, "m" * 256, "a/b:c", "g"))


def optional(strategy):
    return st.none() | strategy


chat_usage = st.fixed_dictionaries(
    {"prompt_tokens": counts, "completion_tokens": counts},
    optional={
        "total_tokens": counts,
        "prompt_tokens_details": st.none()
        | st.fixed_dictionaries({"cached_tokens": counts, "x": st.lists(words, max_size=2)}),
        "completion_tokens_details": st.just({"reasoning_tokens": 3, "list": [{"a": [1]}, '"}', "\\"]}),
    },
)
responses_usage = st.fixed_dictionaries(
    {"input_tokens": counts, "output_tokens": counts},
    optional={"input_tokens_details": st.fixed_dictionaries({"cached_tokens": counts})},
)
messages_usage = st.fixed_dictionaries(
    {"output_tokens": counts},
    optional={
        "input_tokens": st.integers(0, 1 << 50),
        "cache_creation_input_tokens": st.integers(0, 1 << 50),
        "cache_read_input_tokens": st.integers(0, 1 << 50),
        "server_tool_use": st.none(),
    },
)
usages = st.one_of(chat_usage, chat_usage, responses_usage, messages_usage)


@st.composite
def chunks_of_chat(draw):
    """The object of one chat completion chunk, its keys in any order."""
    data = {"id": "c", "object": "chat.completion.chunk", "model": draw(models)}
    choices = draw(st.sampled_from(("some", "some", "some", "none", "absent")))
    if choices == "some":
        data["choices"] = [{"index": 0, "delta": {"content": draw(words)}, "finish_reason": None}]
    if choices == "none":
        data["choices"] = []
    usage = draw(st.sampled_from(("absent", "absent", "null", "there", "there")))
    if usage != "absent":
        data["usage"] = None if usage == "null" else draw(usages)
    return dict(draw(st.permutations(list(data.items()))))


@st.composite
def events(draw, newline):
    """One event, and how it is written."""
    kind = draw(st.sampled_from(("chunk",) * 6 + ("comment", "done", "long")))
    if kind == "comment":
        return [": " + draw(st.sampled_from(("ping", "", "usage: {")))], newline
    if kind == "done":
        return ["data: [DONE]"], newline
    data = draw(chunks_of_chat())
    if kind == "long":
        data["padding"] = draw(st.sampled_from(TRICKY)) * draw(st.integers(1, 3000))
    style = draw(st.sampled_from(("compact", "compact", "spaced", "lines")))
    ascii_only = data["model"].isascii() and draw(st.booleans())  # a name with escapes in it is not read
    if style == "lines":
        text = json.dumps(data, indent=draw(st.integers(0, 2)), ensure_ascii=ascii_only)
    else:
        text = json.dumps(data, separators=(",", ":") if style == "compact" else (", ", ": "), ensure_ascii=ascii_only)
    lines = ["data: " + line for line in text.split("\n")]
    if draw(st.booleans()):
        lines.insert(0, "event: message")
    return lines, newline


# What an engine may leave behind that does not end its last event.
TAILS = (
    "",
    "",
    "data: tail",
    'data: {"usage":{"prompt_tokens":1',
    'data: {"usage":{"prompt_tokens":1}}\n',
    'data: {"usage":{}}\r\n\r',
)


@st.composite
def streams(draw):
    newline = draw(st.sampled_from(("\n", "\r\n")))
    written = [newline.join(lines) + newline * 2 for lines, newline in draw(st.lists(events(newline), max_size=6))]
    written.append(draw(st.sampled_from(TAILS)))
    return "".join(written).encode()


# ---- the reader


def read(stream: bytes) -> list[tuple[bytes, object]]:
    """Each event as it stands, and the JSON of its data lines (None if that is none)."""
    found = []
    for raw in re.findall(rb".+?(?:\r?\n\r?\n|\Z)", stream, re.DOTALL):
        lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if line.startswith(b"data: ")]
        try:
            found.append((raw, json.loads(b"\n".join(lines))))
        except ValueError:
            found.append((raw, None))
    return found


def shown(stream: bytes, mode: str) -> list[object]:
    """What the client sees: events without an object `usage` as they are, of the others the data."""
    seen = []
    for raw, data in read(stream):
        if mode == ALL or not isinstance(data, dict) or not isinstance(data.get("usage"), dict):
            seen.append(raw)
        elif data.get("choices") == []:
            seen.extend([raw] if mode == RUNNING else [])
        else:
            seen.append({key: value for key, value in data.items() if key != "usage"})
    return seen


def objects(data: object, key: str):
    """All values at the key, in their order."""
    if isinstance(data, dict):
        for name, value in data.items():
            if name == key:
                yield value
            yield from objects(value, key)
    elif isinstance(data, list):
        for value in data:
            yield from objects(value, key)


def first(data: object, key: str):
    return next((value for value in objects(data, key) if isinstance(value, int)), None)


def counted(*documents: object) -> dict[str, object]:
    """The usage that is charged, and the first model that is named and fits."""
    seen: dict[str, object] = {}
    for document in documents:
        for name in objects(document, "model"):
            if isinstance(name, str) and 0 < len(name.encode()) < 256:
                seen.setdefault("model", name)
        for usage in objects(document, "usage"):
            if not isinstance(usage, dict):
                continue
            prompt, given = first(usage, "prompt_tokens"), first(usage, "input_tokens")
            read_back, written = first(usage, "cache_read_input_tokens"), first(usage, "cache_creation_input_tokens")
            known = {"completion_tokens": first(usage, "completion_tokens")}
            if prompt is not None:
                known["prompt_tokens"] = prompt
            else:
                if given is not None:
                    known["prompt_tokens"] = given + (read_back or 0) + (written or 0)
                if (output := first(usage, "output_tokens")) is not None:
                    known["completion_tokens"] = output
                known["cached_tokens"] = read_back
            if (cached := first(usage, "cached_tokens")) is not None:
                known["cached_tokens"] = cached
            seen |= {name: float(value) for name, value in known.items() if value is not None}
    return seen


# ---- what is asked


def answered(
    module, pieces, mode=ALL, *, kind="text/event-stream", ended="end", chain=("response", "model"), failing=None
):
    script = Script(*chain).request(end=True)
    if mode:
        script.metadata("matrixinfer", usage_chunks=mode)
    return module.run(script.failing(failing).answer(pieces, kind=kind, ended=ended).complete())


@examples(150)
@given(stream=streams(), mode=modes, cuts=chunks.cuts, sizes=chunks.sizes, ended=endings)
def test_any_chunking_of_a_stream_gives_what_a_reader_of_whole_events_makes_of_it(
    module, *, stream, mode, cuts, sizes, ended
):
    whole = answered(module, [[stream]], mode)
    many = answered(module, chunks.pieces(stream, cuts, sizes), mode, ended=ended)

    assert many.answer == whole.answer
    assert many.answer_ended == ("trailers" if ended == "trailers" else "end")
    assert many.usage == whole.usage == counted(*(data for _, data in read(stream)))
    assert agree(whole.answer, shown(stream, mode))
    if mode == ALL:
        assert whole.answer == stream


def agree(answer: bytes, expected: list[object]) -> bool:
    """Events that had to stay are there byte by byte, the others by their data."""
    seen = read(answer)
    assert len(seen) == len(expected)
    for (raw, data), wanted in zip(seen, expected, strict=True):
        assert (data if isinstance(wanted, dict) else raw) == wanted
    return True


@pytest.mark.parametrize("mode", [ALL, RUNNING, HIDE_ALL])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_cut_at_any_place_changes_nothing(module, mode, newline):
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4, "x": "\\"}}
    running = {"id": 'c"', "model": "demo", "choices": [{"delta": {"content": "a"}}], "usage": usage}
    final = {"usage": usage, "choices": []}
    stream = b"".join(b"data: " + json.dumps(data).encode() + newline * 2 for data in (running, final))
    whole = answered(module, [[stream]], mode)

    for place in range(1, len(stream)):
        outcome = answered(module, [[stream[:place]], [stream[place:]]], mode)

        assert outcome.answer == whole.answer, place
        assert outcome.usage == whole.usage, place
    assert whole.usage == {"model": "demo", "prompt_tokens": 12, "completion_tokens": 3, "cached_tokens": 4}


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 18, 40])
def test_any_number_of_slices_is_read(module, count):
    event = b'data: {"model":"demo","choices":[{}],"usage":{"prompt_tokens":7}}\n\n'
    slices = [*(event[at : at + 1] for at in range(count - 1)), event[count - 1 :]]

    outcome = answered(module, [slices], HIDE_ALL)

    assert outcome.answer == b'data: {"model":"demo","choices":[{}]}\n\n'
    assert outcome.usage == {"model": "demo", "prompt_tokens": 7}


# ---- answers that are one JSON document


@st.composite
def documents(draw):
    data = {
        "id": draw(words),
        "model": draw(models),
        "choices": draw(
            st.lists(st.fixed_dictionaries({"text": words, "logprobs": st.none() | st.lists(counts)}), max_size=3)
        ),
        "usage": draw(st.none() | usages),
    }
    items = draw(st.permutations(list(data.items())))
    indent = draw(st.sampled_from((None, None, 0, 2)))
    separators = draw(st.sampled_from(((",", ":"), (", ", ": "))))
    ascii_only = data["model"].isascii() and draw(st.booleans())
    return json.dumps(dict(items), indent=indent, separators=separators, ensure_ascii=ascii_only).encode()


@examples(80)
@given(body=documents(), mode=modes, cuts=chunks.cuts, sizes=chunks.sizes, ended=endings)
def test_any_chunking_of_a_document_is_passed_on_and_read(module, *, body, mode, cuts, sizes, ended):
    outcome = answered(module, chunks.pieces(body, cuts, sizes), mode, kind="application/json", ended=ended)

    assert outcome.answer == body
    assert outcome.usage == counted(json.loads(body))


@pytest.mark.parametrize("size", [61, 4096, 1 << 20])
def test_usage_behind_a_large_answer_is_read(module, size):
    body = json.dumps(
        {"model": "demo", "data": [0.25] * 9_000, "usage": {"prompt_tokens": 7, "total_tokens": 7}}
    ).encode()

    outcome = answered(module, chunks.pieces(body, size), kind="application/json")

    assert outcome.answer == body
    assert outcome.usage == {"model": "demo", "prompt_tokens": 7}


@pytest.mark.parametrize(
    "headers",
    [{"status": "400"}, {"content_encoding": "gzip"}, {"kind": "text/html"}, {"kind": "text/event-strea"}],
    ids=str,
)
def test_other_answers_are_not_looked_at(module, headers):
    body = b'data: {"model":"demo","usage":{"prompt_tokens":1}}\n\n'
    script = Script("response").metadata("matrixinfer", usage_chunks=HIDE_ALL).request(end=True)

    outcome = module.run(script.answer([[body]], **headers).complete())

    assert outcome.answer == body
    assert outcome.numbers == {}


@pytest.mark.parametrize(("status", "left"), [("503", False), ("401", True)])
def test_only_a_503_asks_for_no_other_credentials(module, status, left):
    script = Script("response").request(end=True)
    script.do("H", "www-authenticate", "Bearer")

    outcome = module.run(script.answer([[b"{}"]], kind="application/json", status=status))

    assert ("www-authenticate" in outcome.headers["answer"]) == left


# ---- an event that nothing ends, data on several lines


def test_an_event_that_was_held_back_goes_out_before_trailers(module):
    outcome = answered(module, [[b"data: 1\n\ndata: ta"], [b"il"]], HIDE_ALL, ended="trailers")

    assert outcome.answer == b"data: 1\n\ndata: tail"
    assert outcome.answer_ended == "trailers"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_usage_that_is_last_of_several_lines_takes_the_comma_before_it_along(module, newline):
    lines = [b'data: {"choices": [{}],', b'data:   "usage": {', b'data: "prompt_tokens": 7}', b"data: }", b"", b""]

    outcome = answered(module, [[newline.join(lines)]], HIDE_ALL)

    assert read(outcome.answer)[0][1] == {"choices": [{}]}
    assert outcome.usage == {"prompt_tokens": 7}


# ---- what no engine sends

FRAGMENTS = (
    *b'"usage" "usage":{ "usage":null usage "choices":[] "choices":[ "prompt_tokens": "cached_tokens":-1 "model":" data: g'.split(),
    *(bytes([byte]) for byte in b'"\\{}[],: \t\n\0'),
    *(b"\r\n", b"\n\n", b"\r\n\r\n", b"data: {", b'"choices" : [', b'"usage" : {},"choices": [', b'"model" : "demo"'),
    *(
        b'"usage": {"prompt_tokens":3}',
        b'"completion_tokens": 9',
        b"9" * 20,
        b"x" * 600,
        b'"model":"' + b"m" * 300 + b'"',
    ),
    b'"input_tokens":9007199254740993,"cache_read_input_tokens":99999999999999999999',
)
garbage = st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=6), max_size=40).map(b"".join)


def within(part: bytes, whole: bytes) -> bool:
    """Whether the whole has the part's bytes in their order, with others among them."""
    rest = iter(whole)
    return all(byte in rest for byte in part)


@examples(150)
@given(
    data=garbage,
    mode=modes,
    kind=st.sampled_from(("text/event-stream", "application/json")),
    cuts=chunks.cuts,
    sizes=chunks.sizes,
    ended=endings,
)
def test_garbage_is_passed_on_but_for_what_is_hidden(module, *, data, mode, kind, cuts, sizes, ended):
    outcome = answered(module, chunks.pieces(data, cuts, sizes), mode, kind=kind, ended=ended)

    if mode == ALL or kind == "application/json" or b'"usage"' not in data:
        assert outcome.answer == data
    assert within(outcome.answer, data)
    assert all(0 <= number <= 2**63 for number in outcome.numbers.get("matrixinfer.usage", {}).values())


@pytest.mark.parametrize("mode", [ALL, HIDE_ALL])
@pytest.mark.parametrize("ended", ["end", "empty"])
def test_any_two_fragments_are_passed_on_but_for_what_is_hidden(module, mode, ended):
    for one, other in itertools.product(FRAGMENTS, FRAGMENTS):
        outcome = answered(module, [[one + other]], mode, ended=ended)

        assert within(outcome.answer, one + other)
        assert mode == HIDE_ALL or outcome.answer == one + other


@pytest.mark.parametrize("digits", [16, 17, 19, 20, 400])
def test_numbers_that_nobody_counts_to_stay_numbers(module, digits):
    body = b'{"usage":{"input_tokens":%b,"cache_read_input_tokens":%b}}' % ((b"9" * digits,) * 2)

    outcome = answered(module, [[body]], kind="application/json")

    assert outcome.answer == body
    assert 9 * 10**15 <= outcome.numbers["matrixinfer.usage"]["cached_tokens"] < 10**17


@examples(60)
@given(data=garbage, mode=modes, cuts=chunks.cuts, sizes=chunks.sizes, ended=endings, failing=st.integers(0, 20))
def test_without_memory_an_answer_that_hides_nothing_is_passed_on(module, *, data, mode, cuts, sizes, ended, failing):
    outcome = answered(module, chunks.pieces(data, cuts, sizes), mode, ended=ended, failing=failing)

    if mode == ALL:
        assert outcome.answer == data


# ---- bounds


@pytest.mark.parametrize("mode", [RUNNING, HIDE_ALL])
@pytest.mark.parametrize(("padding", "hidden"), [((1 << 20) - 4096, True), ((1 << 20) + (1 << 16), False)])
def test_hiding_ends_at_an_event_that_is_longer_than_may_be_held_back(module, mode, padding, hidden):
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    one = {"model": "demo", "choices": [{"text": "x" * padding}]}
    stream = b"data: " + json.dumps(one | {"usage": usage}).encode() + b"\n\n"

    outcome = answered(module, chunks.pieces(stream, 1 << 16), mode)

    assert outcome.answer == (b"data: " + json.dumps(one).encode() + b"\n\n" if hidden else stream)
    assert outcome.usage == usage | ({"model": "demo"} if hidden else {})  # what was let go was not looked at


def test_an_object_that_is_longer_than_usage_can_be_is_not_kept(module):
    long = b'"usage":{' + b'"a":1,' * 4000
    usage = b'data: {"model":"demo","usage":{"prompt_tokens":7}}\n\n'

    outcome = answered(module, [*chunks.pieces(long, 1000), [usage]])

    assert outcome.answer == long + usage
    assert outcome.usage == {"model": "demo", "prompt_tokens": 7}


# ---- the first token


def test_the_first_byte_is_stamped_once_and_no_byte_is_no_stamp(module):
    before = time.time() * 1000
    some = answered(module, [[], [b"data: 1\n\n"], [b"data: 2\n\n"]])
    none = answered(module, [[], []])

    assert before - 1 <= some.numbers["matrixinfer.timing"]["first_token_ms"] <= time.time() * 1000 + 1
    assert none.numbers == {}


# ---- a stream that breaks off

PATHS = ("/v1/chat/completions", "/v1/messages")
EVENT = b'data: {"model":"demo","choices":[{"delta":{}}]}\n\n'


def broken_off(module, sent, details, *, path=PATHS[0], mode=ALL, provider=False, later=()):
    script = Script("response", "model", *(["holds"] if provider else [])).do("h", ":path", path).request(end=True)
    if mode:
        script.metadata("matrixinfer", usage_chunks=mode)
    if provider:
        script.metadata("matrixinfer", provider="outside")
    script.answer(sent, ended="").broken(details)
    for piece in later:
        script.do("B", "", piece)
    return module.run(script.broken(details).complete())


def error_of(event: bytes) -> dict[str, object]:
    name, line = re.fullmatch(rb"(event: error\n)?data: (.*)\n\n", event).groups()
    assert bool(name) == (b'"api_error"' in line)
    return json.loads(line)["error"]


@examples(40)
@given(
    details=st.binary(max_size=200)
    | st.sampled_from((b"x" * 200, b"stream_idle_timeout", b"upstream_per_try_idle_timeout", b'a"b\\c{d}')),
    path=st.sampled_from(PATHS),
    mode=modes,
    provider=st.booleans(),
    sizes=chunks.sizes,
)
def test_a_stream_that_breaks_off_ends_with_one_error_event(module, *, details, path, mode, provider, sizes):
    sent = [chunks.sliced(EVENT, sizes), chunks.sliced(EVENT, sizes)]

    outcome = broken_off(module, [] if provider else sent, details, path=path, mode=mode, provider=provider)

    passed = b"" if provider else EVENT * 2
    assert outcome.answer.startswith(passed)
    error = error_of(outcome.answer.removeprefix(passed))
    assert ("provider" in error["message"]) == provider
    assert ("silent" in error["message"]) == details.startswith((b"stream_idle_timeout", b"upstream_per_try_idle"))
    assert outcome.answer_ended == ""


def test_an_event_that_was_held_back_is_not_mixed_with_the_error(module):
    outcome = broken_off(module, [[EVENT], [EVENT[:20]]], "reset", mode=HIDE_ALL)

    assert outcome.answer.startswith(EVENT + b'data: {"error":')


def test_what_comes_after_the_error_is_passed_on(module):
    outcome = broken_off(module, [[EVENT], [EVENT[:20]]], "reset", mode=HIDE_ALL, later=[EVENT, b'"usage":{'])

    assert outcome.answer.endswith(b"\n\n" + EVENT + b'"usage":{')


def test_an_error_event_that_does_not_get_out_is_in_no_other_answer(module):
    script = Script("response", "model", "stops").metadata("matrixinfer", provider="outside").request(end=True)

    lost = module.run(script.answer([[EVENT]], ended="").broken("reset").complete())
    next_one = answered(module, [[EVENT]])

    assert lost.answer == b""
    assert next_one.answer == EVENT


def test_an_answer_that_is_complete_or_no_stream_has_no_error_event(module):
    whole = Script("response").request(end=True).answer([[EVENT]]).broken("reset")
    document = Script("response").request(end=True).answer([[b"{"]], kind="application/json", ended="").broken("reset")
    trailers = Script("response").request(end=True).answer([[EVENT]], ended="trailers").broken("reset")
    unanswered = Script("response").request(end=True).broken("reset")

    assert [module.run(script).answer for script in (whole, document, trailers, unanswered)] == [
        EVENT,
        b"{",
        EVENT,
        b"",
    ]
