"""The quickstart's stack answers curl and the clients of OpenAI and Anthropic as the engine behind it would."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import anthropic
import openai
import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, MESSAGES, a_body, events, running

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
EMBEDDINGS, RESPONSES, MODELS = "/v1/embeddings", "/v1/responses", "/v1/models"
USAGE = {"include_usage": True}
RUNNING = {"include_usage": True, "continuous_usage_stats": True}
ASKS = [{"role": "user", "content": "What is a gateway?"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world():
    async with running(QUICKSTART) as it:
        yield it


@pytest_asyncio.fixture(loop_scope="module")
async def client(world):
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0) as it:
        yield it


@pytest_asyncio.fixture(loop_scope="module")
async def claude(world):
    async with anthropic.AsyncAnthropic(base_url=world.url, api_key="none", max_retries=0) as it:
        yield it


# ---- curl


async def curl(world, path, *arguments):
    """Status, headers and body as curl got them."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    process = await asyncio.create_subprocess_exec(
        *(program, "-sS", "-i", "--max-time", "30", *arguments, world.url + path), stdout=asyncio.subprocess.PIPE
    )
    got, _ = await process.communicate()
    assert process.returncode == 0
    head, _, body = got.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


def prompt(path, **given):
    """A body for `path`."""
    text = {EMBEDDINGS: {"prompt": None, "max_tokens": None, "input": "hello"}}
    text[RESPONSES] = {"prompt": None, "max_tokens": None, "max_output_tokens": 6, "input": "hello"}
    return a_body(path, **({"max_tokens": 6} | text.get(path, {}) | given))


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES])
async def test_curl_gets_an_answer(world, path):
    given = json.dumps(prompt(path))

    status, headers, body = await curl(world, path, "-H", "content-type: application/json", "-d", given)

    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["model"] == "demo"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
async def test_curl_gets_a_stream(world, path):
    given = json.dumps(prompt(path, stream=True))

    status, headers, body = await curl(world, path, "-N", "-H", "content-type: application/json", "-d", given)

    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert len(events(body)) >= 6


async def test_curl_lists_the_models(world):
    status, headers, body = await curl(world, MODELS)

    assert (status, headers["content-type"]) == (200, "application/json")
    assert [model["id"] for model in json.loads(body)["data"]] == ["demo"]


# ---- the openai client


async def test_the_openai_client_chats(client):
    answer = await client.chat.completions.create(model="demo", messages=ASKS, max_completion_tokens=7)

    assert (answer.choices[0].message.role, answer.choices[0].finish_reason) == ("assistant", "length")
    assert answer.choices[0].message.content
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (7, answer.usage.prompt_tokens + 7)


async def test_the_openai_client_streams_a_chat(client):
    whole = await client.chat.completions.create(model="demo", messages=ASKS, max_tokens=7)

    stream = await client.chat.completions.create(model="demo", messages=ASKS, max_tokens=7, stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


async def test_the_openai_client_completes(client):
    answer = await client.completions.create(model="demo", prompt="Once upon a time", max_tokens=7)

    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 7)


async def test_the_openai_client_streams_a_completion(client):
    whole = await client.completions.create(model="demo", prompt="Once upon a time", max_tokens=7)

    stream = await client.completions.create(model="demo", prompt="Once upon a time", max_tokens=7, stream=True)

    assert "".join([chunk.choices[0].text async for chunk in stream]) == whole.choices[0].text


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_the_openai_client_embeds(client, encoding):
    answer = await client.embeddings.create(model="demo", input=["one", "two"], encoding_format=encoding)

    assert [found.index for found in answer.data] == [0, 1]
    assert answer.data[0].embedding != answer.data[1].embedding
    assert answer.usage.prompt_tokens > 0


async def test_the_openai_client_gets_a_response(client):
    answer = await client.responses.create(model="demo", input="What is a gateway?", max_output_tokens=7)

    assert answer.output_text
    assert answer.usage.output_tokens == 7


async def test_the_openai_client_streams_a_response(client):
    whole = await client.responses.create(model="demo", input="What is a gateway?", max_output_tokens=7)

    stream = await client.responses.create(model="demo", input="What is a gateway?", max_output_tokens=7, stream=True)
    got = [event async for event in stream]

    assert "".join(one.delta for one in got if one.type == "response.output_text.delta") == whole.output_text
    assert (got[0].type, got[-1].type) == ("response.created", "response.completed")
    assert got[-1].response.usage.output_tokens == 7


async def test_the_openai_client_lists_and_finds_the_models(client):
    listed = [model.id async for model in client.models.list()]
    found = await client.models.retrieve("demo")

    assert (listed, found.id, found.object) == (["demo"], "demo", "model")


async def test_the_openai_client_raises_its_own_error_for_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as raised:
        await client.chat.completions.create(model="nobody", messages=ASKS)

    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


# ---- the anthropic client


async def test_the_anthropic_client_gets_a_message(claude):
    answer = await claude.messages.create(model="demo", max_tokens=7, messages=ASKS, system="Be brief.")

    assert (answer.role, answer.stop_reason, answer.usage.output_tokens) == ("assistant", "max_tokens", 7)
    assert answer.content[0].text


