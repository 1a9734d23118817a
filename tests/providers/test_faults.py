"""What clients see when a provider fails, or its credential does: never the credential, always an error of their API."""

import asyncio
import json

import aiohttp
import anthropic
import openai
import pytest
import pytest_asyncio
from aiohttp import web

from tests.e2e.stack import CHAT, MESSAGES, a_pod, a_server, an_error, running, write
from tests.local.waiting import eventually_async
from tests.providers import fakes
from tests.providers.town import a_provider, a_route, a_secret, chat, inside, messages, outside
from tests.xds.issuer import Authority

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
HELLO = [{"role": "user", "content": "Hello"}]
BOTH = pytest.mark.parametrize("model", ["gpt", "claude"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def town(tmp_path_factory):
    folder = tmp_path_factory.mktemp("town")
    policy = {"timeout": "2s", "retry": {"attempts": 1, "retryInterval": "10ms"}}
    async with (
        fakes.provider(folder) as provider,
        running(
            folder / "manifests",
            a_secret(provider),
            a_secret(provider, "strangers", **{"ca.crt": Authority().pem.decode()}),
            a_provider(provider, "openai", trafficPolicy=policy),
            a_provider(provider, "anthropic", type="Anthropic", trafficPolicy=policy),
            a_provider(provider, "narrow", maxConcurrentRequests=1),
            a_provider(provider, "nowhere", baseURL="https://localhost:1"),
            a_provider(provider, "stranger", caSecretRef={"name": "strangers", "key": "ca.crt"}),
            a_provider(provider, "public", caSecretRef=None),
            a_provider(provider, "keyless", auth={"secretRef": {"name": "missing", "key": "key"}}),
            a_pod("demo-0", "--max-num-seqs", "1"),
            a_server(),
            a_route("gpt", outside("openai")),
            a_route("claude", outside("anthropic")),
            a_route("narrow", outside("narrow")),
            a_route("nowhere", outside("nowhere")),
            a_route("stranger", outside("stranger")),
            a_route("public", outside("public")),
            a_route("keyless", outside("keyless")),
            a_route("spare", inside("gone", weight=99), inside(), outside("openai", overflow=True)),
            a_route("none-ready", inside("gone"), outside("anthropic", overflow=True)),
            a_route("second", outside("keyless", weight=99), outside("openai", weight=1)),
            a_server("gone", app="nobody"),
        ) as world,
    ):
        yield world, provider


@pytest_asyncio.fixture(loop_scope="module")
async def place(town):
    world, provider = town
    provider.got.clear()
    provider.behave = None
    provider.key = fakes.KEY
    return world, provider


def once(answer):
    """Behave so for the first request only."""
    left = [answer]

    async def behave(request, got):
        return await left.pop()(request, got) if left else None

    return behave


def saying(status, body, **headers):
    async def behave(_request, _got):
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text, headers={"content-type": "application/json", **headers})

    return behave


@BOTH
async def test_a_credential_that_is_refused_is_the_gateways_fault(place, model):
    world, provider = place
    provider.key = "another"

    answer = await world.send(CHAT, model=model)

    assert answer.status == 502
    assert answer.error["code"] == "provider_refused"
    assert answer.headers["x-should-retry"] == "false"
    assert fakes.KEY[:8].encode() not in answer.body
    assert len(provider.got) == 1


async def test_a_refused_credential_is_said_in_the_clients_words(place):
    world, provider = place
    provider.key = "another"

    with pytest.raises(anthropic.InternalServerError) as refused:
        await messages(world).messages.create(model="gpt", messages=HELLO, max_tokens=5)

    assert refused.value.body["type"] == "error"


@BOTH
async def test_a_provider_that_is_busy_for_a_moment_is_asked_again(place, model):
    world, provider = place
    provider.behave = once(saying(429, {"error": {"message": "slow down"}}))

    answer = await world.send(CHAT, model=model)

    assert answer.status == 200
    assert len(provider.got) == 2
    assert provider.got[1].path == provider.got[0].path
    assert provider.got[1].headers.get("x-api-key") == provider.got[0].headers.get("x-api-key")


async def test_a_provider_that_stays_busy_says_when_to_come_back(place):
    world, provider = place
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "too many tokens"}}
    provider.behave = saying(429, error, **{"retry-after": "60"})

    with pytest.raises(openai.RateLimitError) as refused:
        await chat(world).chat.completions.create(model="claude", messages=HELLO)

    assert refused.value.response.headers["retry-after"] == "60"
    assert refused.value.body["message"] == "too many tokens"
    assert len(provider.got) == 2


async def test_an_overloaded_provider_is_unavailable(place):
    world, provider = place
    provider.behave = saying(529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})

    answer = await world.send(CHAT, model="claude")

    assert answer.status == 503
    assert answer.error["message"] == "Overloaded"


@BOTH
async def test_an_error_of_the_request_reaches_the_client(place, model):
    world, provider = place
    provider.behave = saying(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "too long"}})

    with pytest.raises(openai.BadRequestError, match="too long"):
        await chat(world).chat.completions.create(model=model, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match="too long"):
        await messages(world).messages.create(model=model, messages=HELLO, max_tokens=5)


