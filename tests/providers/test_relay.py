"""Requests that their engines have failed, on a whole stack: the provider that overflows gets them, in its words, and once."""

import asyncio
import json
import os
import signal

import aiohttp.web
import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, a_body, a_pod, a_server, events, running, total
from tests.e2e.wire import Wire, exchanged_h2
from tests.local.waiting import eventually, eventually_async
from tests.providers import fakes
from tests.providers.town import a_provider, a_route, a_secret, chat, inside, messages, outside

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
HELLO = [{"role": "user", "content": "Hello"}]
ENGINES = ("demo-0", "other-0")
SPARES = {"gpt": "openai", "claude": "anthropic", "both": "openai"}  # of models that engines serve
LIMIT = {"unit": "month", "requestsPerUnit": 100, "outputTokensPerUnit": 1000}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    async with (
        fakes.provider(folder) as provider,
        running(
            folder / "manifests",
            a_secret(provider),
            a_provider(provider, "openai"),
            a_provider(provider, "anthropic", type="Anthropic"),
            a_pod("demo-0"),
            a_pod("other-0", app="other"),
            a_server(),
            a_server("brief", timeout="3s"),
            a_server("other", app="other"),
            a_route("gpt", inside(), outside("openai", overflow=True)),
            a_route("claude", inside(), outside("anthropic", overflow=True)),
            a_route("both", inside(), inside("other"), outside("openai", overflow=True)),
            a_route("limited", inside(), outside("anthropic", overflow=True), rateLimit=LIMIT),
            a_route("brief", inside("brief"), outside("openai", overflow=True)),
            a_route("lonely", inside()),
            a_route("bounded", inside("other"), outside("openai", overflow=True), trafficPolicy={"idleTimeout": "3s"}),
            a_route("other", inside("other")),
        ) as world,
    ):
        yield world, provider


@pytest_asyncio.fixture(loop_scope="module")
async def place(town):
    """Engines that answer, to which nothing is held against."""
    world, provider = town
    provider.got.clear()
    provider.behave = None
    provider.key = fakes.KEY

    await world.heal()
    for model in ("lonely", "other"):
        assert (await world.send(CHAT, model=model)).status == 200
    await world.settled()
    return world, provider


async def fails(world, mode="503", **how):
    for engine in ENGINES:
        await world.fail(engine, mode, **how)


@pytest.mark.parametrize("model", SPARES)
async def test_what_engines_refuse_is_answered_by_the_provider(place, model):
    world, provider = place
    await fails(world)

    answer = await chat(world).chat.completions.create(model=model, messages=HELLO, max_tokens=50)

    assert answer.choices[0].message.content == "The sea is wide."
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 5)
    (got,) = provider.got
    assert got.body["model"] == "their-model"


@pytest.mark.parametrize("model", SPARES)
@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream_is_the_clients_whoever_speaks_it(place, model, usage):
    world, provider = place
    await fails(world)
    options = {"stream_options": {"include_usage": True}} if usage else {}

    stream = await chat(world).chat.completions.create(model=model, messages=HELLO, stream=True, **options)
    chunks = [chunk async for chunk in stream]

    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert [text for text in texts if text] == fakes.TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert [chunk.usage.prompt_tokens for chunk in chunks if chunk.usage] == ([12] if usage else [])
    if model != "claude":  # engines are asked for usage in every chunk, which OpenAI does not know
        assert provider.got[0].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("model", ["gpt", "claude"])
@pytest.mark.parametrize("streamed", [True, False])
async def test_anthropics_client_is_answered_as_well(place, model, streamed):
    world, provider = place
    await fails(world)
    client = messages(world).messages

    if streamed:
        async with client.stream(model=model, messages=HELLO, max_tokens=50) as stream:
            answer = await stream.get_final_message()
    else:
        answer = await client.create(model=model, messages=HELLO, max_tokens=50)

    assert answer.content[0].text == "The sea is wide."
    assert answer.usage.output_tokens == 5
    assert provider.got[0].path == ("/v1/messages" if model == "claude" else "/v1/chat/completions")


@pytest.mark.parametrize("model", SPARES)
@pytest.mark.parametrize("streamed", [True, False])
async def test_it_is_settled_once_and_as_the_providers(place, model, streamed):
    world, provider = place
    await fails(world)
    before, name = await world.settled(), world.new_id()

    await world.send(CHAT, model=model, stream=streamed, headers={"x-request-id": name})

    decision = await world.decision(name)
    after = await world.settled()
    end, spare = decision["end"], SPARES[model]
    assert decision["target"].startswith("default/")
    assert decision["further"]["envoy://relay/"] == f"provider/default/{spare}"
    assert (end["end"], end["target"], end["served"]) == ("complete", f"provider/default/{spare}", "envoy://relay/")
    assert end["failed"] == decision["endpoints"][:-1]
    assert [end["outcome"][key] for key in ("prompt_tokens", "completion_tokens", "cached_tokens")] == [12, 5, 4]
    assert len(provider.got) == 1

    def added(metric, *parts):
        return total(after, metric, *parts) - total(before, metric, *parts)

    assert added("matrixinfer_ledger_total", "event=opened") == added("matrixinfer_ledger_total", "event=settled") == 1
    assert added("matrixinfer_ledger_total", "event=duplicate") == added("matrixinfer_ledger_total", "stranger") == 0
    assert added("matrixinfer_requests_total") == 1
    assert added("matrixinfer_tokens_total", f"model={model}", "type=input") == 12
    assert added("matrixinfer_provider_failovers_total", f"provider=default/{spare}") == 1


