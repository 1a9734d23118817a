"""Real Envoy keeps the times and tries of a route, with the picker and without it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time

import pytest
import pytest_asyncio

from controllers import ir
from matrixinfer.api import dataplane
from tests.xds.stack import answer_json, running, stream
from tests.xds.test_handlings import BODY, KEY, a_handling, fails, got, handled, picked

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with running(module=True) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(stack):
    stack.renew()


async def test_the_routes_retries_say_what_is_tried_again_and_how_often(stack):
    await handled(
        stack, a_handling("a", policy=ir.Policy(retry=ir.Retry(3, 0.001, ("connect-failure", "429", "500")))), b={}
    )
    picked(stack, 0)
    for status, tries in (("500 Internal Server Error", 4), ("429 Too Many Requests", 4), ("503 Unavailable", 1)):
        stack.engines[0].requests.clear()
        fails(stack, 0, status=status)
        answer = await stack.envoy.request(body=BODY)
        assert (answer.status, got(stack)[0], answer.body) == (int(status[:3]), tries, b"no")


async def silent(_request, _writer):
    await asyncio.sleep(30)


async def test_the_routes_timeout_bounds_each_try(stack):
    await handled(stack, a_handling("a", "b", together=("a", "b"), policy=ir.Policy(timeout_s=0.3)))
    picked(stack, 0, 1)
    stack.engines[0].behave = silent

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, got(stack)) == (200, [1, 1, 0])


async def test_the_routes_timeout_does_not_end_a_stream_that_has_begun(stack):
    await handled(stack, a_handling("a", policy=ir.Policy(timeout_s=0.3)))
    picked(stack, 0)

    async def slow(request, writer):
        await stream(b"data: 1\n\n", end=False)(request, writer)
        await asyncio.sleep(0.7)
        writer.write(b"0\r\n\r\n")

    stack.engines[0].behave = slow

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, answer.body, answer.cut) == (200, b"data: 1\n\n", False)


async def stalls(request, writer):
    await stream(b"data: 1\n\n", end=False)(request, writer)
    await writer.drain()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(30)


async def ended_for_its_silence(stack, policy, behave, *, after):
    """Ask for a stream that falls silent after these bytes: its end is an error event that says why."""
    await handled(stack, a_handling("a", policy=policy))
    picked(stack, 0, handling=KEY + dataplane.STREAM)
    stack.engines[0].behave = behave
    began = time.monotonic()

    answer = await stack.envoy.request(body=BODY)

    assert time.monotonic() - began < 10
    assert answer.body.startswith(after)
    error = json.loads(answer.body.removeprefix(after).split(b"data: ")[1])["error"]
    assert (error["code"], error["type"], error["param"]) == ("stream_idle", "upstream_error", None)
    assert "silent" in error["message"]


async def test_silence_in_a_stream_ends_it_with_an_error_event(stack):
    await ended_for_its_silence(stack, ir.Policy(idle_s=0.4), stalls, after=b"data: 1\n\n")


@pytest.mark.parametrize(("timeout_s", "idle_s"), [(0.3, 0.5), (0.4, 0.4)])
async def test_silence_ends_a_stream_as_well_that_lasts_longer_than_its_beginning_may_take(stack, timeout_s, idle_s):
    async def begins_and_stalls(request, writer):
        await stream(b"data: 0\n\n", end=False)(request, writer)
        for number in (1, 2):
            await asyncio.sleep(0.25)
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
        await asyncio.sleep(30)

    policy = ir.Policy(timeout_s=timeout_s, idle_s=idle_s)
    await ended_for_its_silence(stack, policy, begins_and_stalls, after=b"data: 0\n\ndata: 1\n\ndata: 2\n\n")


async def test_silence_before_the_first_byte_of_a_stream_is_tried_elsewhere_and_then_a_504(stack):
    await handled(stack, a_handling("a", "b", together=("a", "b"), policy=ir.Policy(idle_s=0.3)))
    picked(stack, 0, 1, handling=KEY + dataplane.STREAM)
    stack.engines[0].behave = silent
    assert (await stack.envoy.request(body=BODY)).status == 200
    stack.engines[1].behave = silent

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, answer.json["error"]["code"]) == (504, "engine_timeout")


async def test_a_stream_whose_chunks_come_in_time_is_not_ended(stack):
    await handled(stack, a_handling("a", policy=ir.Policy(idle_s=0.5)))
    picked(stack, 0, handling=KEY + dataplane.STREAM)

    async def steady(request, writer):
        await stream(b"data: 0\n\n", end=False)(request, writer)
        for number in range(1, 7):
            await asyncio.sleep(0.15)
            writer.write(b"9\r\ndata: %d\n\n\r\n" % number)
        writer.write(b"0\r\n\r\n")

    stack.engines[0].behave = steady

    answer = await stack.envoy.request(body=BODY)

    assert (answer.cut, answer.body.count(b"data: ")) == (False, 7)


async def test_a_plain_answer_may_be_silent_for_longer(stack):
    await handled(stack, a_handling("a", policy=ir.Policy(idle_s=0.2)))
    picked(stack, 0)

    async def slow(request, writer):
        await asyncio.sleep(0.6)
        await answer_json(request, writer)

    stack.engines[0].behave = slow

    assert (await stack.envoy.request(body=BODY)).status == 200


@pytest.mark.parametrize(("on", "tries"), [(("reset",), 2), (("connect-failure", "503"), 1)])
async def test_a_try_that_takes_too_long_counts_as_a_reset(stack, on, tries):
    policy = ir.Policy(timeout_s=0.2, retry=ir.Retry(1, 0.001, on))
    await handled(stack, a_handling("a", policy=policy))
    picked(stack, 0)
    stack.engines[0].behave = silent

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, answer.json["error"]["code"], got(stack)[0]) == (504, "engine_timeout", tries)


async def test_the_routes_times_hold_without_the_picker_as_well(stack):
    await handled(stack)
    rule = ir.Rule((ir.Share("default", "a", 100),), policy=ir.Policy(retry=ir.Retry(2, 0.001, ("500",))))
    await stack.apply(models=(ir.Model("named", (rule,)),))
    stack.picker.answer = lambda _headers, _body: None
    fails(stack, 0, status="500 Internal Server Error")

    answer = await stack.envoy.request(body=b'{"model":"named"}')

    assert (answer.status, got(stack)[0]) == (500, 3)