async def test_the_anthropic_client_streams_a_message(claude):
    whole = await claude.messages.create(model="demo", max_tokens=7, messages=ASKS)

    async with claude.messages.stream(model="demo", max_tokens=7, messages=ASKS) as stream:
        text = "".join([text async for text in stream.text_stream])
        final = await stream.get_final_message()

    assert text == whole.content[0].text
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 7)


async def test_the_anthropic_client_counts_tokens(claude):
    counted = await claude.messages.count_tokens(model="demo", messages=ASKS)
    answer = await claude.messages.create(model="demo", max_tokens=1, messages=ASKS)

    usage = answer.usage
    told = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    assert counted.input_tokens == told


# ---- usage


def tells_usage(event):
    return "usage" in event


async def streamed(world, path, **given):
    """The events of a stream, decoded; "[DONE]" as it is."""
    answer = await world.send(path, stream=True, **prompt(path, **given))
    assert answer.status == 200
    return [data if data == "[DONE]" else json.loads(data) for data in events(answer.body)]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"continuous_usage_stats": True}], ids=str)
async def test_a_client_that_did_not_ask_for_usage_sees_none(world, path, options):
    *got, end = await streamed(world, path, stream_options=options)

    assert end == "[DONE]"
    assert not any(map(tells_usage, got))
    assert all(event["choices"] for event in got)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_client_that_asked_for_usage_gets_it_once_at_the_end(world, path):
    *got, last, end = await streamed(world, path, stream_options=USAGE)

    assert end == "[DONE]"
    assert not any(map(tells_usage, got))
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
    assert last["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_client_that_asked_for_running_usage_gets_it_in_every_chunk(world, path):
    *got, last, end = await streamed(world, path, stream_options=RUNNING)

    counts = [event["usage"]["completion_tokens"] for event in got]
    assert end == "[DONE]"
    assert [count for count in counts if count] == [1, 2, 3, 4, 5, 6]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)


CASES = [(path, None) for path in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)]
CASES += [(path, {}) for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES)]
CASES += [(path, options) for path in (CHAT, COMPLETIONS) for options in (USAGE, RUNNING)]


@pytest.mark.parametrize(("path", "options"), CASES)
async def test_a_client_gets_byte_for_byte_what_the_engine_sends(world, path, options):
    """`options` None: no stream, {}: a stream, else its stream_options."""
    stream = {} if options is None else {"stream": True, "stream_options": options or None}
    body = prompt(path, **stream)
    headers = {"x-request-id": world.new_id()}

    answer = await world.raw(path, data=json.dumps(body), headers=headers)
    address = next(iter((await world.engines()).values()))
    given = {"content-type": "application/json"} | headers
    async with world.http.post(f"http://{address}{path}", json=body, headers=given) as direct:
        expected = await direct.read()

    assert alike(answer.body, hidden=options == {}) == alike(expected, hidden=options == {})


def alike(body, *, hidden):
    """Bytes without what differs from one answer to the next: times and drawn ids.

    vLLM ends a stream with its fingerprint: in the usage chunk where there is one, else in the last chunk. Where usage
    was asked for on the client's behalf (`hidden`), the fingerprint has gone with the chunk.
    """
    body = re.sub(rb'"created(_at)?":\d+', b'"created":0', body)
    body = re.sub(rb'"(resp|msg|embd)[_-][0-9a-f]{16}"', b'"id"', body)
    return re.sub(rb',"system_fingerprint":"[^"]*"', b"", body) if hidden else body


# ---- headers


ANSWERED = [("POST", path) for path in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES)]
ANSWERED += [("GET", MODELS), ("GET", "/healthz"), ("GET", "/nowhere"), ("POST", "/v1/audio/transcriptions")]


@pytest.mark.parametrize(("method", "path"), ANSWERED)
async def test_every_answer_has_a_request_id(world, method, path):
    body = prompt(path) if method == "POST" else {}

    one = await world.send(path, method=method, **body)
    other = await world.send(path, method=method, **body)

    assert len(one.headers["x-request-id"]) >= 16
    assert one.headers["x-request-id"] != other.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path"), ANSWERED)
async def test_a_clients_own_request_id_is_kept(world, method, path):
    body = prompt(path) if method == "POST" else {}

    answer = await world.send(path, method=method, headers={"x-request-id": "My own, 7"}, **body)

    assert answer.headers.getall("x-request-id") == ["My own, 7"]


async def test_the_decision_is_told_only_to_a_client_that_asks(world):
    silent = await world.send()
    no = await world.send(headers={"x-matrixinfer-explain": "0"})
    asked = await world.send(headers={"x-matrixinfer-explain": "1"})

    assert "x-matrixinfer-decision" not in {*map(str.lower, silent.headers), *map(str.lower, no.headers)}
    told = json.loads(asked.headers["x-matrixinfer-decision"])
    assert {one["endpoint"] for one in told["candidates"]} == set((await world.engines()).values())
    assert (told["model"], told["target"], told["rule"]) == ("demo", "default/demo", "default")
    assert told["endpoints"][0] == told["candidates"][0]["endpoint"]
    assert told["candidates"][0]["scores"].keys() == told["weights"].keys()
    assert told["reason"]


async def test_the_decision_comes_with_a_stream_too(world):
    answer = await world.send(CHAT, stream=True, headers={"x-matrixinfer-explain": "1"})

    assert json.loads(answer.headers["x-matrixinfer-decision"])["model"] == "demo"
