"""Calls to engines over real sockets."""

import asyncio
import contextlib

import pytest

from extproc.adapters.calls import Calls
from extproc.errors import Busy
from extproc.types import Call, Called
from tests.local.waiting import eventually_async


class Engine:
    """Answers what it is told to, byte by byte."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.got = []
        self.gone = asyncio.Event()
        self.reached = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1/completions"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.got.append(await reader.readexactly(length))
                self.reached.set()
                answer = self.answers.pop(0)
                if answer is None:  # never
                    await reader.read()
                    break
                if not answer:
                    break
                writer.write(answer)
        self.gone.set()
        writer.close()


def an_answer(body=b"{}", status=b"200 OK"):
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.fixture
async def calls():
    made = Calls(most=2)
    yield made
    await made.close()
    assert made.open == 0


def a_call(engine, timeout_s=10.0, ended=None):
    return Call("POST", engine.url, timeout_s, {"content-type": "application/json"}, b'{"a":1}', ended)


async def test_an_answer_comes_back_with_its_status(calls):
    async with Engine(an_answer(b'{"x":1}'), an_answer(b"no", b"503 Service Unavailable")) as engine:
        assert await calls.run(a_call(engine)) == Called(200, b'{"x":1}')
        assert await calls.run(a_call(engine)) == Called(503, b"no")
        assert engine.got == [b'{"a":1}'] * 2
        assert engine.connections == 1


async def test_a_port_that_nobody_listens_on_refuses(calls):
    async with Engine() as engine:
        call = a_call(engine)

    assert (await calls.run(call)).fault == "refused"


async def test_time_runs_out(calls):
    async with Engine(None) as engine:
        assert (await calls.run(a_call(engine, timeout_s=0.05))).fault == "timeout"
        await asyncio.wait_for(engine.gone.wait(), 10)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf", b"nonsense\r\n\r\n"])
async def test_an_answer_that_breaks_off_is_none(calls, answer):
    async with Engine(answer, b"", b"") as engine:
        if answer.startswith(b"HTTP"):
            engine.answers = [answer, b""]

        called = await asyncio.wait_for(calls.run(a_call(engine, timeout_s=1.0)), 10)

        assert called.fault in ("broken", "timeout")


async def test_a_kept_connection_that_the_engine_has_closed_costs_nothing(calls):
    async with Engine(an_answer(), b"", an_answer(b"2")) as engine:
        await calls.run(a_call(engine))

        assert await calls.run(a_call(engine)) == Called(200, b"2")


async def test_an_answer_beyond_the_bound_is_not_kept(calls):
    async with Engine(an_answer(b"x" * (9 << 20))) as engine:
        assert (await calls.run(a_call(engine))).fault == "too-large"


async def test_a_call_that_is_withdrawn_closes_its_connection(calls):
    async with Engine(None) as engine:
        task = asyncio.create_task(calls.run(a_call(engine)))
        await engine.reached.wait()
        task.cancel()

        await asyncio.wait_for(engine.gone.wait(), 10)


async def test_no_more_calls_than_may_run_at_once(calls):
    async with Engine(None, None, an_answer()) as engine:
        tasks = [asyncio.create_task(calls.run(a_call(engine))) for _ in range(2)]

        async def all_reached():
            return len(engine.got) == 2

        await eventually_async(all_reached, 10)
        with pytest.raises(Busy):
            await calls.run(a_call(engine))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

        assert (await calls.run(a_call(engine))).status == 200


async def test_the_story_goes_on_when_a_call_is_sent_and_hears_of_its_end(calls):
    heard = asyncio.get_running_loop().create_future()
    async with Engine(None) as engine:

        def over(called):
            heard.set_result(called)

        assert await calls.run(a_call(engine, timeout_s=0.3, ended=over)) == Called()
        assert not heard.done()
        assert (await asyncio.wait_for(heard, 10)).fault == "timeout"


async def test_what_follows_a_failed_call_is_called(calls):
    async with Engine(None) as engine, Engine(an_answer()) as other:
        await calls.run(a_call(engine, timeout_s=0.2, ended=lambda _called: a_call(other)))

        await asyncio.wait_for(other.reached.wait(), 10)


async def test_a_call_that_cannot_be_sent_is_the_storys_own_business(calls):
    heard = []
    async with Engine() as engine:
        call = a_call(engine, ended=heard.append)

    assert (await calls.run(call)).fault == "refused"
    assert heard == []