@pytest.mark.parametrize("body", ["", "<html>", "[]", '{"type": "message"}', '{"choices": []}'])
async def test_an_answer_that_is_none_becomes_an_error(place, body):
    world, provider = place
    provider.behave = saying(200, body)

    answer = await world.send(CHAT, model="claude")
    other = await world.send(MESSAGES, model="gpt")

    assert (answer.status, answer.error["code"]) == (502, "provider_garbled")
    assert (other.status, other.json["type"]) == (502, "error")


def cut(how, *, pause_s=0.5):
    """Behave as a stream that ends in its middle: the connection breaks, or no more is said.

    It breaks after `pause_s`: long enough for the picker to have no chunk of it any more, where one stream is under way.
    """

    async def behave(request, got):
        events = fakes.messages_events(got.body) if got.path == MESSAGES else fakes.chat_events(got.body)
        return await fakes.streamed(request, events[:4], cut=how == "broken", pause_s=pause_s)

    return behave


@pytest.mark.parametrize(("model", "path"), [("gpt", CHAT), ("claude", MESSAGES)])
async def test_a_stream_whose_connection_breaks_ends_with_an_error(place, model, path):
    world, provider = place
    provider.behave = cut("broken")

    answer = await world.send(path, model=model, stream=True)

    assert b"error" in answer.body.splitlines()[-2]


@pytest.mark.parametrize(("model", "path"), [("claude", CHAT), ("gpt", MESSAGES)])
async def test_a_translated_stream_whose_connection_breaks_ends_with_an_error_of_the_clients_api(place, model, path):
    world, provider = place
    provider.behave = cut("broken")
    name, before = world.new_id(), await world.settled()

    answer = await world.send(path, model=model, stream=True, headers={"x-request-id": name})

    *_, last = answer.body.strip().split(b"\n\n")
    data = json.loads(last.partition(b"data: ")[2])
    assert answer.status == 200
    if path == CHAT:
        assert an_error(json.dumps(data))["code"] == "stream_interrupted"
    else:
        assert last.startswith(b"event: error\n")
        assert (data["type"], data["error"]["type"]) == ("error", "api_error")
    assert b"The provider stopped before the answer was complete" in last
    assert answer.body.count(b"error") == last.count(b"error")  # it says so once
    ended, after = (await world.decision(name))["end"], await world.settled()
    assert (ended["end"], ended["outcome"]["status"]) == ("failed", 200)
    for event in ("opened", "settled"):
        counted = f"matrixinfer_ledger_total{{event={event}}}"
        assert after[counted] == before[counted] + 1


async def test_clients_libraries_raise_for_a_translated_stream_whose_connection_breaks(place):
    world, provider = place
    provider.behave = cut("broken")

    with pytest.raises(openai.APIError, match="The provider stopped"):
        async for _chunk in await chat(world).chat.completions.create(model="claude", messages=HELLO, stream=True):
            pass
    with pytest.raises(anthropic.APIError, match="The provider stopped"):
        async with messages(world).messages.stream(model="gpt", messages=HELLO, max_tokens=9) as stream:
            await stream.get_final_message()


@pytest.mark.parametrize(("model", "path"), [("claude", CHAT), ("gpt", MESSAGES)])
async def test_translated_streams_that_break_harm_nobody(place, model, path):
    world, provider = place
    provider.behave = cut("broken")
    pids = world.stack.pids()

    answers = await asyncio.gather(*(world.send(path, model=model, stream=True) for _ in range(60)))
    provider.behave = None
    whole = await world.send(path, model=model, stream=True)

    told = [b"The provider stopped" in answer.body for answer in answers]
    assert any(told)
    for one, answer in zip(told, answers, strict=True):
        assert one or answer.broken or answer.status >= 500  # a busy picker had a chunk of it
    assert b"error" not in whole.body
    assert world.stack.pids() == pids


@pytest.mark.parametrize(("model", "path"), [("claude", CHAT), ("gpt", MESSAGES)])
async def test_a_translated_stream_that_breaks_with_a_chunk_never_passes_for_a_whole_one(place, model, path):
    world, provider = place
    provider.behave = cut("broken", pause_s=0)
    before = await world.settled()

    answers = await asyncio.gather(*(world.send(path, model=model, stream=True) for _ in range(60)))

    after = await world.settled()
    told = [b"The provider stopped" in answer.body for answer in answers]
    assert all(one or answer.broken or answer.status >= 500 for one, answer in zip(told, answers, strict=True))
    for event in ("opened", "settled"):
        counted = f"matrixinfer_ledger_total{{event={event}}}"
        assert after[counted] == before[counted] + 60


async def test_a_translated_stream_that_says_no_more_ends_with_an_error(place):
    world, provider = place
    provider.behave = cut("silent")

    with pytest.raises(openai.APIError):
        async for _chunk in await chat(world).chat.completions.create(model="claude", messages=HELLO, stream=True):
            pass
    with pytest.raises(anthropic.APIError):
        async with messages(world).messages.stream(model="gpt", messages=HELLO, max_tokens=9) as stream:
            await stream.get_final_message()


