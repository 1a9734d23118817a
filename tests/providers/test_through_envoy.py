"""Requests to external providers through a real Envoy: both APIs on both sides, as their own client libraries read them."""

import asyncio
import json
import sys

import aiohttp.web
import anthropic
import openai
import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, MESSAGES, running
from tests.providers import fakes
from tests.providers.town import a_provider, a_route, a_secret, chat, messages, outside

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
HELLO = [{"role": "user", "content": "Hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    async with (
        fakes.provider(folder) as provider,
        running(
            folder / "manifests",
            a_secret(provider),
            a_provider(provider, "openai", headers={"OpenAI-Organization": "org-1"}),
            a_provider(provider, "anthropic", type="Anthropic"),
            a_route("gpt", outside("openai")),
            a_route("claude", outside("anthropic")),
        ) as world,
    ):
        yield world, provider


@pytest_asyncio.fixture(loop_scope="module")
async def place(town):
    world, provider = town
    provider.got.clear()
    provider.behave = None
    return world, provider


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_openai_client_gets_an_answer(place, model):
    world, provider = place

    answer = await chat(world).chat.completions.create(model=model, messages=HELLO, max_tokens=50)

    assert answer.choices[0].message.content == "The sea is wide."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 12
    assert answer.usage.prompt_tokens_details.cached_tokens == 4
    assert answer.usage.completion_tokens == 5
    assert provider.got[0].path == ("/v1/messages" if model == "claude" else "/v1/chat/completions")
    assert provider.got[0].body["model"] == "their-model"


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("usage", [True, False])
async def test_openai_client_gets_a_stream(place, model, usage):
    world, _ = place
    options = {"stream_options": {"include_usage": True}} if usage else {}

    stream = await chat(world).chat.completions.create(model=model, messages=HELLO, stream=True, **options)
    chunks = [chunk async for chunk in stream]

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == fakes.TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage.prompt_tokens for chunk in chunks if chunk.usage] == ([12] if usage else [])


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_openai_client_gets_a_tool_call(place, model, streamed):
    world, _ = place
    asked = {"model": model, "messages": HELLO, "tools": [TOOL]}

    if streamed:
        async with chat(world).chat.completions.stream(**asked) as stream:
            async for _event in stream:
                pass
            answer = await stream.get_final_completion()
    else:
        answer = await chat(world).chat.completions.create(**asked)

    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Oslo"})
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_anthropic_client_gets_an_answer(place, model):
    world, provider = place

    answer = await messages(world).messages.create(model=model, messages=HELLO, max_tokens=50)

    assert answer.content[0].text == "The sea is wide."
    assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (8, 4, 5)
    assert provider.got[0].path == ("/v1/messages" if model == "claude" else "/v1/chat/completions")


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("tools", [True, False])
async def test_anthropic_client_gets_a_stream(place, model, tools):
    world, _ = place
    given = {"tools": [{"name": "weather", "input_schema": TOOL["function"]["parameters"]}]} if tools else {}

    async with messages(world).messages.stream(model=model, messages=HELLO, max_tokens=50, **given) as stream:
        async for _event in stream:
            pass
        answer = await stream.get_final_message()

    if tools:
        assert answer.content[0].input == {"city": "Oslo"}
        assert answer.stop_reason == "tool_use"
    else:
        assert answer.content[0].text == "The sea is wide."
        assert answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (8, 4, 5)


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_what_was_used_is_settled(place, model, streamed, path):
    world, _ = place
    name = world.new_id()

    await world.send(path, model=model, stream=streamed, headers={"x-request-id": name})

    decision = await world.decision(name)
    assert decision["target"] == f"provider/default/{'openai' if model == 'gpt' else 'anthropic'}"
    assert decision["end"]["end"] == "complete"
    assert decision["end"]["served"].startswith("localhost:")
    outcome = decision["end"]["outcome"]
    assert [outcome[name] for name in ("prompt_tokens", "completion_tokens", "cached_tokens")] == [12, 5, 4]


async def test_nothing_of_the_client_but_its_words_reaches_the_provider(place):
    world, provider = place
    own = {
        "authorization": "Bearer sk-clients-own",
        "cookie": "a=b",
        "x-team": "red",
        "user-agent": "me",
        "x-api-key": "k",
    }

    await world.send("/v1/chat/completions", model="gpt", headers={**own, "traceparent": "00-1-2-01"})
    await world.send("/v1/messages", model="claude", headers={**own, "anthropic-beta": "some-2025"})

    first, second = (got.headers for got in provider.got)
    assert first["authorization"] == f"Bearer {fakes.KEY}"
    assert first["openai-organization"] == "org-1"
    assert first["host"] == f"localhost:{provider.port}"
    assert first["traceparent"] == "00-1-2-01"
    assert set(first) <= {
        "host", "authorization", "openai-organization", "content-type", "content-length", "traceparent", "user-agent",
        "x-request-id", "accept",
    }  # fmt: skip
    assert second["x-api-key"] == fakes.KEY
    assert second["anthropic-version"] == "2023-06-01"
    assert second["anthropic-beta"] == "some-2025"
    assert "authorization" not in second


