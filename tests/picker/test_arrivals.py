"""Requests that are held for want of an engine go when Envoy has the engine, too."""

import asyncio
import dataclasses

import pytest
from aiohttp import web

from extproc.adapters.arrivals import Arrivals
from extproc.adapters.errands import Errands
from extproc.adapters.turns import Turns
from extproc.adapters.world import WorldView
from matrixinfer.api import envoy_admin, kinds
from tests.director.stage import Stage, Waiting, a_chat, an_outcome
from tests.flow.room import RULES, Slots
from tests.picker.running import a_pod, a_route, a_server, eventually

HOLDING = dataclasses.replace(RULES, no_endpoint_ttl_s=60.0)


class At:
    def __init__(self, address):
        self.address = address


A, B = At("127.0.0.1:8001"), At("127.0.0.2:8002")


class Envoy:
    """Its admin interface, and the endpoints that it has."""

    def __init__(self, socket):
        self.socket = socket
        self.has = {}  # endpoint: what Envoy says of its health
        self.asked = 0

    async def __aenter__(self):
        app = web.Application()
        app.router.add_get("/clusters", self._clusters)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.socket)).start()
        return self

    async def __aexit__(self, *_):
        await self._runner.cleanup()

    async def _clusters(self, _):
        self.asked += 1
        hosts = [
            {"address": {"socket_address": {"address": ip, "port_value": int(port)}}, "health_status": health}
            for (ip, port), health in ((each.split(":"), health) for each, health in self.has.items())
        ]
        return web.json_response({"cluster_statuses": [{"name": "modelserver/ns/engines", "host_statuses": hosts}]})


@pytest.fixture
def socket(tmp_path):
    return tmp_path / "envoy.sock"


@pytest.fixture
async def stage(socket):
    it = Stage(addresses=())
    it.director.gate.use(HOLDING, Slots(1))
    it.clock.now = asyncio.get_running_loop().time()
    it.errands = Errands(turns=Turns(it.director.gate))
    it.arrivals = Arrivals(it.director.gate, socket)
    it.view = WorldView(it.director._world, it.director, it.arrivals)
    it.view.put(kinds.MODEL_SERVER, a_server())
    it.view.put(kinds.MODEL_ROUTE, a_route())
    it.view.rebuild()
    yield it
    it.arrivals.close()
    it.errands.close()


async def come(stage, at, name):
    stage.view.put(kinds.POD, a_pod(at, name))
    stage.view.rebuild()
    stage.table.scraped_at[:] = stage.clock.now
    await asyncio.sleep(0.12)


async def test_a_held_request_goes_when_envoy_has_the_endpoint(stage, socket):
    async with Envoy(socket) as envoy:
        waiting = Waiting(stage, a_chat("hi"))
        await come(stage, A, "a")
        await come(stage, B, "b")
        assert envoy.asked
        assert not waiting.heard.done()

        envoy.has |= {A.address: {"eds_health_status": "UNHEALTHY"}, B.address: {"eds_health_status": "HEALTHY"}}
        decision = await waiting.heard
        assert decision.endpoints == (B.address,)

        envoy.has[A.address] = {}
        await eventually(lambda: len(stage.pools.ready("ns/engines")) == 2)
        asked = envoy.asked
        await asyncio.sleep(0.12)
        assert envoy.asked == asked


async def test_where_nobody_is_held_an_endpoint_is_chosen_at_once(stage, socket):
    async with Envoy(socket) as envoy:
        await come(stage, A, "a")
        first = stage.decide(a_chat("hi"))
        waiting = Waiting(stage, a_chat("there"))  # for a place, not for an engine
        await come(stage, B, "b")

        assert (await waiting.heard).endpoints[0] == B.address
        assert not envoy.asked
        stage.director.settle(an_outcome(first))


async def test_an_endpoint_that_leaves_meanwhile_is_waited_for_no_more(stage, socket):
    async with Envoy(socket) as envoy:
        waiting = Waiting(stage, a_chat("hi"))
        await come(stage, A, "a")
        stage.view.drop(kinds.POD, a_pod(A, "a"))
        stage.view.rebuild()
        await asyncio.sleep(0.12)
        asked = envoy.asked
        await asyncio.sleep(0.12)

        assert envoy.asked == asked
        assert not waiting.heard.done()
        waiting.telling.withdraw()


async def test_an_envoy_that_says_nothing_keeps_nobody(stage, caplog):
    waiting = Waiting(stage, a_chat("hi"))
    await come(stage, A, "a")

    assert (await waiting.heard).endpoints == (A.address,)
    assert "Envoy does not say" in caplog.text


def test_envoys_page_is_read():
    page = {
        "cluster_statuses": [
            {
                "name": "a",
                "host_statuses": [
                    {"address": {"socket_address": {"address": "::1", "port_value": 1}}, "health_status": {}},
                    {
                        "address": {"socket_address": {"address": "10.0.0.1", "port_value": 2}},
                        "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": True},
                    },
                    {"address": {"pipe": {"path": "/x"}}, "health_status": {}},
                ],
            },
            {"name": "b"},
        ]
    }

    assert envoy_admin.healthy(page) == {"a": {"[::1]:1"}, "b": frozenset()}
