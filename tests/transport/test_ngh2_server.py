"""What only our own HTTP/2 server must hold up against: hostile bytes, silent peers, peers that take too much."""

import asyncio
import contextlib
import gc
import re
import socket
import struct
import weakref

import ngh2
import pytest
from envoy.service.accesslog.v3 import als_pb2
from hypothesis import given
from hypothesis import strategies as st

from extproc.adapters.transport import access_log
from extproc.adapters.transport.calls import Limits, Status, Tls
from extproc.adapters.transport.framing import FramingError, Reassembler, frame
from extproc.adapters.transport.serving import serve
from tests.transport.services import COUNT, ECHO, GROW, QUIET, a_channel, bidi, services, unary

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.fixture
def transport():
    return "ngh2"


async def a_peer(server):
    return await asyncio.open_unix_connection(server.address.removeprefix("unix:"))


async def until_closed(reader):
    with contextlib.suppress(ConnectionError):
        while await asyncio.wait_for(reader.read(65536), 10):
            pass


class Client:
    """A client that decides about every frame itself."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self.http2.initiate_connection({})

    def request(self, path, data=b"", *, end=False, content_type=b"application/grpc", **headers):
        extra = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        stream = self.http2.send_request(
            [
                (b":method", b"POST"),
                (b":scheme", b"http"),
                (b":path", path.encode()),
                (b":authority", b"test"),
                (b"content-type", content_type),
                *extra,
            ]
        )
        if data or end:
            self.http2.send_data(stream, data, end_stream=end)
        self.writer.write(self.http2.data_to_send())
        return stream

    async def refusal_of(self, stream):
        """Return the headers of an answer that is its own end."""
        return dict((await self.end_of(stream)).headers)

    async def end_of(self, stream):
        """Return the event that ends the server's half of a stream."""
        while True:
            data = await asyncio.wait_for(self.reader.read(65536), 10)
            assert data
            self.http2.receive_data(data)
            for event in self.http2.events():
                whole = isinstance(event, ngh2.ResponseReceived) and event.end_stream
                if (whole or isinstance(event, ngh2.TrailersReceived)) and event.stream_id == stream:
                    return event
            self.writer.write(self.http2.data_to_send())


async def a_client(server):
    return Client(*await a_peer(server))


@given(st.binary(max_size=80), st.lists(st.integers(0, 80), max_size=6))
def test_any_cut_of_framed_messages_gives_the_messages(data, cuts):
    messages = [data, b"", data[::-1], b"x"]
    stream = b"".join(frame(message) for message in messages)
    pieces, found = Reassembler(), []

    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in zip(edges, [*edges[1:], len(stream)], strict=True):
        found += pieces.feed(stream[start:end], 1000)

    assert found == messages
    assert pieces.held == 0


@given(st.binary(max_size=60))
def test_any_bytes_are_messages_or_a_framing_error(data):
    pieces = Reassembler()

    with contextlib.suppress(FramingError):
        pieces.feed(data, 1000)
        pieces.feed(data, 1000)


def test_a_declared_size_over_the_limit_is_refused_before_it_is_held():
    pieces = Reassembler()

    with pytest.raises(FramingError) as caught:
        pieces.feed(struct.pack(">BI", 0, 1 << 30), 1000)

    assert caught.value.status is Status.RESOURCE_EXHAUSTED
    assert pieces.held == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + b"\xff" * 100,
        PREFACE + SETTINGS + b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
async def test_garbage_ends_its_connection_and_no_other(server, channel, garbage):
    reader, writer = await a_peer(server)

    writer.write(garbage)
    await until_closed(reader)

    assert await unary(channel, ECHO, b"alive") == b"alive"
    writer.close()


