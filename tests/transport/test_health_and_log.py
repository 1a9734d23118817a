"""Health and the access log stream over both transports."""

import asyncio

import pytest
from envoy.service.accesslog.v3 import als_pb2
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from grpc import StatusCode

from extproc.adapters.transport import access_log, health
from tests.transport.services import a_channel, code_of, unary


def named(service):
    return StringValue(value=service).SerializeToString()


def said(answer):
    return health.Health(Int32Value.FromString(answer).value)


@pytest.mark.parametrize("name", ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"])
async def test_readiness_follows_what_is_set_and_liveness_does_not(start, name):
    service = health.HealthService()
    server = await start(service.methods())
    async with a_channel(server.address) as channel:
        before = said(await unary(channel, health.CHECK, named(name)))
        alive = said(await unary(channel, health.CHECK, named("liveness")))
        service.set_ready(ready=True)
        after = said(await unary(channel, health.CHECK, named(name)))

    assert (before, after) == (health.Health.NOT_SERVING, health.Health.SERVING)
    assert alive is health.Health.SERVING


@pytest.mark.parametrize("request_bytes", [named("nobody"), b"\xff\xff"])
async def test_an_unknown_service_is_not_found(start, request_bytes):
    server = await start(health.HealthService().methods())
    async with a_channel(server.address) as channel:
        code, _ = await code_of(unary(channel, health.CHECK, request_bytes))

    assert code is StatusCode.NOT_FOUND


async def test_a_watcher_hears_every_change_and_the_end(start):
    service = health.HealthService()
    server = await start(service.methods())
    async with a_channel(server.address) as channel:
        call = channel.unary_stream(health.WATCH)(named(""))
        first = said(await call.read())
        service.set_ready(ready=True)
        second = said(await call.read())
        stopping = asyncio.ensure_future(server.stop(20))
        third = said(await call.read())
        await asyncio.wait_for(stopping, 15)

    assert [first, second, third] == [health.Health.NOT_SERVING, health.Health.SERVING, health.Health.NOT_SERVING]


def entries(*tickets):
    message = als_pb2.StreamAccessLogsMessage()
    for ticket in tickets:
        entry = message.http_logs.log_entry.add()
        entry.common_properties.metadata.filter_metadata["matrixinfer"].update({"ticket": ticket})
    return message.SerializeToString()


async def test_log_entries_are_settled_as_they_come_and_garbage_is_passed_over(start):
    settled = asyncio.Queue()
    server = await start({access_log.METHOD: access_log.AccessLogService(settled.put_nowait)})
    async with a_channel(server.address) as channel:
        call = channel.stream_unary(access_log.METHOD)()
        await call.write(entries("a", "b"))
        await call.write(b"\xff\xff")
        await call.write(entries("c"))

        tickets = [(await asyncio.wait_for(settled.get(), 10)).ticket for _ in range(3)]
        await call.done_writing()

        assert await call == b""
    assert tickets == ["a", "b", "c"]


async def test_an_open_log_stream_does_not_hold_up_the_end(start):
    settled = asyncio.Queue()
    server = await start({access_log.METHOD: access_log.AccessLogService(settled.put_nowait)})
    async with a_channel(server.address) as channel:
        call = channel.stream_unary(access_log.METHOD)()
        await call.write(entries("a"))
        await asyncio.wait_for(settled.get(), 10)

        await asyncio.wait_for(server.stop(60), 15)

        assert await call == b""


async def test_one_settlement_that_fails_ends_the_stream_and_not_the_server(start):
    def settle(outcome):
        raise ZeroDivisionError(outcome.ticket)

    server = await start({access_log.METHOD: access_log.AccessLogService(settle)})
    async with a_channel(server.address) as channel:
        call = channel.stream_unary(access_log.METHOD)()
        await call.write(entries("a"))
        assert await call.code() is StatusCode.UNKNOWN

        assert await channel.stream_unary(access_log.METHOD)(iter([])) == b""
