"""Real Envoy handles requests as their rule asks: failover to another ModelServer, copies, times and tries of the route."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import replace

import pytest
import pytest_asyncio

from controllers import ir
from matrixinfer.api import dataplane
from tests.xds.issuer import Authority
from tests.xds.stack import Engine, answer_json, running

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

KEY = "0123456789abcdef01"
BODY = b'{"messages": [], "model": "name-of-a", "x": "\xc3\xa9"}'
SPAN = f"{BODY.index(b'name-of-a') - 1}:{len('name-of-a') + 2}"


def a_backend(stack, name, *engines, **more):
    return ir.Backend(
        "default", name, tuple(ir.Endpoint("127.0.0.1", stack.engines[number].port) for number in engines), **more
    )


def a_handling(*targets, **more):
    return ir.Handling(KEY, "default", targets, **more)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["module", "lua"])
async def stack(request):
    async with running(module=request.param == "module") as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def fresh(stack):
    stack.renew()
    await handled(stack, a_handling("a", "b", together=("a", "b")))


async def handled(stack, *handlings, **changes):
    """Engine 0 is of `a`, engine 1 of `b`, engine 2 of `c`."""
    backends = (a_backend(stack, "a", 0), a_backend(stack, "b", 1), a_backend(stack, "c", 2))
    delivery = await stack.apply(
        backends=tuple(replace(one, **changes.get(one.name, {})) for one in backends), handlings=handlings
    )
    assert delivery.refusals == ()


def picked(stack, *engines, handling=KEY, **names):
    """`a` is the target; `names` by engine: b="...", c="..."."""
    known = {stack.engines["abc".index(name)].address: json.dumps(value) for name, value in names.items()}
    stack.pick(
        *engines,
        target="default/a",
        handling=handling,
        names={dataplane.SPAN: SPAN, **known} if known else {},
    )


def fails(stack, *engines, status="503 Service Unavailable"):
    for number in engines:
        stack.engines[number].behave = lambda request, writer: answer_json(request, writer, b"no", status)


def got(stack):
    return [len(engine.requests) for engine in stack.engines]


async def seen(engine, count=1):
    async with asyncio.timeout(5):
        while len(engine.requests) < count:  # noqa: ASYNC110 - a raw engine tells nobody
            await asyncio.sleep(0.01)
    return engine.requests


async def test_a_request_whose_target_fails_is_served_by_the_next_target_of_the_list(stack):
    picked(stack, 0, 1)
    fails(stack, 0)

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, got(stack)) == (200, [1, 1, 0])
    assert stack.engines[1].requests[0].body == BODY


async def test_a_target_that_refuses_connections_is_passed_over(stack):
    picked(stack, 0, 1)
    await stack.engines[0].stop()
    try:
        answer = await stack.envoy.request(body=BODY)
    finally:
        await stack.engines[0].start()

    assert (answer.status, got(stack)) == (200, [0, 1, 0])


@pytest.mark.parametrize("name", ["b", "a-name-that-is-much-longer-than-the-other", 'q"uo\\te', "é"])
async def test_the_next_target_gets_the_name_by_which_it_knows_the_model(stack, name):
    picked(stack, 0, 1, b=name)
    fails(stack, 0)

    answer = await stack.envoy.request(body=BODY)

    assert answer.status == 200
    assert stack.engines[0].requests[0].body == BODY
    (request,) = stack.engines[1].requests
    assert json.loads(request.body) == {"messages": [], "model": name, "x": "é"}
    assert request.headers["content-length"] == str(len(request.body))
    assert request.body.replace(json.dumps(name).encode(), b'"name-of-a"') == BODY


async def test_a_body_of_megabytes_is_renamed_too(stack):
    picked(stack, 0, 1, b="b")
    fails(stack, 0)
    body = BODY[:-1] + b', "prompt": "' + b"x" * 5_000_000 + b'"}'

    answer = await stack.envoy.request(body=body)

    assert answer.status == 200
    assert stack.engines[1].requests[0].body == body.replace(b"name-of-a", b"b")


async def test_without_the_handling_a_request_stays_with_its_target(stack):
    picked(stack, 0, 1, handling="")
    fails(stack, 0)

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, got(stack)[1:]) == (503, [0, 0])


@pytest.mark.parametrize("handling", ["of-tomorrow", KEY + dataplane.ALONE])
async def test_a_handling_that_is_unknown_or_alone_stays_with_its_target(stack, handling):
    picked(stack, 0, 1, handling=handling)

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, got(stack)) == (200, [1, 0, 0])
    fails(stack, 0)
    assert (await stack.envoy.request(body=BODY)).status == 503
    assert got(stack)[1:] == [0, 0]


async def test_without_retries_there_is_no_failover(stack):
    await handled(stack, a_handling("a", "b", together=("a", "b"), policy=ir.Policy(retry=ir.Retry(attempts=0))))
    picked(stack, 0, 1)
    fails(stack, 0)

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, got(stack)) == (503, [1, 0, 0])


async def test_every_engine_of_the_list_is_tried_before_the_client_hears_of_a_failure(stack):
    await handled(stack, a_handling("a", "b", "c", together=("a", "b", "c")))
    picked(stack, 0, 1, 2, b="b", c="c")
    fails(stack, 0, 1, 2)

    answer = await stack.envoy.request(body=BODY)

    assert answer.status == 503
    assert all(got(stack))
    assert {json.loads(request.body)["model"] for request in stack.engines[2].requests} == {"c"}


async def test_a_4xx_is_nobodys_failure(stack):
    picked(stack, 0, 1)
    fails(stack, 0, status="422 Unprocessable Entity")

    answer = await stack.envoy.request(body=BODY)

    assert (answer.status, answer.body, got(stack)) == (422, b"no", [1, 0, 0])


# ---- copies


async def mirrored(stack, percent=100, **more):
    await handled(stack, a_handling("a", mirrors=(ir.Mirror("c", percent),), **more))


async def test_a_copy_goes_to_the_mirror_under_its_name_and_the_client_hears_nothing_of_it(stack):
    await mirrored(stack)
    picked(stack, 0)
    name = dataplane.mirror_name("default", "c")
    stack.picker.answer = lambda _h, _b, pick=stack.picker.answer: replace(
        pick(_h, _b), names={dataplane.SPAN: SPAN, name: '"name-of-c"'}
    )
    fails(stack, 2, status="500 Internal Server Error")

    answer = await stack.envoy.request(body=BODY, authorization="Bearer x")

    (copy,) = await seen(stack.engines[2])
    assert (answer.status, answer.json) == (200, {"ok": True})
    assert copy.body == BODY.replace(b"name-of-a", b"name-of-c")
    assert copy.headers["content-length"] == str(len(copy.body))
    assert copy.headers["host"] == "gateway"
    assert not [name for name in copy.headers if name.startswith(("x-matrixinfer", "x-gateway"))]
    assert stack.engines[0].requests[0].body == BODY


async def test_a_copy_has_the_body_that_the_picker_made_and_keeps_its_name_where_none_is_given(stack):
    await mirrored(stack)
    stack.pick(0, target="default/a", handling=KEY, body=b'{"model":"made","n":1}')

    await stack.envoy.request(body=BODY)

    (copy,) = await seen(stack.engines[2])
    assert copy.body == b'{"model":"made","n":1}'
    assert not [name for name in copy.headers if name.startswith("x-matrixinfer")]


async def test_a_copy_is_made_once_however_often_the_request_is_tried_and_is_not_in_the_access_log(stack):
    await mirrored(stack, together=("a", "b"))
    picked(stack, 0, 1)
    fails(stack, 0)
    stack.picker.log.clear()

    answer = await stack.envoy.request(body=BODY)

    await seen(stack.engines[2])
    await stack.picker.entry("t-1")
    assert (answer.status, got(stack), len(stack.picker.log)) == (200, [1, 1, 1], 1)


async def test_a_mirror_that_is_dead_is_nobodys_failure(stack):
    await mirrored(stack)
    picked(stack, 0)
    await stack.engines[2].stop()
    try:
        answers = [await stack.envoy.request(body=BODY) for _ in range(3)]
    finally:
        await stack.engines[2].start()

    assert {answer.status for answer in answers} == {200}


async def test_a_share_of_the_requests_is_copied(stack):
    await mirrored(stack, percent=25)
    picked(stack, 0)
    gate = asyncio.Semaphore(8)

    async def one():
        async with gate:
            await stack.envoy.request(body=BODY)

    await asyncio.gather(*(one() for _ in range(400)))

    # 400 draws with p = 0.25 have a standard deviation of 8.7.
    await seen(stack.engines[2], 100 - 44)
    assert got(stack)[0] == 400
    assert got(stack)[2] <= 100 + 44


async def test_a_request_that_is_alone_is_not_copied(stack):
    await mirrored(stack)
    picked(stack, 0, handling=KEY + dataplane.ALONE)

    await stack.envoy.request(body=BODY)
    picked(stack, 0)
    await stack.envoy.request(body=BODY)

    await seen(stack.engines[2])
    assert got(stack) == [2, 0, 1]


# ---- odd bodies, odd lists


async def test_a_body_that_came_in_pieces_is_renamed_and_has_a_length(stack):
    picked(stack, 0, 1, b="b")
    fails(stack, 0)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:20], BODY[20:]))

    answer = await stack.envoy.raw(head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")

    (request,) = stack.engines[1].requests
    assert answer.status == 200
    assert request.body == BODY.replace(b"name-of-a", b"b")
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers


async def test_a_name_for_a_place_that_is_not_in_the_body_changes_nothing(stack):
    picked(stack, 0, 1, b="b")
    answered = stack.picker.answer
    stack.picker.answer = lambda h, b: replace(
        answered(h, b), names=answered(h, b).names | {dataplane.SPAN: f"{len(BODY) - 3}:40"}
    )
    fails(stack, 0)

    assert (await stack.envoy.request(body=BODY)).status == 200
    assert stack.engines[1].requests[0].body == BODY


async def test_engines_behind_tls_and_without_stand_in_one_list(stack, tmp_path):
    certificate, key = Authority().issue("engine")
    (tmp_path / "both.pem").write_bytes(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "both.pem")
    secure = Engine()
    await secure.start(tls=context)
    try:
        backends = (
            ir.Backend("default", "a", (ir.Endpoint("127.0.0.1", secure.port),), tls=True),
            stack.config.backends[1],
        )
        await stack.apply(backends=backends)
        picked(stack, 0, 1)
        named = f"{secure.address},{stack.engines[1].address}"
        stack.picker.answer = lambda _h, _b, pick=stack.picker.answer: replace(pick(_h, _b), endpoints=named)
        first = await stack.envoy.request(body=BODY)
        secure.behave = lambda request, writer: answer_json(request, writer, b"no", "503 Service Unavailable")
        second = await stack.envoy.request(body=BODY)
    finally:
        await secure.stop()

    assert (first.status, second.status) == (200, 200)
    assert (len(secure.requests), len(stack.engines[1].requests)) == (2, 1)
