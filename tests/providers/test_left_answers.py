"""Clients that leave answers of external providers, through a real Envoy: what they are charged is what was made by then."""

import asyncio
import json
import time
from contextlib import suppress

import pytest
import pytest_asyncio
from aiohttp import web

from tests.e2e.stack import CHAT, MESSAGES, running
from tests.local.waiting import eventually_async
from tests.providers import fakes
from tests.providers.town import a_provider, a_route, a_secret, outside

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
TOKEN_S = 0.01
LIMIT = {"unit": "month", "inputTokensPerUnit": 100_000_000, "outputTokensPerUnit": 100_000_000}


class Pace:
    """A provider that makes a token every TOKEN_S, until it has made all of them or is left."""

    def __init__(self):
        self.made = []  # tokens of each answer, at its end

    async def behave(self, request, got):
        began = time.monotonic()
        messages = request.path.endswith("/messages")
        stream = await self._begin(request, got) if got.body.get("stream") else None
        made, most = 0, got.body.get("max_tokens") or got.body["max_completion_tokens"]
        with suppress(ConnectionResetError):
            while made < most and request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(TOKEN_S)
                made = min(int((time.monotonic() - began) / TOKEN_S), most)
                if stream is not None:
                    await stream.write(word(got.body, messages=messages))
        self.made.append(made)
        if stream is not None:
            return stream
        answer = fakes.messages_answer(got.body) if messages else fakes.chat_answer(got.body)
        name = "output_tokens" if messages else "completion_tokens"
        return web.json_response(answer | {"usage": answer["usage"] | {name: made}})

    async def _begin(self, request, got):
        events = fakes.messages_events(got.body)[:3] if request.path.endswith("/messages") else ()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        return response


def word(body, *, messages):
    events = fakes.messages_events(body) if messages else fakes.chat_events(body)
    return next(event for event in events if b"sea " in event)


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
            a_route("gpt", outside("openai"), rateLimit=LIMIT),
            a_route("claude", outside("anthropic"), rateLimit=LIMIT),
        ) as world,
    ):
        yield world, provider


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("model", ["gpt", "claude"])
async def test_an_answer_that_is_left_is_charged_what_the_provider_made_by_then(town, model, path, stream):
    world, provider = town
    pace = Pace()
    provider.behave = pace.behave
    whole = await world.send(path, model=model, max_tokens=50)
    name = world.new_id()
    body = {"model": model, "max_tokens": 4000, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"x-request-id": name, "content-type": "application/json"}
    asking = asyncio.ensure_future(read(world.http.post(world.url + path, data=json.dumps(body), headers=headers)))
    await asyncio.wait([asking], timeout=0.8)
    asking.cancel()

    async def ended():
        return len(pace.made) == 2

    await eventually_async(ended)
    charged = (await world.decision(name))["end"]["charged"]
    assert (whole.status, pace.made[0]) == (200, 50)
    assert charged["by"] == "estimate"
    assert charged["input_tokens"] > 0
    assert charged["output_tokens"] == pytest.approx(pace.made[1], rel=0.25)


async def read(asked):
    async with asked as answer:
        async for _ in answer.content.iter_any():
            pass