async def test_a_stream_that_says_nonsense_ends_with_an_error(place):
    world, provider = place

    async def garbled(request, _got):
        return await fakes.streamed(request, [b"data: {oops\n\n", b"data: [DONE]\n\n"])

    provider.behave = garbled
    with pytest.raises(openai.APIError):
        async for _chunk in await chat(world).chat.completions.create(model="claude", messages=HELLO, stream=True):
            pass


async def test_a_provider_that_does_not_answer_is_given_up(place):
    world, provider = place

    async def slow(_request, _got):
        await asyncio.sleep(30)

    provider.behave = slow
    answer = await world.send(CHAT, model="claude")

    assert answer.status == 504


async def test_a_provider_gets_no_more_than_it_may(place):
    world, provider = place
    came, go_on = asyncio.Event(), asyncio.Event()

    async def held(_request, _got):
        came.set()
        await go_on.wait()

    provider.behave = held
    first = asyncio.create_task(world.send(CHAT, model="narrow"))
    await came.wait()
    second = await world.send(CHAT, model="narrow")
    go_on.set()

    assert (second.status, second.error["code"]) == (503, "overloaded")
    assert (await first).status == 200


async def test_a_stream_is_cut_when_its_translator_dies_and_the_next_one_serves(place):
    world, provider = place
    go_on = asyncio.Event()

    async def halting(request, got):
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(fakes.messages_events(got.body)):
            if number == 4:
                await go_on.wait()
            await response.write(event)
        return response

    provider.behave = halting
    body = {"model": "claude", "messages": HELLO, "stream": True}
    try:
        async with world.http.post(world.url + CHAT, json=body) as answer:
            await answer.content.readany()
            pid = world.kill("picker")
            go_on.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.content.read()
    finally:
        await eventually_async(lambda: another(world, pid), 30)


async def another(world, pid):
    """Whether a picker has taken the place of the one with this pid, and serves."""
    if world.stack.pids().get("picker") in (None, pid):
        return False
    return (await world.send(CHAT, model="gpt")).status == 200


async def test_a_provider_that_cannot_be_reached_gives_503(place):
    world, _ = place

    answer = await world.send(CHAT, model="nowhere")

    assert answer.status == 503
    assert answer.error["code"] == "engine_failed"


@pytest.mark.parametrize("model", ["stranger", "public"])
async def test_a_certificate_of_strangers_is_not_taken(place, model):
    world, provider = place

    answer = await world.send(CHAT, model=model)

    assert (answer.status, answer.error["code"]) == (503, "engine_failed")
    assert not provider.got


async def test_a_provider_without_its_secret_gets_nothing(place):
    world, provider = place

    answer = await world.send(CHAT, model="keyless")

    assert answer.status == 503
    assert "default/keyless cannot be used: its condition ResolvedRefs" in answer.error["message"]
    assert not provider.got


async def test_a_target_that_can_be_used_takes_the_share_of_one_that_cannot(place):
    world, provider = place

    answer = await world.send(CHAT, model="second")

    assert answer.status == 200
    assert len(provider.got) == 1


async def test_overflow_gets_nothing_while_an_endpoint_is_ready(place):
    world, provider = place

    answers = [await world.send(CHAT, model="spare") for _ in range(5)]

    assert {answer.status for answer in answers} == {200}
    assert not provider.got


async def test_overflow_takes_what_nobody_else_can(place):
    world, provider = place

    answer = await world.send(CHAT, model="none-ready")

    assert answer.status == 200
    assert provider.got[0].path == MESSAGES


async def test_a_new_credential_is_used_without_a_restart(place):
    world, provider = place
    provider.key = "sk-rotated-9876543210"
    pids = world.stack.pids()
    write(world.directory, [a_secret(provider)])

    async def accepted():
        return (await world.send(CHAT, model="gpt")).status == 200

    await eventually_async(accepted, 20)

    assert provider.got[-1].headers["authorization"] == "Bearer sk-rotated-9876543210"
    assert world.stack.pids() == pids
    provider.key = fakes.KEY
    write(world.directory, [a_secret(provider)])
    await eventually_async(accepted, 20)


async def test_the_credential_is_shown_nowhere(place):
    world, provider = place
    await world.send(CHAT, model="gpt", headers={"x-request-id": "shown"})
    decision = await world.decision("shown")

    shown = json.dumps(decision) + json.dumps(await world.metrics())
    for page in ("routes", "config", "decisions"):
        async with world.http.get(f"{world.stack.admin_url}/{page}") as answer:
            shown += await answer.text()
    envoy = next(iter(world.stack._envoy_admins.values()))
    async with envoy.get("http://envoy/config_dump?include_eds") as answer:
        shown += await answer.text()
    logs = "".join(file.read_text() for file in world.stack.logs.iterdir())

    assert provider.key not in shown
    assert provider.key not in logs