async def test_mutated_connections_crash_nothing(server, channel):
    client = ngh2.Connection(ngh2.Role.CLIENT)
    client.initiate_connection({})
    stream = client.send_request(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", ECHO.encode()),
            (b"content-type", b"application/grpc"),
        ]
    )
    client.send_data(stream, frame(b"x" * 50), end_stream=True)
    good = client.data_to_send()

    for position in range(len(PREFACE), len(good), 2):
        reader, writer = await a_peer(server)
        writer.write(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        writer.write_eof()
        await until_closed(reader)
        writer.close()

    assert await unary(channel, ECHO, b"alive") == b"alive"


async def test_a_request_that_is_no_grpc_is_415(server):
    client = await a_client(server)

    headers = await client.refusal_of(client.request(ECHO, end=True, content_type=b"text/plain"))

    assert headers[b":status"] == b"415"


@pytest.mark.parametrize("written", [b"1", b"x", b"S", b"999999999S", b"-1S"])
async def test_a_timeout_that_cannot_be_read_is_an_invalid_argument(server, written):
    client = await a_client(server)

    headers = await client.refusal_of(client.request(ECHO, grpc_timeout=written))

    assert headers[b"grpc-status"] == b"3"


async def test_a_stream_that_ends_inside_a_message_is_an_internal_error(server, served):
    client = await a_client(server)

    headers = await client.refusal_of(client.request(ECHO, frame(b"x" * 100)[:50], end=True))

    assert headers[b"grpc-status"] == b"13"
    assert served[ECHO].listeners[0].cancels == 1


async def test_a_call_that_is_over_leaves_nothing_to_the_garbage_collector(start, served, channel):
    gc.collect()
    gc.disable()
    try:
        await unary(channel, ECHO, b"x")
        gone = weakref.ref(served[ECHO].listeners.pop())
        await unary(channel, COUNT, b"x")  # by its answer, the call before it is closed

        assert gone() is None
    finally:
        gc.enable()


async def test_unfinished_messages_share_one_bound_and_give_it_back(start, served):
    server = await start(served, limits=Limits(max_held_bytes=10_000))
    client = await a_client(server)
    part = frame(b"x" * 9000)[:8000]

    client.request(QUIET, part)
    await asyncio.wait_for(served[QUIET].opened.wait(), 10)
    refused = await client.refusal_of(client.request(QUIET, part))
    served[QUIET].cancelled.clear()
    client.writer.close()
    await asyncio.wait_for(served[QUIET].cancelled.wait(), 10)

    assert refused[b"grpc-status"] == b"8"
    assert server.held == 0


@pytest.mark.parametrize("rest", [b"", frame(b"x") + b"\x01\0\0\0\0", b"\0\x7f\xff\xff\xff"])
async def test_a_refused_call_holds_nothing(start, served, rest):
    server = await start(served, limits=Limits(max_message_bytes=100))
    client = await a_client(server)
    stream = client.request(ECHO, frame(b"x" * 50)[:20])
    await asyncio.wait_for(served[ECHO].opened.wait(), 10)

    client.http2.send_data(stream, frame(b"x" * 50)[20:] + rest, end_stream=False)
    client.http2.send_data(stream, b"\xff" * 20, end_stream=True)
    client.writer.write(client.http2.data_to_send())
    await asyncio.wait_for(served[ECHO].cancelled.wait(), 10)

    assert server.held == 0


async def test_a_call_whose_answers_nobody_takes_is_reset(start, served):
    server = await start(served, limits=Limits(max_unsent_bytes=2 << 20))
    client = await a_client(server)

    client.request(GROW, frame(b"50000000"))

    await asyncio.wait_for(served[GROW].cancelled.wait(), 10)


async def test_a_peer_that_falls_silent_is_dropped(start, served):
    server = await start(served, limits=Limits(keepalive_s=0.1))
    reader, writer = await a_peer(server)
    writer.write(PREFACE + SETTINGS)

    await until_closed(reader)

    writer.close()


async def test_a_peer_that_answers_pings_stays(start, served):
    server = await start(served, limits=Limits(keepalive_s=0.7))  # time enough for a client on a busy machine
    async with a_channel(server.address) as channel:
        call = bidi(channel, ECHO)
        await call.write(b"before")
        await call.read()
        await asyncio.sleep(2)  # several beats

        await call.write(b"after")

        assert await call.read() == b"after"


async def test_connections_beyond_the_limit_are_closed(start, served):
    server = await start(served, limits=Limits(max_connections=1))
    async with a_channel(server.address) as channel:
        await unary(channel, ECHO, b"x")
        reader, writer = await a_peer(server)

        await until_closed(reader)

        assert await unary(channel, ECHO, b"y") == b"y"
        writer.close()


async def test_a_storm_of_resets_beyond_the_limit_ends_its_connection(start, served):
    server = await start(served, limits=Limits(reset_burst=20, resets_per_s=1))
    client = await a_client(server)

    with contextlib.suppress(ConnectionError):
        for _ in range(50):
            client.http2.reset_stream(client.request(QUIET))
            client.writer.write(client.http2.data_to_send())
        await client.writer.drain()
    await until_closed(client.reader)

    async with a_channel(server.address) as channel:
        assert await unary(channel, ECHO, b"alive") == b"alive"


async def test_connections_that_wait_in_the_backlog_are_served_before_the_end(start, served):
    server = await start(served)
    peers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for peer in peers:
        peer.connect(server.address.removeprefix("unix:"))  # the loop has not run: nobody has accepted it

    await asyncio.wait_for(server.stop(0.2), 10)

    assert [len(peer.recv(9)) for peer in peers] == [9, 9, 9]  # our SETTINGS frame, not a reset
    for peer in peers:
        peer.close()


async def test_a_call_that_comes_together_with_the_answer_to_the_notice_is_served(start, served):
    server = await start(served)
    client = await a_client(server)
    await client.end_of(client.request(ECHO, frame(b"x"), end=True))
    late = client.http2.send_request(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", ECHO.encode()),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
        ]
    )
    client.http2.send_data(late, frame(b"y"), end_stream=True)
    call = client.http2.data_to_send()

    stopping = asyncio.ensure_future(server.stop(10))
    notice = b""
    while not (ping := re.search(rb"\x00\x00\x08\x06\x00\x00\x00\x00\x00(.{8})", notice, re.DOTALL)):
        notice += await asyncio.wait_for(client.reader.read(65536), 10)
    client.writer.write(b"\x00\x00\x08\x06\x01\x00\x00\x00\x00" + ping[1] + call)
    end = await client.end_of(late)

    assert dict(end.headers)[b"grpc-status"] == b"0"
    await asyncio.wait_for(stopping, 10)


