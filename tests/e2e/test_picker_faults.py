"""The picker killed and frozen: open, traffic goes on over healthy engines; closed, it is a 503. Never the client's choice."""

import asyncio
import os
import signal
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from tests.e2e.conftest import ENGINES
from tests.e2e.stack import a_pod, a_route, a_server, running, say
from tests.e2e.traffic import under_load
from tests.local.waiting import eventually, eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
DOCUMENTS = (*(a_pod(name) for name in ENGINES[:2]), a_server(), a_route())
# Ready, selected by a ModelServer, and by no route: only a client's own header could lead here.
SECRET = (a_pod("secret-0", app="secret"), a_server("secret", app="secret"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened(tmp_path_factory):
    async with running(tmp_path_factory.mktemp("open") / "manifests", *DOCUMENTS, *SECRET, fail_open=True) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def closed(tmp_path_factory):
    async with running(tmp_path_factory.mktemp("closed") / "manifests", *DOCUMENTS, *SECRET, fail_open=False) as world:
        yield world


@asynccontextmanager
async def frozen(world):
    pid = world.pid("picker")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def decides(world):
    """Whether the picker places requests."""
    answer = await world.send(max_tokens=1, headers={"x-matrixinfer-explain": "1"})
    return answer.status == 200 and "x-matrixinfer-decision" in answer.headers


async def restarted(world, pid):
    await eventually(lambda: world.stack.pids().get("picker") not in (None, pid))
    await eventually_async(lambda: decides(world))


async def several(world, count=8, **fields):
    return await asyncio.gather(*(world.send(prompt=world.new_id(), **fields) for _ in range(count)))


# ---- open


async def test_open_a_killed_picker_costs_no_request_under_load_and_decides_again_when_it_is_back(opened):
    async with under_load(opened, rate=40, tokens=10) as traffic:
        await eventually_async(lambda: decides(opened))
        pid = opened.kill("picker")
        await restarted(opened, pid)

    say(f"{len(traffic.samples)} requests over the picker's death, all served")
    assert traffic.broken() == []


async def test_open_a_frozen_picker_costs_no_request_and_decides_again_when_it_thaws(opened):
    async with frozen(opened):
        plain = await several(opened)
        streams = await several(opened, stream=True)
        unknown = await opened.send(model="nobody")

    assert {answer.status for answer in (*plain, *streams)} == {200}
    assert all(answer.body.endswith(b"data: [DONE]\n\n") for answer in streams)
    assert (unknown.status, unknown.error["code"]) == (404, "model_not_found")
    await eventually_async(lambda: decides(opened))


async def test_open_without_its_picker_requests_go_around_an_engine_that_is_gone_and_come_back_to_it(opened):
    await opened.fail("demo-0", "refuse", seconds=2.5)
    async with frozen(opened):
        around = await several(opened, 60)
        await eventually_async(lambda: both_serve(opened))

    assert [answer.status for answer in around] == [200] * 60
    await eventually_async(lambda: decides(opened))


async def both_serve(world):
    before = [await world.served(name) for name in ENGINES[:2]]
    await several(world, max_tokens=1)
    return all([await world.served(name) > then >= 0 for name, then in zip(ENGINES[:2], before, strict=True)])


# ---- closed


async def test_closed_a_killed_picker_is_a_503_until_it_is_back(closed):
    answers = []

    async def refused():
        answers.append(await closed.send())
        return answers[-1].status != 200

    pid = closed.kill("picker")
    await eventually_async(refused)
    await restarted(closed, pid)

    assert_unavailable(answers[-1])


async def test_closed_a_frozen_picker_is_a_503_until_it_thaws(closed):
    async with frozen(closed):
        answers = await several(closed, 4)
        stream = await closed.send(stream=True)
        health = await closed.raw("/healthz", method="GET")

    for answer in (*answers, stream):
        assert_unavailable(answer)
    assert health.status == 200
    await eventually_async(lambda: decides(closed))


def assert_unavailable(answer):
    assert (answer.status, answer.error["type"], answer.error["code"]) == (503, "service_unavailable", "no_picker")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-matrixinfer-reason"] == "picker-unavailable"
    assert answer.headers["x-request-id"]


# ---- whoever chooses, it is not the client


@asynccontextmanager
async def a_foreign_listener():
    """An address of somebody else, and how often it was contacted."""
    contacts = []

    async def contacted(_reader, writer):
        contacts.append(writer.get_extra_info("peername"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(contacted, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", contacts


@pytest.mark.parametrize("state", ["serving", "frozen", "killed"])
@pytest.mark.parametrize("mode", ["open", "closed"])
async def test_a_client_sent_destination_never_chooses(request, mode, state):
    world = request.getfixturevalue("opened" if mode == "open" else "closed")
    secret_before = await world.served("secret-0")
    secret = (await world.engines())["secret-0"]
    statuses = set()
    async with a_foreign_listener() as (foreign, contacts):
        for_itself = [
            {"x-gateway-destination-endpoint": foreign},
            {"x-gateway-destination-endpoint": secret},
            {"x-matrixinfer-target": "default/secret"},
            {"x-gateway-destination-endpoint-subset": foreign, "x-matrixinfer-model": "secret"},
            {"X-Gateway-Destination-Endpoint": f"{foreign},{secret}", "X-MatrixInfer-Target": "default/secret"},
            {"x-matrixinfer-target": "default/nobody", "x-envoy-original-dst-host": foreign},
        ]

        async def all_of_them():
            answers = await asyncio.gather(
                *(world.send(headers=headers, stream=stream) for headers in for_itself for stream in (False, True)),
                world.raw("/v1/models", method="GET", headers=for_itself[2]),
                world.raw("/metrics", method="GET", headers=for_itself[2]),
            )
            statuses.update(answer.status for answer in answers)

        if state == "serving":
            await eventually_async(lambda: decides(world))
            await all_of_them()
        elif state == "frozen":
            async with frozen(world):
                await all_of_them()
        else:
            pid = world.kill("picker")
            while world.stack.pids().get("picker") in (None, pid):
                await all_of_them()
            await all_of_them()
            await restarted(world, pid)

    assert contacts == []
    assert await world.served("secret-0") == secret_before
    assert statuses <= ({200, 404} if mode == "open" or state == "serving" else {200, 404, 503})
