"""One suite for both transports: what a gRPC client may expect of a server, seen by grpcio's clients."""

import asyncio
import shutil
import socket
import stat

import grpc
import pytest
from grpc import StatusCode

from extproc.adapters.transport.calls import Limits, Tls
from tests.transport.services import (
    BROKEN,
    COUNT,
    ECHO,
    GROW,
    LATE,
    QUIET,
    UNLIMITED,
    a_channel,
    bidi,
    code_of,
    services,
    unary,
)

SIZES = [0, 1, 100_000, 3 << 20, 16 << 20]


def pattern(size):
    return bytes(range(256)) * (size // 256) + bytes(size % 256)


@pytest.mark.parametrize("size", SIZES)
async def test_unary_call_returns_what_was_sent(channel, size):
    assert await unary(channel, ECHO, pattern(size)) == pattern(size)


async def test_bidirectional_messages_come_back_one_by_one(channel):
    call = bidi(channel, ECHO)

    for size in (0, 1, 100_000, 3 << 20):
        await call.write(pattern(size))
        assert await call.read() == pattern(size)
    await call.done_writing()

    assert await call.read() is grpc.aio.EOF
    assert await call.code() is StatusCode.OK


async def test_the_synchronous_client_is_served_too(server):
    def client():
        with grpc.insecure_channel(server.address, options=UNLIMITED) as channel:
            single = channel.unary_unary(ECHO)(pattern(70_000))
            many = list(channel.stream_stream(ECHO)(iter([b"a", b"", b"b" * 100_000])))
        return single, many

    single, many = await asyncio.to_thread(client)

    assert single == pattern(70_000)
    assert many == [b"a", b"", b"b" * 100_000]


async def test_large_answers_flow_as_the_client_takes_them(channel):
    call = channel.unary_stream(GROW)(b"31457280")

    assert sum([len(message) async for message in call]) == 30 << 20


async def test_messages_of_a_client_stream_are_counted_until_its_end(channel):
    assert await channel.stream_unary(COUNT)(iter([b"x" * n for n in range(50)])) == b"50"


async def test_status_and_message_reach_the_client(channel):
    code, details = await code_of(channel.stream_unary(COUNT)(iter([])))

    assert code is StatusCode.NOT_FOUND
    assert details == "nichts da: größer als 100 %\n"


async def test_an_unknown_method_is_unimplemented(channel):
    code, _ = await code_of(unary(channel, "/test.Test/Nothing"))

    assert code is StatusCode.UNIMPLEMENTED


async def test_a_message_over_the_limit_is_refused_and_the_next_is_served(start, served):
    server = await start(served, limits=Limits(max_message_bytes=1000))
    async with a_channel(server.address) as channel:
        code, _ = await code_of(unary(channel, ECHO, b"x" * 1001))

        assert code is StatusCode.RESOURCE_EXHAUSTED
        assert await unary(channel, ECHO, b"x" * 1000) == b"x" * 1000


async def test_a_compressed_message_does_not_break_the_connection(channel):
    code, _ = await code_of(unary(channel, ECHO, b"x" * 5000, compression=grpc.Compression.Gzip))

    assert code in (StatusCode.UNIMPLEMENTED, StatusCode.OK)
    assert await unary(channel, ECHO, b"y") == b"y"


async def test_a_bug_ends_its_call_only(channel):
    other = bidi(channel, ECHO)
    await other.write(b"before")

    code, details = await code_of(unary(channel, BROKEN, b"x"))

    assert code is StatusCode.UNKNOWN
    assert "ZeroDivision" not in details
    assert await other.read() == b"before"
    await other.write(b"after")
    assert await other.read() == b"after"


async def test_the_deadline_ends_a_call_and_its_service_hears_it(channel, served):
    code, _ = await code_of(unary(channel, QUIET, b"", timeout=0.2))
    await asyncio.wait_for(served[QUIET].cancelled.wait(), 10)

    assert code is StatusCode.DEADLINE_EXCEEDED
    assert [listener.cancels for listener in served[QUIET].listeners] == [1]


async def test_a_cancelled_call_is_told_once(channel, served):
    call = bidi(channel, QUIET)
    await call.write(b"x")
    await asyncio.wait_for(served[QUIET].opened.wait(), 10)

    call.cancel()
    await asyncio.wait_for(served[QUIET].cancelled.wait(), 10)

    (listener,) = served[QUIET].listeners
    listener.call.send(b"nobody is there")
    listener.call.finish()
    assert listener.cancels == 1


async def test_an_answer_may_come_later_from_outside(channel, served):
    call = bidi(channel, LATE)
    await call.write(b"question")
    await asyncio.wait_for(served[LATE].opened.wait(), 10)

    served[LATE].listeners[0].answer(b"answer")

    assert await call.read() == b"answer"
    assert await call.read() is grpc.aio.EOF


async def test_two_hundred_calls_at_once_are_answered(channel):
    answers = await asyncio.gather(*(unary(channel, ECHO, b"%d" % n) for n in range(200)))

    assert answers == [b"%d" % n for n in range(200)]


async def test_a_storm_of_cancellations_leaves_the_connection_standing(channel, served):
    for _ in range(300):
        call = bidi(channel, QUIET)
        await call.write(b"x" * 100)
        call.cancel()

    assert await unary(channel, ECHO, b"alive") == b"alive"


async def test_a_client_that_does_not_read_stalls_nobody_else(channel):
    blocked = aiter(channel.unary_stream(GROW)(b"31457280"))
    await anext(blocked)

    answers = [await unary(channel, ECHO, b"x" * 1000) for _ in range(50)]

    assert answers == [b"x" * 1000] * 50
    assert sum([len(message) async for message in blocked]) == 29 << 20


# ---- the end, and the next one


async def test_stop_lets_running_calls_finish(start, served):
    server = await start(served)
    async with a_channel(server.address) as channel:
        call = bidi(channel, LATE)
        await call.write(b"question")
        await asyncio.wait_for(served[LATE].opened.wait(), 10)

        stopping = asyncio.ensure_future(server.stop(20))
        await asyncio.sleep(0)
        served[LATE].listeners[0].answer(b"answer")

        assert await call.read() == b"answer"
        assert await call.code() is StatusCode.OK
    await asyncio.wait_for(stopping, 20)


async def test_stop_ends_what_outlasts_the_grace(start, served):
    server = await start(served)
    async with a_channel(server.address) as channel:
        call = bidi(channel, QUIET)
        await call.write(b"x")
        await asyncio.wait_for(served[QUIET].opened.wait(), 10)

        await asyncio.wait_for(server.stop(0.1), 20)

        assert await call.code() is not StatusCode.OK
    assert served[QUIET].listeners[0].cancels == 1


async def test_servers_take_over_the_same_path_under_load_without_an_error(start, transport, tmp_path):
    path = tmp_path / "s.sock"
    server = await start(services())
    done, failures, answered = False, [], asyncio.Queue()

    async def client(channel):
        while not done:
            try:
                call = bidi(channel, ECHO, wait_for_ready=True)
                await call.write(b"x" * 2000)
                assert await call.read() == b"x" * 2000
                call.cancel()
                answered.put_nowait(True)
            except grpc.aio.AioRpcError as error:
                failures.append(error)

    async with a_channel(server.address) as one, a_channel(server.address) as two:
        clients = [asyncio.ensure_future(client(channel)) for channel in (one, two) for _ in range(4)]
        for _ in range(5):
            for _ in range(50):
                await asyncio.wait_for(answered.get(), 30)
            successor = await start(services())
            await server.stop(10)
            server = successor
        done = True
        await asyncio.wait_for(asyncio.gather(*clients), 30)

    # grpc's core cancels calls that have arrived and were not yet handed to a handler: one for each client and restart.
    assert len(failures) <= {"ngh2": 0, "grpc": 5 * len(clients)}[transport], failures
    assert stat.S_ISSOCK(path.stat().st_mode)


# ---- TLS, which only grpc has


@pytest.mark.parametrize("transport", ["grpc"])
async def test_tls_serves_clients_that_trust_the_certificate(start, served, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    making = await asyncio.create_subprocess_exec(
        *(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
        ),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await making.wait() == 0
    server = await start(served, address="127.0.0.1:0", tls=Tls(certificate.read_bytes(), key.read_bytes()))
    trust = grpc.ssl_channel_credentials(certificate.read_bytes())
    target = "localhost:" + server.address.rpartition(":")[2]

    async with grpc.aio.secure_channel(target, trust) as trusting, a_channel(server.address) as plain:
        assert await unary(trusting, ECHO, b"x") == b"x"
        code, _ = await code_of(unary(plain, ECHO, b"x", timeout=5))

    assert code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)


# ---- addresses


async def test_a_unix_socket_has_the_mode_it_was_given_and_goes_with_its_server(start, served, tmp_path):
    server = await start(served, socket_mode=0o660)

    mode = stat.S_IMODE((tmp_path / "s.sock").stat().st_mode)
    await server.stop(0)

    assert mode == 0o660
    assert list(tmp_path.iterdir()) == []


async def test_a_stale_socket_is_replaced(start, served, tmp_path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "s.sock"))
    stale.close()

    server = await start(served)

    async with a_channel(server.address) as channel:
        assert await unary(channel, ECHO, b"x") == b"x"


async def test_a_file_that_is_no_socket_is_left_alone(start, served, tmp_path):
    (tmp_path / "s.sock").write_text("precious")

    with pytest.raises(FileExistsError):
        await start(served)

    assert (tmp_path / "s.sock").read_text() == "precious"


async def test_any_free_port_of_an_interface_will_do(start, served):
    server = await start(served, address="127.0.0.1:0")

    async with a_channel(server.address) as channel:
        assert await unary(channel, ECHO, b"tcp") == b"tcp"
    assert not server.address.endswith(":0")


@pytest.mark.parametrize("address", ["unix:", "8080", "host:port", "127.0.0.1:70000"])
async def test_an_address_that_cannot_be_read_says_what_to_write(start, served, address):
    with pytest.raises(ValueError, match="unix:/"):
        await start(served, address=address)