async def test_nothing_of_the_gateways_account_reaches_the_client(place):
    world, provider = place

    async def behave(_request, got):
        headers = {
            "x-ratelimit-remaining-tokens": "7",
            "openai-organization": "org",
            "request-id": "r",
            "set-cookie": "a=b",
        }
        return aiohttp.web.json_response(fakes.chat_answer(got.body), headers=headers)

    provider.behave = behave
    answer = await world.send("/v1/chat/completions", model="gpt")

    assert answer.headers["request-id"] == "r"
    assert not {"x-ratelimit-remaining-tokens", "openai-organization", "set-cookie"} & {
        k.lower() for k in answer.headers
    }


async def test_a_field_that_cannot_be_translated_is_named(place):
    world, provider = place

    with pytest.raises(openai.BadRequestError) as refused:
        await chat(world).chat.completions.create(model="claude", messages=HELLO, n=2)
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        await messages(world).messages.create(
            model="gpt", messages=HELLO, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024}
        )

    assert refused.value.param == "n"
    assert not provider.got


async def test_an_api_that_the_provider_does_not_know_is_refused(place):
    world, provider = place

    answer = await world.send("/v1/completions", model="claude")

    assert answer.status == 400
    assert "/v1/chat/completions" in answer.error["message"]
    assert not provider.got


async def test_a_long_prompt_arrives_whole(place):
    world, provider = place
    text = "sea " * 500_000

    await chat(world).chat.completions.create(model="claude", messages=[{"role": "user", "content": text}])

    assert provider.got[0].body["messages"][0]["content"][0]["text"] == text


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_a_long_answer_arrives_whole(place, model):
    world, provider = place
    text = "sea " * 2_000_000

    async def behave(_request, got):
        if model == "claude":
            content = [{"type": "text", "text": text}]
            return aiohttp.web.json_response(fakes.messages_answer(got.body) | {"content": content})
        answer = fakes.chat_answer(got.body)
        answer["choices"][0]["message"]["content"] = text
        return aiohttp.web.json_response(answer)

    provider.behave = behave
    answer = await chat(world).chat.completions.create(model=model, messages=HELLO)

    assert answer.choices[0].message.content == text


@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_a_fast_provider_waits_for_a_slow_client(place, model):
    world, provider = place
    pids = world.stack.pids()

    async def behave(request, got):
        events = fakes.messages_events(got.body) if model == "claude" else fakes.chat_events(got.body)
        words = [event for event in events if b"sea " in event]
        at = events.index(words[0])
        long = words[0].replace(b"sea ", b"sea " * 5000)
        return await fakes.streamed(request, [*events[:at], *[long] * 400, *events[at + 1 :]])

    provider.behave = behave
    size = 0
    body = {"model": model, "messages": HELLO, "stream": True}
    async with world.http.post(world.url + CHAT, json=body) as answer:
        await asyncio.sleep(0.5)
        async for piece in answer.content.iter_chunked(1 << 16):
            size += len(piece)
            await asyncio.sleep(0)

    assert size > 400 * 20_000
    assert piece.endswith(b"data: [DONE]\n\n")
    assert world.stack.pids() == pids


async def test_many_streams_at_once_are_kept_apart(place):
    world, provider = place

    async def behave(request, got):
        word = got.body["messages"][0]["content"][0]["text"]
        events = fakes.messages_events(got.body)
        return await fakes.streamed(request, [event.replace(b"sea ", word.encode()) for event in events])

    provider.behave = behave

    async def ask(number):
        asked = [{"role": "user", "content": f"<{number}>"}]
        stream = await chat(world).chat.completions.create(model="claude", messages=asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    told = await asyncio.gather(*(ask(number) for number in range(40)))

    assert told == [f"The <{number}>is wide." for number in range(40)]


async def test_tries_are_counted_by_what_the_provider_answered(place):
    world, provider = place
    await world.send(CHAT, model="claude")
    before = await world.metrics()
    provider.key = "another"

    await world.send(CHAT, model="claude")
    provider.key = fakes.KEY

    after = await world.metrics()
    refused = "matrixinfer_provider_tries_total{provider=default/anthropic,status=401}"
    assert after[refused] == before.get(refused, 0) + 1
    assert before["matrixinfer_provider_tries_total{provider=default/anthropic,status=200}"] > 0


async def test_a_decision_is_explained(place):
    world, _ = place
    name = world.new_id()
    await world.send(CHAT, model="claude", headers={"x-request-id": name})
    await world.decision(name)

    command = (sys.executable, "-m", "matrixinfer", "explain", "--admin", world.stack.admin_url, name)
    explain = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await explain.communicate()
    async with world.http.get(f"{world.stack.admin_url}/routes") as answer:
        shown = (await answer.json())["providers"]["default/anthropic"]

    assert b"claude -> provider/default/anthropic as their-model" in told
    assert b"an external provider" in told
    assert (shown["spec"]["providerType"], shown["unmet"]) == ("Anthropic", None)


async def test_an_answer_over_the_limit_is_refused_and_harms_nobody(place):
    world, provider = place
    pids = world.stack.pids()

    async def behave(_request, got):
        content = [{"type": "text", "text": "x" * (33 << 20)}]
        return aiohttp.web.json_response(fakes.messages_answer(got.body) | {"content": content})

    provider.behave = behave
    answer = await world.send(CHAT, model="claude")

    assert (answer.status, answer.error["code"]) == (502, "answer_too_large")
    assert world.stack.pids() == pids
