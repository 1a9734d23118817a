"""The lean client of Redis: its answers to the byte, its one connection, and what becomes of those who wait for it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import NoScriptError, ResponseError

from extproc.adapters import resp
from tests.limits.server import running
from tests.local.waiting import eventually_async

answers = st.recursive(
    st.one_of(st.integers(-(2**63), 2**63), st.binary(max_size=20), st.none()),
    lambda inner: st.lists(inner, max_size=4),
)


def written(answer):
    """An answer as Redis writes it."""
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%b\r\n" % (len(answer), answer)
    return b"*%d\r\n" % len(answer) + b"".join(map(written, answer))


@given(answers, st.binary(max_size=10))
def test_answers_are_read_as_they_were_written_and_no_byte_more(answer, behind):
    text = written(answer)

    assert resp.parsed(text + behind, 0) == (answer, len(text))


@given(answers, st.data())
def test_of_an_answer_that_is_cut_nothing_is_read(answer, data):
    text = written(answer)
    cut = data.draw(st.integers(0, len(text) - 1))

    with pytest.raises(resp.Incomplete):
        resp.parsed(text[:cut], 0)


def test_refusals_are_answers_and_a_script_that_is_not_known_is_one_of_its_own():
    refused, _ = resp.parsed(b"-ERR no\r\n", 0)
    unknown, _ = resp.parsed(b"-NOSCRIPT No matching script\r\n", 0)

    assert (type(refused), str(refused)) == (ResponseError, "ERR no")
    assert type(unknown) is NoScriptError


def a_client(server, **how):
    async def here():
        return "127.0.0.1", server.port

    return resp.Client(here, **how)


async def test_commands_of_many_are_answered_each_to_its_own():
    async with running() as server:
        client = a_client(server)

        assert await asyncio.gather(*(client.execute_command("ECHO", n) for n in range(500))) == [
            str(n).encode() for n in range(500)
        ]
        assert int(server.client().info("clients")["connected_clients"]) == 2  # that one, and who asks
        with pytest.raises(ResponseError, match="unknown command"):
            await client.execute_command("NOSUCH")
        assert await client.execute_command("ECHO", "on") == b"on"
        await client.aclose()


async def test_who_gives_up_shifts_nobody_elses_answer():
    async with running() as server:
        client = a_client(server)
        await client.execute_command("PING")
        server.halt()
        given_up = [asyncio.create_task(client.execute_command("ECHO", n)) for n in range(3)]
        await asyncio.sleep(0)
        given_up[1].cancel()
        await asyncio.wait([given_up[1]])
        server.go_on()

        assert await asyncio.gather(given_up[0], given_up[2]) == [b"0", b"2"]
        await client.aclose()


async def test_a_server_that_comes_back_is_found_and_one_that_is_gone_says_so():
    async with running() as server:
        client = a_client(server)
        await client.execute_command("PING")
        server.kill()
        with pytest.raises(OSError):
            await client.execute_command("PING")
        server.start()

        async def back():
            try:
                return await client.execute_command("PING") == "PONG"
            except OSError:
                return False

        await eventually_async(back)
        await client.aclose()


async def test_a_password_that_is_refused_is_said_and_leaves_no_connection():
    async with running("--requirepass", "secret") as server:
        refused = a_client(server, greeting=[("AUTH", "wrong")])
        with pytest.raises(ResponseError, match="WRONGPASS"):
            await refused.execute_command("PING")
        let_in = a_client(server, greeting=[("AUTH", "secret"), ("SELECT", "3")])

        assert await let_in.execute_command("PING") == "PONG"
        await let_in.aclose()
