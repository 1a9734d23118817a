import asyncio
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import core
from matrixinfer.local import probes
from matrixinfer.local.probes import Verdict


def a_container(**fields):
    return core.Container.model_validate({"name": "engine", **fields})


def a_probe(**fields):
    return core.Probe.model_validate({"httpGet": {"port": 8000}, **fields})


async def asked(probe, container=None, address="127.0.0.1"):
    return await probes.ask(probe, container or a_container(), address=address, env=os.environ)


@pytest.fixture
async def answering():
    """A server that sends whatever `answer[0]` holds."""
    answer = [b""]

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer[0])
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], answer


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\n\r\n", ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "status 404"),
        (b"", "the connection was closed without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP"),
    ],
)
async def test_http_succeeds_on_200_to_399(answering, answer, problem):
    port, answers = answering
    answers[0] = answer

    assert await asked(a_probe(httpGet={"port": port, "path": "/health"})) == problem


async def test_a_port_may_be_named(answering):
    port, answers = answering
    answers[0] = b"HTTP/1.1 200 OK\r\n\r\n"
    container = a_container(ports=[{"name": "http", "containerPort": port}])

    assert await asked(a_probe(httpGet={"port": "http"}), container) == ""
    assert "'grpc' is not a name under the container's ports (http)" in await asked(
        a_probe(httpGet={"port": "grpc"}), container
    )


async def test_a_refused_connection_fails(unused_tcp_port):
    assert await asked(a_probe(httpGet={"port": unused_tcp_port})) == "connection refused"
    assert await asked(core.Probe.model_validate({"tcpSocket": {"port": unused_tcp_port}})) == "connection refused"


async def test_an_open_port_is_enough_for_tcp(answering):
    port, _ = answering

    assert await asked(core.Probe.model_validate({"tcpSocket": {"port": port}})) == ""


async def test_an_answer_later_than_the_timeout_fails():
    async def hang(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]

        assert await asked(a_probe(httpGet={"port": port}, timeoutSeconds=1)) == "no answer within 1 s"


@pytest.mark.parametrize(("code", "problem"), [("0", ""), ("3", "exit code 3")])
async def test_a_command_succeeds_with_0(code, problem):
    probe = core.Probe.model_validate({"exec": {"command": [sys.executable, "-c", f"raise SystemExit({code})"]}})

    assert await asked(probe) == problem


def verdict(answers, probe, *, passing):
    result = Verdict(passing)
    for success in answers:
        result = result.after(probe, success=success)
    return result


def test_readiness_is_lost_after_as_many_failures_in_a_row_as_the_threshold():
    probe = a_probe(failureThreshold=3)

    assert verdict([False, False], probe, passing=True).passing
    assert verdict([False, False, True, False, False], probe, passing=True).passing
    assert not verdict([False, False, False], probe, passing=True).passing


def test_readiness_comes_after_as_many_successes_in_a_row_as_the_threshold():
    probe = a_probe(successThreshold=2)

    assert not verdict([True], probe, passing=False).passing
    assert verdict([True, True], probe, passing=False).passing


@given(st.lists(st.booleans()), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_the_verdict_equals_the_last_run_that_reached_its_threshold(answers, successes, failures, passing):
    probe = a_probe(successThreshold=successes, failureThreshold=failures)

    expected = passing
    for end in range(1, len(answers) + 1):
        seen = answers[:end]
        threshold = successes if seen[-1] else failures
        if len(seen) >= threshold and set(seen[-threshold:]) == {seen[-1]}:
            expected = seen[-1]
    assert verdict(answers, probe, passing=passing).passing == expected
