"""Engines that die, refuse, hang, fail or talk garbage: who notices, and that everything is accounted for once."""

import asyncio
import json
import os
import signal

import aiohttp
import anthropic
import openai
import pytest
import pytest_asyncio

from tests.e2e.conftest import ENGINES
from tests.e2e.stack import CHAT, COMPLETIONS, MESSAGES, a_body, events, say
from tests.e2e.traffic import added, counted, once_each, under_load
from tests.e2e.wire import exchanged_h2
from tests.local.waiting import eventually, eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def healed(world):
    yield
    await eventually_async(lambda: all_serve(world))


async def all_serve(world):
    """Heal; tell whether every engine is listed as ready and none is avoided any more."""
    try:
        await world.heal()
    except aiohttp.ClientError:
        return False
    async with world.http.get(f"{world.stack.admin_url}/endpoints") as answer:
        listed = (await answer.json())["endpoints"]
    return len(listed) == len(ENGINES) and all(one["ready"] and not one["avoided_for_s"] for one in listed)


async def many(world, count=24, **fields):
    """Statuses of that many requests, eight at a time."""
    gate = asyncio.Semaphore(8)

    async def one():
        async with gate:
            return await world.send(prompt=world.new_id(), **fields)

    return await asyncio.gather(*(one() for _ in range(count)))


# ---- killed


async def test_an_engine_killed_under_load_fails_no_request_that_had_not_begun_to_stream(world):
    before = await counted(world)
    async with under_load(world, rate=60) as traffic:
        for name in ("demo-1", "demo-3"):
            await eventually_async(lambda name=name: busy(world, name))
            pid = world.kill(name)
            await eventually(
                lambda name=name, pid=pid: world.stack.pids().get(f"default/{name}/engine") not in (None, pid)
            )
            await eventually_async(lambda name=name: gets_traffic(world, name))

    say(f"{len(traffic.samples)} requests, {len(traffic.broken())} streams broken by two kills")
    assert traffic.failed() == []
    assert all(error_event(sample.body) for sample in traffic.broken())
    assert await added(world, before) == once_each(len(traffic.samples))


async def busy(world, name):
    """Whether several requests are with this engine."""
    address = (await world.engines())[name]
    async with world.http.get(f"http://{address}/sim/state") as answer:
        return (await answer.json())["running"] >= 3


async def gets_traffic(world, name):
    return await world.served(name) >= 10


def error_event(body):
    """The error in the last event of an OpenAI stream, None if it is something else."""
    last = json.loads(events(body)[-1])
    return last.get("error") if last.get("error", {}).get("code") == "stream_interrupted" else None


async def test_a_request_that_is_being_computed_when_its_engine_is_killed_is_served_by_another(world):
    request_id = world.new_id()
    asking = asyncio.create_task(world.send(max_tokens=200, headers={"x-request-id": request_id}))
    name = await holder(world, request_id)
    await eventually_async(lambda: at_work(world, name))

    world.kill(name)

    answer = await asking
    decision = await world.decision(request_id)
    assert (answer.status, answer.json["usage"]["completion_tokens"]) == (200, 200)
    assert decision["end"]["end"] == "complete"
    assert decision["end"]["served"] == decision["endpoints"][1]
    assert decision["end"]["failed"] == [decision["endpoints"][0]]


async def holder(world, request_id):
    """The pod that the picker chose, as soon as it has."""
    found = {}

    async def decided():
        async with world.http.get(f"{world.stack.admin_url}/decisions/{request_id}") as answer:
            found.update(await answer.json(content_type=None))
            return answer.status == 200

    await eventually_async(decided)
    return next(name for name, address in (await world.engines()).items() if address == found["endpoints"][0])


async def at_work(world, name):
    address = (await world.engines())[name]
    async with world.http.get(f"http://{address}/sim/state") as answer:
        return (await answer.json())["running"] > 0


# ---- killed mid-stream