async def test_it_is_charged_once_what_the_provider_counted(place):
    world, _ = place
    await fails(world)
    left, charged = [], []
    for stream in (False, True, False):
        name = world.new_id()
        answer = await world.send(CHAT, model="limited", stream=stream, headers={"x-request-id": name})
        charged.append((await world.decision(name))["end"]["charged"])
        left.append([int(answer.headers[f"x-ratelimit-remaining-{unit}"]) for unit in ("requests", "tokens")])

    assert [(one["by"], one["requests"], one["output_tokens"]) for one in charged] == [("usage", 1, 5)] * 3
    assert left == [[99, 998], [98, 993], [97, 988]]  # less the two tokens that this request may take


async def test_nothing_of_the_client_but_its_words_reaches_the_provider(place):
    world, provider = place
    await fails(world)
    own = {"authorization": "Bearer sk-clients-own", "x-api-key": "k", "cookie": "a=b", "x-team": "red"}

    await world.send(CHAT, model="gpt", headers=own, temperature=0.70)

    (got,) = provider.got
    assert got.headers["authorization"] == f"Bearer {fakes.KEY}"
    assert got.headers["host"] == f"localhost:{provider.port}"
    assert set(got.headers) <= {
        "host", "authorization", "content-type", "content-length", "user-agent", "x-request-id", "accept",
    }  # fmt: skip
    assert got.body == {"model": "their-model", "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}],
                        "temperature": 0.7}  # fmt: skip


@pytest.mark.parametrize("expects", [False, True])
async def test_clients_see_nothing_of_the_relay(place, expects):
    world, provider = place
    await fails(world)
    body = json.dumps(a_body(CHAT, model="gpt")).encode()
    asked = "expect: 100-continue\r\n" if expects else ""
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{asked}\r\n"

    async with Wire(world.address) as wire:
        await wire.send(head.encode() + body)
        answer = await wire.receive()
    (second,) = await exchanged_h2(world.address, body, path=CHAT)

    assert wire.interim == ([100] if expects else [])
    assert [answer.json["model"], second.json["model"]] == ["their-model", "their-model"]
    assert not [name for name in (*answer.headers, *second.headers) if "relay" in name or "target" in name]
    assert len(provider.got) == 2


async def test_an_engine_that_is_gone_or_silent_is_passed_over_as_well(place):
    world, provider = place

    await fails(world, "reset")
    reset = await world.send(CHAT, model="gpt")
    await world.heal()
    await fails(world, "hang")
    hung = await world.send(CHAT, model="brief")

    assert [reset.json["model"], hung.json["model"]] == ["their-model", "their-model"]
    assert len(provider.got) == 2


async def test_no_request_is_lost_when_the_only_engine_is_killed(place):
    world, provider = place
    killed = asyncio.Event()
    pid = world.pid("demo-0")

    async def ask():
        answers = []
        while len(answers) < 10 or not (killed.is_set() and provider.got):
            answers.append(await world.send(CHAT, model="gpt", max_tokens=20))
        return answers

    asking = [asyncio.create_task(ask()) for _ in range(4)]
    await eventually_async(lambda: busy(world), 30)
    world.kill("demo-0")
    killed.set()
    answers = [answer for task in asking for answer in await task]
    await eventually(lambda: world.stack.pids().get("default/demo-0/engine") not in (None, pid), 30)

    assert {answer.status for answer in answers} == {200}
    await eventually_async(lambda: serves(world), 30)


async def serves(world):
    return (await world.send(CHAT, model="lonely")).status == 200


async def test_the_engines_timeout_does_not_bound_the_provider(place):
    world, provider = place
    await fails(world)

    async def slow(_request, _got):
        await asyncio.sleep(4.5)  # the ModelServer allows three

    provider.behave = slow
    answer = await world.send(CHAT, model="brief")

    assert (answer.status, answer.json["model"], len(provider.got)) == (200, "their-model", 1)


async def test_an_engine_that_answers_keeps_the_request(place):
    world, provider = place

    async def taken(**fields):
        answer = await world.send(CHAT, model="gpt", **fields)
        return answer.status, "their-model" in answer.body.decode()

    assert await taken() == (200, False)
    assert await taken(temperature="warm") == (400, False)
    await fails(world, "500", count=1)
    assert await taken() == (500, False)
    await fails(world, "die-mid-stream", chunks=1, count=1)
    broken = await world.send(CHAT, model="gpt", stream=True, max_tokens=20)
    assert "error" in json.loads(events(broken.body)[-1])
    assert not provider.got


