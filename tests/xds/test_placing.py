"""Real Envoy places requests where the picker says, and goes on when that fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from controllers import ir
from matrixinfer.api import dataplane
from tests.xds.stack import Immediate, answer_json, demo, metadata, running, stream

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with running() as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(stack):
    stack.renew()
    stack.pick(0, 1, 2)
    return stack


def served_by(stack):
    return [number for number, engine in enumerate(stack.engines) if engine.requests]


async def test_the_first_of_the_list_answers(stack):
    stack.pick(2, 0)

    answer = await stack.envoy.request()

    assert (answer.status, answer.json) == (200, {"ok": True})
    assert served_by(stack) == [2]


async def test_engines_get_no_header_that_is_between_envoy_and_the_picker(stack):
    await stack.envoy.request(x_matrixinfer_explain="1", x_matrixinfer_foo="2", x_envoy_retry_on="5xx")

    (request,) = stack.engines[0].requests
    assert not [name for name in request.headers if name.startswith(("x-matrixinfer", "x-gateway", "x-envoy"))]


async def test_the_picker_sees_no_header_that_is_not_the_clients_to_send_except_explain(stack):
    await stack.envoy.request(
        x_matrixinfer_explain="1",
        x_matrixinfer_explai="2",
        x_matrixinfer_explained="3",
        x_matrixinfer_target="default/other",
        x_gateway_destination_endpoint="10.0.0.1:80",
        x_gateway_destination_endpoint_subset="10.0.0.1:80",
    )

    headers, _ = stack.picker.seen[-1]
    assert headers["x-matrixinfer-explain"] == "1"
    assert [name for name in headers if name.startswith(("x-matrixinfer", "x-gateway"))] == ["x-matrixinfer-explain"]


async def test_an_engine_that_refuses_connections_is_passed_over(stack):
    await stack.engines[0].stop()
    stack.pick(0, 1)

    answer = await stack.envoy.request()

    await stack.engines[0].start()
    assert answer.status == 200
    assert served_by(stack) == [1]


async def test_an_engine_that_answers_503_is_passed_over(stack):
    stack.engines[0].behave = lambda request, writer: answer_json(request, writer, b"busy", "503 Service Unavailable")
    stack.pick(0, 1, ticket="busy")

    answer = await stack.envoy.request()

    entry = await stack.picker.entry("busy")
    assert answer.status == 200
    assert served_by(stack) == [0, 1]
    assert entry["common_properties"]["upstream_request_attempt_count"] == 2
    assert metadata(entry, dataplane.SERVED_METADATA)["host"] == stack.engines[1].address


async def test_an_engine_that_dies_before_it_answers_is_passed_over(stack):
    async def die(_request, writer):
        writer.transport.abort()

    stack.engines[0].behave = die
    stack.pick(0, 1)

    answer = await stack.envoy.request(body=b'{"model":"demo","prompt":"%s"}' % (b"x" * 300_000))

    assert answer.status == 200
    assert len(stack.engines[1].requests[0].body) == 300_028


@pytest.mark.parametrize(
    "status", ["400 Bad Request", "404 Not Found", "422 Unprocessable", "500 Internal", "429 Many"]
)
async def test_other_errors_of_the_engine_reach_the_client_as_they_are(stack, status):
    body = b'{"error":{"message":"engine says no"}}'
    stack.engines[0].behave = lambda request, writer: answer_json(request, writer, body, status)

    answer = await stack.envoy.request()

    assert (answer.status, answer.body) == (int(status[:3]), body)
    assert served_by(stack) == [0]


async def test_a_changed_body_reaches_the_engine(stack):
    stack.pick(0, body=b'{"model":"other","stream_options":{"include_usage":true}}')

    await stack.envoy.request()

    assert stack.engines[0].requests[0].body == b'{"model":"other","stream_options":{"include_usage":true}}'


async def test_an_answer_of_the_picker_reaches_the_client_as_it_is(stack):
    body = b'{"error":{"message":"slow down","type":"rate_limit_exceeded","param":null,"code":"saturated"}}'
    headers = (("content-type", "application/json"), ("retry-after", "7"), ("x-matrixinfer-reason", "saturated"))
    stack.picker.answer = lambda _headers, _body: Immediate(429, body, headers, "saturated")

    answer = await stack.envoy.request()

    assert (answer.status, answer.body) == (429, body)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["retry-after"], answer.headers["x-matrixinfer-reason"]) == ("7", "saturated")


async def test_a_decision_to_explain_becomes_a_header(stack):
    stack.pick(0, metadata={"decision": '{"winner":"a"}'})
    explained = await stack.envoy.request(x_matrixinfer_explain="1")
    stack.pick(0)
    plain = await stack.envoy.request()

    assert explained.headers["x-matrixinfer-decision"] == '{"winner":"a"}'
    assert "x-matrixinfer-decision" not in plain.headers


async def test_a_request_id_is_kept_or_made(stack):
    kept = await stack.envoy.request(x_request_id="my-own-id")
    made = await stack.envoy.request()

    assert kept.headers["x-request-id"] == "my-own-id"
    assert len(made.headers["x-request-id"]) == 36


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_is_answered_without_the_picker(stack, path):
    before = len(stack.picker.seen)

    answer = await stack.envoy.request("GET", path)

    assert (answer.status, answer.json) == (200, {"status": "ok"})
    assert len(stack.picker.seen) == before


async def test_a_chunked_body_and_expect_continue_and_http_1_0_are_understood(stack):
    chunked = await stack.envoy.raw(
        b"POST /v1/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
        b"expect: 100-continue\r\n\r\n10\r\n" + b'{"model":"demo"}' + b"\r\n0\r\n\r\n"
    )
    old = await stack.envoy.raw(b'POST /v1/completions HTTP/1.0\r\ncontent-length: 16\r\n\r\n{"model":"demo"}')

    assert (chunked.status, old.status) == (200, 200)
    assert [request.body for request in stack.engines[0].requests] == [b'{"model":"demo"}'] * 2


async def test_no_healthy_engine_is_an_openai_error(stack):
    for engine in stack.engines:
        await engine.stop()

    answer = await stack.envoy.request()

    for engine in stack.engines:
        await engine.start()
    assert answer.status == 503
    assert answer.json["error"]["code"] == "engine_failed"
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-matrixinfer-reason"] == "engine-failed"


async def test_an_engine_slower_than_its_timeout_is_passed_over_and_a_long_stream_is_not_cut(stack):
    async def hang(_request, _writer):
        await asyncio.sleep(3600)

    async def trickle(request, writer):
        await stream(b"data: 1\n\n", end=False)(request, writer)
        await asyncio.sleep(0.6)
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    stack.engines[0].behave = hang
    stack.engines[1].behave = trickle
    stack.pick(0, 1)
    before = stack.config
    await stack.apply(backends=(replace(demo(stack.engines), timeout_s=0.3),))

    answer = await stack.envoy.request()

    await stack.envoy.apply(before)
    assert answer.body == b"data: 1\n\ndata: 2\n\n"
    assert served_by(stack) == [0, 1]


async def test_a_target_that_envoy_does_not_know_yet_is_a_503_that_asks_to_try_again(stack):
    stack.pick(0, target="default/new")

    answer = await stack.envoy.request()

    assert answer.status == 503
    assert answer.json["error"]["code"] == "no_endpoints"
    assert answer.headers["retry-after"] == "1"


async def test_bad_http_is_an_openai_error(stack):
    answers = [
        await stack.envoy.raw(b"GET / HTTP/1.1\r\nnot a header\r\n\r\n"),
        await stack.envoy.raw(b"GET / HTTP/1.1\r\n\r\n"),
        await stack.envoy.raw(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 100_000 + b"\r\n\r\n"),
    ]

    assert [answer.status for answer in answers] == [400, 400, 431]
    assert all(answer.json["error"]["type"] == "invalid_request_error" for answer in answers)


async def test_a_body_over_the_limit_is_413():
    async with running(limits=ir.Limits(body_bytes=100_000)) as small:
        small.pick(0)

        over = await small.envoy.request(body=b"x" * 200_000)
        under = await small.envoy.request(body=b"x" * 90_000)

    assert (over.status, under.status) == (413, 200)
    assert over.json["error"]["code"] == "request_too_large"
    assert "100000 bytes" in over.json["error"]["message"]
