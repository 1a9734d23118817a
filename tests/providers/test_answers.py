"""Answers in the client's words: whole ones, and streams however they are cut; what is no answer becomes an error."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.providers import events as sse
from extproc.providers.exchange import Headers, Replaced, Streamed, Whole
from tests.providers import fakes
from tests.providers.builders import NOW, a_stream, a_try, an_answer, events

RECORDED = {
    one["name"]: one for one in json.loads((Path(__file__).parents[1] / "simulator/recordings/http.json").read_text())
}
JSON = {"content-type": "application/json"}
OPENAI, ANTHROPIC = "OpenAI", "Anthropic"


def whole(client, speaks, body, status=200):
    """What becomes of a whole answer: status and decoded body."""
    made = an_answer(client, speaks)
    assert isinstance(made.response(status, JSON, end=False), Whole)
    told = made.whole(body if isinstance(body, bytes) else json.dumps(body).encode())
    return told.status, json.loads(told.body)


def streamed(client, speaks, body, cuts=()):
    """What becomes of a stream that comes cut at these places."""
    made = a_stream(client, speaks)
    edges = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    pieces = [body[start:end] for start, end in itertools.pairwise(edges)]
    return b"".join(made.piece(piece, end=False) for piece in pieces) + made.piece(b"", end=True)


@pytest.mark.parametrize("tools", [[], [{"name": "weather"}]])
def test_a_message_becomes_a_completion(tools):
    status, made = whole(OPENAI, ANTHROPIC, fakes.messages_answer({"model": "claude", "tools": tools}))

    assert status == 200
    assert (made["id"], made["object"], made["created"], made["model"]) == (
        "chatcmpl-abc",
        "chat.completion",
        NOW,
        "claude",
    )
    assert made["usage"] == {
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "total_tokens": 17,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    choice = made["choices"][0]
    if tools:
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Oslo"}'}
    else:
        assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "The sea is wide.")


@pytest.mark.parametrize("tools", [[], [{"name": "weather"}]])
def test_a_completion_becomes_a_message(tools):
    _, made = whole(ANTHROPIC, OPENAI, fakes.chat_answer({"model": "gpt", "tools": tools}))

    expected = fakes.messages_answer({"model": "gpt", "tools": tools})
    if tools:
        expected["content"][0]["id"] = "call_1"
    assert made == expected


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_reasons_to_stop(theirs, ours):
    answer = fakes.messages_answer({"model": "m"}) | {"stop_reason": theirs}

    assert whole(OPENAI, ANTHROPIC, answer)[1]["choices"][0]["finish_reason"] == ours


def test_a_recorded_engine_answers_for_either_client():
    _, message = whole(ANTHROPIC, OPENAI, RECORDED["chat-cold"]["response"])
    _, completion = whole(OPENAI, ANTHROPIC, RECORDED["anthropic-messages"]["response"])

    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 6)
    assert (completion["choices"][0]["finish_reason"], completion["usage"]["completion_tokens"]) == ("length", 4)


def test_a_recorded_stream_is_told_to_either_client():
    chat = RECORDED["chat-stream-usage"]["response_text"].encode()
    messages = RECORDED["anthropic-stream"]["response_text"].encode()

    told = events(streamed(ANTHROPIC, OPENAI, chat))
    other = events(streamed(OPENAI, ANTHROPIC, messages))

    assert [one["type"] for one in told[:2]] == ["message_start", "content_block_start"]
    assert [one["type"] for one in told[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert told[-2]["delta"]["stop_reason"] == "max_tokens"
    assert other[-1] == "[DONE]"
    assert other[-2]["usage"]["completion_tokens"] == 4
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in other[:-2]) == " behavior yieldclu "


def test_streams_say_what_whole_answers_say():
    for tools in ([], [{"name": "weather"}]):
        body = {"model": "m", "stream_options": {"include_usage": True}, "tools": tools}
        told = events(streamed(ANTHROPIC, OPENAI, b"".join(fakes.chat_events(body))))
        back = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in told).encode()

        again = events(streamed(OPENAI, ANTHROPIC, back))

        assert [one["choices"][0]["delta"] for one in again[:-2]] == [
            one["choices"][0]["delta"] for one in events(b"".join(fakes.chat_events(body)))[:-2]
        ]
        assert again[-2]["usage"]["prompt_tokens"] == 12


def test_a_tool_without_arguments_has_an_empty_object():
    made = [
        {"type": "message_start", "message": fakes.messages_answer({"model": "m"})},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "now", "input": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]  # fmt: skip
    told = events(streamed(OPENAI, ANTHROPIC, b"".join(sse.named(one) for one in made)))

    calls = [call for one in told[:-2] for call in one["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(call["function"]["arguments"] for call in calls) == "{}"


def test_text_and_tools_are_blocks_of_their_own():
    head = {"id": "x", "model": "m"}
    deltas = [
        {"content": "a"},
        {"tool_calls": [{"index": 0, "id": "c0", "function": {"name": "f", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 1, "id": "c1", "function": {"name": "g", "arguments": ""}}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    ]
    chunks = [{**head, "choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"delta": {}, "finish_reason": "tool_calls"}]})

    told = events(streamed(ANTHROPIC, OPENAI, b"".join(sse.chunk(one) for one in chunks)))

    starts = [one["content_block"]["type"] for one in told if one["type"] == "content_block_start"]
    assert starts == ["text", "tool_use", "tool_use"]
    assert [one["index"] for one in told if one["type"] == "content_block_stop"] == [0, 1, 2]


BODY = {"model": "mödel", "stream_options": {"include_usage": True}}
STREAMS = {
    (OPENAI, ANTHROPIC, "text"): b"".join(fakes.messages_events(BODY)),
    (OPENAI, ANTHROPIC, "tools"): b"".join(fakes.messages_events({**BODY, "tools": [1]})).replace(b"\n", b"\r\n"),
    (ANTHROPIC, OPENAI, "text"): b": hello\n\n" + b"".join(fakes.chat_events(BODY)),
    (ANTHROPIC, OPENAI, "tools"): b"".join(fakes.chat_events({**BODY, "tools": [1]})),
}


@given(st.sampled_from(sorted(STREAMS)), st.lists(st.integers(0, 3000), max_size=40))
def test_any_cutting_of_a_stream_gives_the_same(which, cuts):
    client, speaks, _ = which

    assert streamed(client, speaks, STREAMS[which], cuts) == streamed(client, speaks, STREAMS[which])


@given(st.sampled_from(sorted(STREAMS)), st.integers(0, 3000))
def test_a_stream_that_ends_early_ends_with_an_error_of_the_clients_api(which, length):
    client, speaks, _ = which
    cut = STREAMS[which][:length]

    last = events(streamed(client, speaks, cut))[-1]

    finished = last == "[DONE]" or last.get("type") == "message_stop"
    assert finished or "error" in last
    if b'finish_reason": "' not in cut and b'message_stop"' not in cut:
        assert not finished


@given(st.sampled_from([(OPENAI, ANTHROPIC), (ANTHROPIC, OPENAI)]), st.binary(max_size=60), st.integers(0, 1500))
def test_rubbish_in_a_stream_never_raises(pair, rubbish, at):
    client, speaks = pair
    stream = STREAMS[client, speaks, "text"]

    told = streamed(client, speaks, stream[:at] + rubbish + stream[at:])

    assert told.endswith(b"\n\n")


@given(
    st.sampled_from([(OPENAI, ANTHROPIC), (ANTHROPIC, OPENAI)]),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "choices",
                        "delta",
                        "content",
                        "message",
                        "usage",
                        "content_block",
                        "index",
                        "tool_calls",
                        "error",
                        "id",
                        "model",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ),
)
def test_json_that_is_no_answer_is_an_error(pair, junk):
    client, speaks = pair
    status, body = whole(client, speaks, junk)

    assert (status, "error" in body) == (502, True)
    assert streamed(client, speaks, sse.chunk(junk)).endswith(b"\n\n")


@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC])
def test_an_error_within_a_stream_is_the_clients(client):
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    speaks = ANTHROPIC if client == OPENAI else OPENAI
    given_error = error if speaks == ANTHROPIC else {"error": {"message": "Overloaded", "type": "server_error"}}

    told = streamed(client, speaks, sse.chunk(given_error) + b"data: [DONE]\n\n")

    [last] = events(told)
    assert last["error"]["message"] == "Overloaded"
    assert told.startswith(b"event: error\n") == (client == ANTHROPIC)


@pytest.mark.parametrize(
    ("status", "client", "type_"),
    [
        (400, OPENAI, "invalid_request_error"),
        (404, ANTHROPIC, "not_found_error"),
        (413, ANTHROPIC, "request_too_large"),
        (429, OPENAI, "rate_limit_exceeded"),
        (429, ANTHROPIC, "rate_limit_error"),
        (500, ANTHROPIC, "api_error"),
        (503, ANTHROPIC, "overloaded_error"),
    ],
)
def test_errors_have_the_types_of_the_clients_api(status, client, type_):
    speaks = ANTHROPIC if client == OPENAI else OPENAI
    told, body = whole(client, speaks, {"error": {"message": "so it is", "type": "x", "code": 7}}, status)

    assert told == status
    assert (body["error"]["type"], body["error"]["message"]) == (type_, "so it is")


@pytest.mark.parametrize("body", [b"<html>nginx</html>", b"", b"null", b'{"error": "x"}'])
def test_an_error_page_is_not_repeated(body):
    status, told = whole(OPENAI, ANTHROPIC, body, 500)

    assert (status, told["error"]["message"]) == (500, "The provider answered with status 500.")


@pytest.mark.parametrize("client", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("speaks", [OPENAI, ANTHROPIC])
def test_a_refused_credential_is_not_repeated(client, speaks):
    told = a_try(client, speaks).response(401, {**JSON, "www-authenticate": "x", "content-length": "9"})

    assert isinstance(told, Replaced)
    assert told.status == 502
    assert {"content-length", "www-authenticate"} <= set(told.headers.remove)
    assert told.headers.put["x-should-retry"] == "false"


def test_headers_of_the_gateways_account_stay_here():
    told = a_try(OPENAI, OPENAI).response(429, {**JSON, "retry-after": "3", "x-ratelimit-limit-tokens": "9"})

    assert told == Headers({}, ("x-ratelimit-limit-tokens",))


def test_what_is_to_be_translated_is_marked():
    assert a_try(OPENAI, ANTHROPIC).response(200, JSON) == Headers({"x-matrixinfer-translate": "1"}, ())


def test_an_answer_without_a_body_is_an_error():
    assert an_answer(OPENAI, ANTHROPIC).response(200, JSON, end=True).status == 502


def test_a_stream_that_is_compressed_or_has_a_length_loses_both_headers():
    headers = {"content-type": "text/event-stream", "content-length": "9"}

    told = an_answer(OPENAI, ANTHROPIC).response(200, headers, end=False)

    assert isinstance(told, Streamed)
    assert "content-length" in told.headers.remove


def test_an_event_that_never_ends_is_an_error():
    made = a_stream(OPENAI, ANTHROPIC)
    told = b"".join(made.piece(b"data: " + b"x" * (1 << 20), end=False) for _ in range(10))

    assert b"error" in told
    assert made.piece(b"more", end=True) == b""


def test_headers_of_a_request_are_those_that_are_needed():
    made = a_try(OPENAI, ANTHROPIC).request(
        [":path", "accept-encoding", "content-type", "x-team", "anthropic-beta", "content-length"], ("authorization",)
    )

    assert made.put == {
        ":path": "/v1/x",
        ":authority": "api.example.com",
        "user-agent": "matrixinfer",
        "anthropic-version": "2023-06-01",
    }
    assert made.remove == ("authorization", "accept-encoding", "anthropic-beta", "x-team")