@pytest.mark.parametrize("model", SPARES)
@pytest.mark.parametrize("status", [400, 503])
async def test_what_the_provider_refuses_is_the_answer(place, model, status):
    world, provider = place
    await fails(world)

    async def refuse(_request, _got):
        error = {"type": "bad", "message": "not today", "param": None, "code": None}
        return aiohttp.web.json_response({"type": "error", "error": error}, status=status)

    provider.behave = refuse
    answer = await world.send(CHAT, model=model)

    assert (answer.status, answer.error["message"]) == (status, "not today")
    assert len(provider.got) == (2 if status == 503 else 1)  # its own second try; and no engine is asked again


async def test_a_provider_that_cannot_be_reached_is_told(place):
    world, provider = place
    await fails(world)

    async def gone(request, _got):
        request.transport.abort()

    provider.behave = gone
    answer = await world.send(CHAT, model="gpt")

    assert (answer.status, answer.error["code"]) == (503, "engine_failed")
    assert answer.headers["x-matrixinfer-reason"] == "engine-failed"


async def test_a_credential_that_is_refused_is_told_as_ours(place):
    world, provider = place
    await fails(world)
    provider.key = "another"

    answer = await world.send(CHAT, model="claude")

    assert (answer.status, answer.error["code"]) == (502, "provider_refused")


async def test_a_provider_that_breaks_off_ends_the_stream_with_an_error(place):
    world, provider = place
    await fails(world)

    async def behave(request, got):
        return await fakes.streamed(request, fakes.chat_events(got.body)[:3], cut=True, pause_s=0.2)

    provider.behave = behave
    name = world.new_id()
    answer = await world.send(CHAT, model="gpt", stream=True, headers={"x-request-id": name})

    assert "error" in json.loads(events(answer.body)[-1])
    assert (await world.decision(name))["end"]["end"] == "failed"


async def test_what_the_provider_cannot_be_told_stays_with_the_engines(place):
    world, provider = place
    await fails(world)
    name = world.new_id()

    path = await world.send(COMPLETIONS, model="claude", headers={"x-request-id": name})
    words = await world.send(CHAT, model="claude", n=2)

    assert (path.status, path.error["message"]) == (503, "A failure on purpose.")
    assert "further" not in await world.decision(name)
    assert (words.status, words.error["code"]) == (503, "engine_failed")
    assert "n: 2 cannot be asked" in words.error["message"]
    assert not provider.got


async def test_a_clients_word_about_the_relay_is_nothing(place):
    world, provider = place
    forged = {"x-matrixinfer-relay": "t-1", "expect": "100-continue", "x-matrixinfer-target": "provider/default/openai"}
    forged["x-gateway-destination-endpoint"] = "envoy://relay/"

    well = await world.send(CHAT, model="gpt", headers=forged)
    await fails(world)
    lonely = await world.send(CHAT, model="lonely", headers=forged)

    assert (well.status, well.json["model"]) == (200, "demo")
    assert (lonely.status, lonely.error["message"]) == (503, "A failure on purpose.")
    assert not provider.got


async def test_a_long_prompt_arrives_whole(place):
    world, provider = place
    await fails(world)
    text = "sea " * 500_000

    await chat(world).chat.completions.create(model="claude", messages=[{"role": "user", "content": text}])

    assert provider.got[0].body["messages"][0]["content"][0]["text"] == text


async def test_many_at_once_are_kept_apart(place):
    world, provider = place
    await fails(world)

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


@pytest.mark.parametrize("begun", [False, True])
async def test_the_routes_bound_on_silence_holds_for_the_provider_too(place, begun):
    world, provider = place
    await fails(world)

    async def behave(request, got):
        if not begun:
            await asyncio.sleep(30)
        return await fakes.streamed(request, fakes.chat_events(got.body)[:3], pause_s=30)

    provider.behave = behave
    answer = await world.send(CHAT, model="bounded", stream=True)

    if begun:
        assert answer.status == 200
        assert "error" in json.loads(events(answer.body)[-1])
    else:
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")


async def test_a_picker_that_does_not_answer_then_is_told(place):
    world, provider = place
    await fails(world, "hang")  # until the ModelServer's timeout

    asked = asyncio.create_task(world.send(CHAT, model="brief"))
    await eventually_async(lambda: busy(world), 30)
    picker = world.pid("picker")
    os.kill(picker, signal.SIGSTOP)
    try:
        answer = await asked
    finally:
        os.kill(picker, signal.SIGCONT)

    assert (answer.status, answer.error["code"]) == (503, "no_picker")
    assert not provider.got


async def busy(world):
    return await world.open_requests() > 0