async def interrupted(world, path, request_id):
    """Bytes of a stream whose engine is killed after it has begun."""
    body = b""
    content = {"messages": [{"role": "user", "content": request_id}]} if path != COMPLETIONS else {"prompt": request_id}
    given = {"model": "demo", "max_tokens": 3000, "stream": True} | content
    async with world.http.post(world.url + path, json=given, headers={"x-request-id": request_id}) as answer:
        assert answer.status == 200
        try:
            async for part in answer.content.iter_any():
                killed = body.count(b"\n\n") >= 5
                body += part
                if not killed and body.count(b"\n\n") >= 5:
                    world.kill(await holder(world, request_id))
        except Exception as error:  # noqa: BLE001 - how the end of the stream looks is not what is asked here
            say(f"{path}: the stream ended with {error!r}")
    return body


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
async def test_an_engine_killed_mid_stream_gives_the_client_an_error_event_and_one_settlement(world, path):
    before = await counted(world)
    request_id = world.new_id()

    body = await interrupted(world, path, request_id)

    got = [json.loads(data) for data in events(body)]
    tokens = sum(
        bool(choice.get("text") or choice.get("delta", {}).get("content"))
        for event in got
        for choice in event.get("choices", ())
    )
    decision = await world.decision(request_id)
    outcome = decision["end"]["outcome"]
    say(f"{tokens} tokens seen, {outcome['completion_tokens']} charged")
    assert decision["end"]["end"] == "failed"
    assert decision["end"]["failed"] == [decision["endpoints"][0]]
    assert (outcome["prompt_tokens"] > 0, outcome["completion_tokens"]) == (True, tokens)
    assert await added(world, before) == once_each(1)
    assert got[-1]["error"]["code"] == "stream_interrupted"
    assert set(got[-1]["error"]) == {"message", "type", "param", "code"}
    assert body.endswith(b"\n\n")


async def test_an_engine_killed_mid_message_gives_an_anthropic_client_an_error_event_and_one_settlement(world):
    before = await counted(world)
    request_id = world.new_id()

    body = await interrupted(world, MESSAGES, request_id)

    assert (await world.decision(request_id))["end"]["end"] == "failed"
    assert await added(world, before) == once_each(1)
    kind, data = body.decode().strip().rpartition("\n\n")[2].split("\n")
    assert kind == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"


async def killing(world, stream, request_id):
    """Read the stream to its end; its engine is killed after some of it."""
    got = 0
    async for _ in stream:
        got += 1
        if got == 5:
            world.kill(await holder(world, request_id))


async def test_the_openai_client_raises_when_an_engine_is_killed_mid_stream(world):
    client = openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="none", max_retries=0)
    request_id = world.new_id()
    stream = await client.completions.create(
        model="demo", prompt=request_id, max_tokens=3000, stream=True, extra_headers={"x-request-id": request_id}
    )

    with pytest.raises(openai.APIError) as raised:
        await killing(world, stream, request_id)

    await client.close()
    assert raised.value.code == "stream_interrupted"


async def test_the_anthropic_client_raises_when_an_engine_is_killed_mid_stream(world):
    client = anthropic.AsyncAnthropic(base_url=world.url, api_key="none", max_retries=0)
    request_id = world.new_id()
    stream = await client.messages.create(
        model="demo",
        max_tokens=3000,
        stream=True,
        messages=[{"role": "user", "content": request_id}],
        extra_headers={"x-request-id": request_id},
    )

    with pytest.raises(anthropic.APIError, match="The engine stopped before the answer was complete"):
        await killing(world, stream, request_id)

    await client.close()


async def test_an_http_2_client_gets_the_error_event_as_well(world):
    for name in ENGINES:
        await world.fail(name, "die-mid-stream", chunks=3, count=1)

    [answer] = await exchanged_h2(
        world.address, json.dumps(a_body(stream=True, max_tokens=9)).encode(), path=COMPLETIONS
    )

    assert answer.status == 200
    assert len(events(answer.body)) == 4
    assert error_event(answer.body)["type"] == "upstream_error"


async def test_an_engine_that_dies_in_the_middle_of_a_plain_answer_is_settled_once_and_the_client_sees_it_cut(world):
    before = await counted(world)
    for name in ENGINES:
        await world.fail(name, "die-mid-stream", count=1)
    request_id = world.new_id()

    answer = await world.send(headers={"x-request-id": request_id})

    assert (answer.status, answer.broken) == (200, True)
    assert (await world.decision(request_id))["end"]["end"] == "failed"
    assert await added(world, before) == once_each(1)


# ---- not killed, but no better


async def failed_by(world, name, mode):
    """How many requests the engine has failed in this way."""
    address = (await world.engines())[name]
    async with world.http.get(f"http://{address}/sim/requests?since=999999999") as answer:
        return (await answer.json())["totals"]["ends"].get(f"failed:{mode}", 0)


