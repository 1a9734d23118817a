"""Where Envoy loads the module, the body comes to the picker along with the headers, and goes nowhere else."""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio

from matrixinfer.api import dataplane
from tests.xds.stack import metadata, running

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\nx-request-id: %s\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack():
    async with running(module=True) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(stack):
    stack.renew()
    stack.pick(0)
    return stack


def logged(entry):
    """What the log has of the body."""
    return entry["common_properties"]["metadata"]["typed_filter_metadata"][dataplane.BODY_METADATA]["value"]


async def test_the_picker_has_the_body_and_a_name_with_the_first_message(stack):
    await stack.envoy.request(body=b'{"model":"demo","n":1}')
    await stack.envoy.request(body=b'{"model":"demo","n":2}')

    names = [told["matrixinfer"]["offered"] for told in stack.picker.told[-2:]]
    assert [body for _, body in stack.picker.seen[-2:]] == [b'{"model":"demo","n":1}', b'{"model":"demo","n":2}']
    assert len(set(names)) == 2
    assert [request.body for request in stack.engines[0].requests] == [body for _, body in stack.picker.seen[-2:]]


async def test_the_log_has_the_name_and_not_the_body(stack):
    stack.pick(0, ticket="along-1")
    body = json.dumps({"model": "demo", "prompt": "secret " * 100}).encode()

    await stack.envoy.request(body=body)
    entry = await stack.picker.entry("along-1")

    assert metadata(entry, dataplane.METADATA)["offered"] == stack.picker.told[-1]["matrixinfer"]["offered"]
    assert logged(entry) == ""


@pytest.mark.parametrize("body", [b"\xff\xfe not UTF-8 \x00", b'{"model":"demo","prompt":"' + b"x" * 16_000 + b'"}'])
async def test_bytes_come_as_they_are(stack, body):
    answer = await stack.envoy.request(body=body)

    assert answer.status == 200
    assert stack.picker.seen[-1][1] == body
    assert stack.engines[0].requests[-1].body == body


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("size", [16_400, 3 << 20])
async def test_large_bodies_are_sent_after_the_headers(stack, framing, size):
    body = b'{"model":"demo","prompt":"' + b"x" * size + b'"}'
    head = HEAD % b"large"
    if framing == "length":
        sent = head + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        sent = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n"

    answer = await stack.envoy.raw(sent)

    assert answer.status == 200
    assert "matrixinfer" not in stack.picker.told[-1]
    assert stack.picker.seen[-1][1] == body
    assert stack.engines[0].requests[-1].body == body


async def test_a_body_in_pieces_with_trailers_comes_whole(stack):
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (b'{"model":', b'"de', b'mo"}'))

    answer = await stack.envoy.raw(
        HEAD % b"pieces" + b"transfer-encoding: chunked\r\ntrailer: t\r\n\r\n" + pieces + b"0\r\nt: 1\r\n\r\n"
    )

    assert answer.status == 200
    assert stack.picker.seen[-1][1] == b'{"model":"demo"}'
    assert stack.engines[0].requests[-1].body == b'{"model":"demo"}'


async def test_a_body_that_the_picker_replaces_has_its_length_and_no_header_of_ours(stack):
    stack.pick(0, body=b'{"model":"another"}')

    await stack.envoy.request(body=b'{"model":"demo"}')

    (request,) = stack.engines[0].requests
    assert request.body == b'{"model":"another"}'
    assert request.headers["content-length"] == "19"
    assert "transfer-encoding" not in request.headers
    assert not [name for name in request.headers if name.startswith("x-matrixinfer")]


@pytest.mark.parametrize("replaced", [None, b'{"model":"another"}'])
@pytest.mark.parametrize("length", ["3", "4000", "-1", "none", "3, 4"])
async def test_a_length_that_the_client_sends_in_our_name_never_acts(stack, length, replaced):
    stack.pick(0, body=replaced)
    body = b'{"model":"demo"}'
    head = HEAD % b"smuggled" + b"%s: %s\r\n" % (dataplane.LENGTH.encode(), length.encode())

    answer = await stack.envoy.raw(head + b"content-length: %d\r\n\r\n" % len(body) + body)

    assert answer.status == 200
    (request,) = stack.engines[0].requests
    assert request.body == (replaced or body)
    assert request.headers["content-length"] == str(len(request.body))
    assert not [name for name in request.headers if name.startswith("x-matrixinfer")]


async def test_a_client_that_leaves_before_the_decision_is_logged_by_the_name_that_was_offered(stack):
    async with stack.picker.frozen():
        reader, writer = await asyncio.open_connection("127.0.0.1", stack.envoy.port)
        writer.write(HEAD % b"leaves" + b'content-length: 16\r\n\r\n{"model":"demo"}')
        await writer.drain()
        await asyncio.sleep(0.1)  # long enough to be with the picker, shorter than its time to answer
        writer.transport.abort()
        entry = await stack.picker.entry(request_id="leaves")

    assert not await reader.read(1)
    assert metadata(entry, dataplane.METADATA)["offered"]
    assert logged(entry) == ""


async def test_without_the_picker_the_body_reaches_an_engine_and_is_not_logged(stack):
    async with stack.picker.frozen():
        answer = await stack.envoy.request(body=b'{"model":"demo"}', x_request_id="alone")
    entry = await stack.picker.entry(request_id="alone")

    assert answer.status == 200
    assert [request.body for engine in stack.engines for request in engine.requests] == [b'{"model":"demo"}']
    assert "ticket" not in metadata(entry, dataplane.METADATA)
    assert logged(entry) == ""
