"""Real Envoy reads usage and hides it on the way to the client; the access log has it, whatever breaks."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time

import pytest
import pytest_asyncio

from matrixinfer.api import dataplane
from tests.xds.stack import answer_json, metadata, running, stream

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

TICKETS = (f"ticket-{number}" for number in itertools.count())
DONE = b"data: [DONE]\n\n"
DETAILS = {"prompt_tokens_details": {"cached_tokens": 4}}
COUNTED = {"prompt_tokens": 10, "completion_tokens": 3, "cached_tokens": 4, "model": "demo"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["module", "lua"])
async def stack(request):
    async with running(module=request.param == "module") as started:
        yield started


def event(data, name=None, newline=b"\n"):
    text = b"data: " + json.dumps(data, separators=(",", ":")).encode() + newline * 2
    return (b"event: " + name.encode() + newline if name else b"") + text


def chunk(content, usage=None, **more):
    """One chat completion chunk; `content` None is the usage-only one at the end."""
    choices = [] if content is None else [{"index": 0, "delta": {"content": content}}]
    data = {"id": "c", "object": "chat.completion.chunk", "model": "demo", "choices": choices, **more}
    return data if usage is None else {**data, "usage": usage}


def running_usage(tokens):
    return {"prompt_tokens": 10, "total_tokens": 10 + tokens, "completion_tokens": tokens, **DETAILS}


# What a model writes may look like what we look for.
WORDS = ['"usage":{"completion_tokens":99}', 'data: \n\n "choices":[]', "é\\"]


def with_running_usage(newline=b"\n"):
    events = [chunk(word, running_usage(number + 1)) for number, word in enumerate(WORDS)]
    return [event(data, newline=newline) for data in (*events, chunk(None, running_usage(3)))] + [DONE]


def without_usage(newline=b"\n"):
    return b"".join([*(event(chunk(word), newline=newline) for word in WORDS), DONE])


async def ask(stack, behave, *, hide=None, **request):
    """Return the client's answer and the access log's entry."""
    ticket = next(TICKETS)
    stack.pick(0, ticket=ticket, metadata={dataplane.USAGE_CHUNKS: hide} if hide else {})
    stack.engines[0].behave = behave
    answer = await stack.envoy.request(**request)
    return answer, await stack.picker.entry(ticket)


def usage(entry):
    return metadata(entry, dataplane.USAGE_METADATA)


ANSWERS = {
    "chat": ({"model": "demo", "choices": [], "usage": running_usage(3)}, COUNTED),
    "chat spaced": ({"model": "demo", "usage": running_usage(3), "prompt_logprobs": None}, COUNTED),
    "embeddings": (
        {"model": "demo", "data": [0.5] * 50_000, "usage": {"prompt_tokens": 7, "total_tokens": 7}},
        {"prompt_tokens": 7, "model": "demo"},
    ),
    "responses": (
        {
            "model": "demo",
            "usage": {
                "input_tokens": 10,
                "input_tokens_details": {"cached_tokens": 4, "cached_tokens_per_turn": []},
                "output_tokens": 3,
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        },
        COUNTED,
    ),
    "messages": (
        {
            "model": "demo",
            "usage": {
                "input_tokens": 5,
                "output_tokens": 3,
                "cache_creation_input_tokens": 1,
                "cache_read_input_tokens": 4,
            },
        },
        COUNTED,
    ),
    "no usage": ({"data": [{"id": "usage"}], "usage": None, "x": {"usage": "usage"}}, {}),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_usage_of_json_answers_is_normalised(stack, name):
    data, expected = ANSWERS[name]
    body = json.dumps(data, separators=(", ", ": ") if "spaced" in name else (",", ":")).encode()

    answer, entry = await ask(stack, lambda request, writer: answer_json(request, writer, body))

    assert answer.body == body
    assert usage(entry) == expected


async def test_usage_of_an_engine_error_is_nobodys(stack):
    body = json.dumps({"usage": running_usage(3)}).encode()

    _, entry = await ask(stack, lambda request, writer: answer_json(request, writer, body, "400 Bad Request"))

    assert usage(entry) == {}


async def test_usage_of_a_responses_stream_is_read_at_its_end(stack):
    counted = {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4}, "output_tokens": 3}
    events = [
        event({"type": "response.created", "response": {"model": "demo", "usage": None}}, "response.created"),
        event({"type": "response.output_text.delta", "delta": WORDS[0]}, "response.output_text.delta"),
        event({"type": "response.completed", "response": {"model": "demo", "usage": counted}}, "response.completed"),
    ]

    answer, entry = await ask(stack, stream(*events), path="/v1/responses")

    assert answer.body == b"".join(events)
    assert usage(entry) == COUNTED


async def test_usage_of_a_messages_stream_is_put_together(stack):
    start = {"type": "message_start", "message": {"model": "demo", "usage": {"input_tokens": 10, "output_tokens": 0}}}
    counted = {"input_tokens": 6, "output_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4}
    events = [
        event(start, "message_start"),
        event({"type": "content_block_delta", "delta": {"text": WORDS[0]}}, "content_block_delta"),
        event({"type": "message_delta", "delta": {}, "usage": counted}, "message_delta"),
    ]

    answer, entry = await ask(stack, stream(*events), path="/v1/messages")

    assert answer.body == b"".join(events)
    assert usage(entry) == COUNTED


async def test_usage_that_the_client_asked_for_is_left_alone(stack):
    answer, entry = await ask(stack, stream(*with_running_usage()))

    assert answer.body == b"".join(with_running_usage())
    assert usage(entry) == COUNTED


async def test_hide_running_leaves_the_final_usage(stack):
    answer, entry = await ask(stack, stream(*with_running_usage()), hide=dataplane.HIDE_RUNNING)

    final = event(chunk(None, running_usage(3)))
    assert answer.body == without_usage().removesuffix(DONE) + final + DONE
    assert usage(entry) == COUNTED


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_hide_all_leaves_no_usage(stack, newline):
    answer, entry = await ask(stack, stream(*with_running_usage(newline)), hide=dataplane.HIDE_ALL)

    assert answer.body == without_usage(newline)
    assert usage(entry) == COUNTED


async def test_usage_is_taken_out_wherever_it_stands_in_an_event(stack):
    counted = running_usage(3)
    first = {"usage": counted, "choices": [{"index": 0}]}
    only = {"usage": counted}
    middle = {"a": 1, "usage": counted, "choices": [{"index": 0}]}

    answer, _ = await ask(stack, stream(*(event(data) for data in (first, only, middle))), hide=dataplane.HIDE_ALL)

    left = [json.loads(line.removeprefix(b"data: ")) for line in answer.body.split(b"\n\n") if line]
    assert left == [{"choices": [{"index": 0}]}, {}, {"a": 1, "choices": [{"index": 0}]}]


@pytest.mark.parametrize("hide", [None, dataplane.HIDE_ALL])
async def test_any_chunking_gives_the_same_answer_and_the_same_usage(stack, hide):
    draw = random.Random(7)
    whole = b"".join(with_running_usage())
    expected = without_usage() if hide else whole

    for _ in range(120):
        cuts = sorted(draw.sample(range(1, len(whole)), draw.choice([1, 2, 3, 8, 40, 200])))
        parts = [whole[start:end] for start, end in itertools.pairwise([0, *cuts, len(whole)])]
        answer, entry = await ask(stack, stream(*parts), hide=hide)

        assert answer.body == expected, cuts
        assert usage(entry) == COUNTED, cuts


async def test_an_unfinished_last_event_is_not_lost_while_hiding(stack):
    answer, _ = await ask(stack, stream(event(chunk("a")), b"data: tail"), hide=dataplane.HIDE_ALL)

    assert answer.body == event(chunk("a")) + b"data: tail"


async def test_the_first_token_is_stamped_when_it_comes_not_with_the_headers(stack):
    async def late(request, writer):
        await stream(end=False)(request, writer)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")

    before = time.time() * 1000
    _, entry = await ask(stack, late)

    stamp = metadata(entry, dataplane.TIMING_METADATA)["first_token_ms"]
    assert before + 200 <= stamp <= time.time() * 1000


async def test_a_client_that_leaves_is_logged_with_the_usage_so_far(stack):
    async def endless(request, writer):
        await stream(*with_running_usage()[:2], end=False)(request, writer)
        await asyncio.sleep(3600)

    ticket = next(TICKETS)
    stack.pick(0, ticket=ticket, metadata={dataplane.USAGE_CHUNKS: dataplane.HIDE_ALL})
    stack.engines[0].behave = endless
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.envoy.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-length: 2\r\n\r\n{}")
    await reader.readuntil(b"data: \\n\\n")
    await asyncio.sleep(0)
    writer.transport.abort()
    entry = await stack.picker.entry(ticket)

    assert entry["common_properties"]["response_flags"] == {"downstream_connection_termination": True}
    assert usage(entry) == COUNTED | {"completion_tokens": 2}


async def test_an_engine_that_dies_mid_stream_is_logged_with_the_usage_so_far(stack):
    answer, entry = await ask(stack, stream(*with_running_usage()[:2], close=True), hide=dataplane.HIDE_ALL)

    assert answer.cut
    assert answer.body.startswith(b"".join(event(chunk(word)) for word in WORDS[:2]))
    if stack.module:  # Lua is not asked when a stream breaks
        assert json.loads(answer.body.split(b"data: ")[-1])["error"]["code"] == "stream_interrupted"
    (flag,) = entry["common_properties"]["response_flags"]
    assert flag in ("upstream_connection_termination", "upstream_protocol_error", "upstream_remote_reset")
    assert usage(entry) == COUNTED | {"completion_tokens": 2}


async def test_the_log_says_what_settling_needs(stack):
    body = json.dumps({"model": "demo", "usage": running_usage(3)}).encode()
    _, entry = await ask(
        stack, lambda request, writer: answer_json(request, writer, body), path="/v1/completions", x_request_id="mine"
    )

    assert entry["request"]["request_id"] == "mine"
    assert entry["request"]["path"] == "/v1/completions"
    assert entry["response"]["response_code"] == 200
    assert entry["response"]["response_code_details"] == "via_upstream"
    assert entry["common_properties"]["upstream_cluster"] == "modelserver/default/demo"
    assert metadata(entry, dataplane.SERVED_METADATA) == {"host": stack.engines[0].address}


async def test_an_engine_that_answers_garbage_is_a_502_with_an_openai_error(stack):
    async def garbage(_request, writer):
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")

    stack.engines[0].behave = stack.engines[1].behave = stack.engines[2].behave = garbage
    stack.pick(0, 1, 2)

    answer = await stack.envoy.request()

    assert answer.status in (502, 503)
    assert answer.json["error"]["code"] == "engine_failed"