async def test_an_engine_that_refuses_connections_fails_no_request(world):
    await world.fail("demo-0", "refuse", seconds=3)

    answers = await many(world, 40)

    assert {answer.status for answer in answers} == {200}
    attempts = await asyncio.gather(*(world.decision(answer.headers["x-request-id"]) for answer in answers))
    assert any(decision["end"]["failed"] for decision in attempts)


@pytest.mark.parametrize(
    ("mode", "stream", "name"),
    [("503", False, "demo-0"), ("503", True, "demo-1"), ("reset", False, "demo-2"), ("reset", True, "demo-3")],
)
async def test_an_engine_that_fails_before_the_first_byte_fails_no_request(world, mode, stream, name):
    before = await failed_by(world, name, mode)
    await world.fail(name, mode)

    answers = await many(world, stream=stream)

    assert {answer.status for answer in answers} == {200}
    assert all(b"[DONE]" in answer.body for answer in answers) is stream
    assert await failed_by(world, name, mode) > before


async def test_an_engine_that_hangs_fails_no_request_of_a_model_server_with_a_timeout(world):
    await world.fail("demo-0", "hang")

    answers = await many(world, 16, model="hurried")

    assert {answer.status for answer in answers} == {200}


async def test_an_engine_that_is_frozen_fails_no_request_of_a_model_server_with_a_timeout(world):
    pid = world.pid("demo-1")
    os.kill(pid, signal.SIGSTOP)
    try:
        answers = await many(world, 16, model="hurried")
    finally:
        os.kill(pid, signal.SIGCONT)

    assert {answer.status for answer in answers} == {200}


async def test_an_engine_that_says_it_is_unhealthy_gets_nothing_until_it_is_well_again(world):
    await world.fail("demo-3", "unhealthy")
    await eventually_async(lambda: not_ready(world, 1))
    before = await world.served("demo-3")
    answers = await many(world)
    during = await world.served("demo-3")
    await world.heal()
    await world.routed("demo-3")

    assert {answer.status for answer in answers} == {200}
    assert during == before


async def not_ready(world, count):
    async with world.http.get(f"{world.stack.admin_url}/endpoints") as answer:
        return sum(not one["ready"] for one in (await answer.json())["endpoints"]) == count


async def test_engines_that_all_hang_are_a_504_that_says_so(world):
    before = await counted(world)
    for name in ENGINES:
        await world.fail(name, "hang")

    answer = await world.send(model="hurried")

    assert (answer.status, answer.error["type"], answer.error["code"]) == (504, "timeout_error", "engine_timeout")
    assert answer.headers["x-matrixinfer-reason"] == "engine-timeout"
    assert await added(world, before) == once_each(1)


async def test_engines_that_all_answer_503_are_a_503_and_recover(world):
    for name in ENGINES:
        await world.fail(name, "503")

    answers = await many(world, 8)
    await world.heal()

    assert {answer.status for answer in answers} == {503}
    assert all(answer.error["message"] for answer in answers)
    await eventually_async(lambda: serves(world))


async def test_engines_that_all_refuse_are_a_503_with_retry_after(world):
    for name in ENGINES:
        await world.fail(name, "refuse", seconds=1.5)

    answer = await world.send()

    assert (answer.status, answer.error["type"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"] == "1"
    await eventually_async(lambda: serves(world))


async def serves(world):
    return (await world.send()).status == 200


async def test_a_500_of_an_engine_passes_untouched_and_is_not_tried_again(world):
    for name in ENGINES:
        await world.fail(name, "500")
    address = (await world.engines())["demo-0"]
    async with world.http.post(f"http://{address}{COMPLETIONS}", json={"model": "demo", "prompt": "hi"}) as direct:
        expected = await direct.read()
    request_id = world.new_id()

    answer = await world.send(headers={"x-request-id": request_id})

    assert (answer.status, answer.body) == (500, expected)
    outcome = (await world.decision(request_id))["end"]["outcome"]
    assert (outcome["status"], outcome["attempts"]) == (500, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_garbage_of_an_engine_reaches_the_client_and_is_settled_once(world, stream):
    before = await counted(world)
    for name in ENGINES:
        await world.fail(name, "garbage")

    answers = await many(world, 8, stream=stream)

    assert {answer.status for answer in answers} == {200}
    assert all(answer.body and not answer.broken for answer in answers)
    assert await added(world, before) == once_each(8)