async def test_log_entries_on_their_way_to_a_stopping_server_are_settled(start):
    settled = asyncio.Queue()
    server = await start({access_log.METHOD: access_log.AccessLogService(settled.put_nowait)})
    message = als_pb2.StreamAccessLogsMessage()
    message.http_logs.log_entry.add()
    entry = frame(message.SerializeToString())
    client = await a_client(server)
    stream = client.request(access_log.METHOD, entry)
    await asyncio.wait_for(settled.get(), 10)

    stopping = asyncio.ensure_future(server.stop(10))
    await client.end_of(stream)
    client.http2.send_data(stream, entry[:7])
    client.writer.write(client.http2.data_to_send())
    client.http2.send_data(stream, entry[7:], end_stream=True)
    client.writer.write(client.http2.data_to_send())

    await asyncio.wait_for(settled.get(), 10)
    await asyncio.wait_for(stopping, 10)
    assert server.held == 0


async def test_messages_after_the_end_of_a_call_are_not_delivered(channel, served):
    call = bidi(channel, GROW)
    await call.write(b"1")
    await call.read()

    assert await channel.stream_unary(COUNT)(iter([b"a"])) == b"1"
    assert len(served[GROW].listeners) == 1


async def test_tls_is_refused_with_advice(tmp_path):
    with pytest.raises(ValueError, match="grpc transport"):
        await serve(f"unix:{tmp_path}/s.sock", services(), tls=Tls(b"", b""))


async def test_an_unknown_transport_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ngh2 or grpc"):
        await serve(f"unix:{tmp_path}/s.sock", services(), transport="quic")
