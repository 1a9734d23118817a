import asyncio
from contextlib import suppress

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import core, kinds, validation
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.local import engines
from matrixinfer.local.engines import Engine, Model, manifests
from tests.local.waiting import eventually_async


def an_engine(number=0, *models, problem="", port=8000):
    address = f"127.0.0.{number + 1}"
    return Engine(f"engine-{number}", f"http://{address}:{port}", address, port, models, problem)


def a_listing(*cards):
    return {"object": "list", "data": [{"id": name, "parent": parent, "owned_by": "vllm"} for name, parent in cards]}


def by_kind(written, kind):
    return {item["metadata"]["name"]: item for item in written if item["kind"] == kind}


def test_adapters_are_told_from_models_by_their_parent():
    listing = a_listing(("base", None), ("sql", "base"), ("chat", "base"), ("alias", None))

    assert engines.models(listing) == (Model("base", ("chat", "sql")), Model("alias"))


@pytest.mark.parametrize("listing", [None, [], "text", {"data": 1}, {"data": ["x"]}, {"data": [{"name": "x"}]}])
def test_an_answer_that_lists_no_models_is_a_value_error(listing):
    with pytest.raises(ValueError, match="not a list of models"):
        engines.models(listing)


def test_engines_with_the_same_model_share_a_server_and_a_route():
    written = manifests([an_engine(0, Model("demo")), an_engine(1, Model("demo"), port=9000)])

    pods = by_kind(written, "Pod")
    server = by_kind(written, "ModelServer")["demo"]["spec"]
    assert set(pods) == {"engine-0", "engine-1"}
    assert pods["engine-1"]["metadata"]["annotations"] == {"networking.matrixinfer.ai/port": "9000"}
    assert pods["engine-1"]["spec"]["nodeName"] == "external"
    for pod in pods.values():
        assert server["workloadSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert by_kind(written, "ModelRoute")["demo"]["spec"] == {
        "modelName": "demo",
        "rules": [{"name": "default", "targetModels": [{"modelServerName": "demo"}]}],
    }


def test_adapters_get_routes_of_ten_each():
    adapters = tuple(f"adapter-{i:02}" for i in range(12))
    routes = by_kind(manifests([an_engine(0, Model("demo", adapters))]), "ModelRoute")

    assert routes["demo-adapters-0"]["spec"]["loraAdapters"] == list(adapters[:10])
    assert routes["demo-adapters-1"]["spec"]["loraAdapters"] == list(adapters[10:])


def test_an_engine_that_has_never_answered_is_a_pod_alone():
    assert [item["kind"] for item in manifests([an_engine(0, problem="cannot connect")])] == ["Pod"]


@given(st.lists(st.text(min_size=1, max_size=250), min_size=1, max_size=3, unique=True))
def test_any_model_names_make_valid_objects_of_different_names(names):
    written = manifests([an_engine(0, *(Model(name) for name in names))])

    assert [problem for item in written for problem in validation.validate(item)] == []
    assert len(by_kind(written, "ModelServer")) == len(names)


class FakeEngine:
    """Answers /v1/models as told, on a port of its own."""

    def __init__(self):
        self.listing = a_listing(("demo", None))
        self.status = 200
        self.port = 0

    async def start(self):
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self):
        await self._runner.cleanup()

    async def _models(self, request):
        return web.json_response(self.listing, status=self.status)


@pytest.fixture
async def engine():
    fake = FakeEngine()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def cluster(engine):
    cluster = MemoryCluster()
    found = await engines.resolve([f"http://localhost:{engine.port}"])
    task = asyncio.create_task(engines.Engines(cluster, found).run())
    yield cluster
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def pod_is(cluster, *, ready):
    async def it_is():
        pods = (await cluster.list(kinds.POD)).items
        return pods and core.Pod.model_validate(pods[0]).ready == ready

    await eventually_async(it_is)
    return core.Pod.model_validate((await cluster.list(kinds.POD)).items[0])


async def test_a_running_engine_becomes_a_ready_pod_with_its_model(cluster, engine):
    pod = await pod_is(cluster, ready=True)

    assert pod.status.pod_ip == "127.0.0.1"
    assert pod.metadata.annotations == {"networking.matrixinfer.ai/port": str(engine.port)}
    assert (await cluster.get(kinds.MODEL_ROUTE, "demo", "default"))["spec"]["modelName"] == "demo"


async def test_an_engine_that_goes_is_not_ready_and_comes_back(cluster, engine):
    await pod_is(cluster, ready=True)

    await engine.stop()
    gone = await pod_is(cluster, ready=False)
    assert "cannot connect" in gone.status.conditions[-1].message
    assert (await cluster.get(kinds.MODEL_ROUTE, "demo", "default"))["spec"]["modelName"] == "demo"

    await engine.start()
    await pod_is(cluster, ready=True)


async def test_an_engine_that_answers_errors_is_not_ready(cluster, engine):
    await pod_is(cluster, ready=True)
    engine.status = 500

    assert "/v1/models answers 500" in (await pod_is(cluster, ready=False)).status.conditions[-1].message


async def test_an_adapter_loaded_later_gets_a_route_and_loses_it_when_unloaded(cluster, engine):
    await pod_is(cluster, ready=True)

    async def routes():
        return {item["metadata"]["name"] for item in (await cluster.list(kinds.MODEL_ROUTE)).items}

    async def routed():
        return await routes() == {"demo", "demo-adapters-0"}

    async def unrouted():
        return await routes() == {"demo"}

    engine.listing = a_listing(("demo", None), ("sql", "demo"))
    await eventually_async(routed)
    engine.listing = a_listing(("demo", None))
    await eventually_async(unrouted)


async def test_a_host_that_cannot_be_resolved_is_named():
    with pytest.raises(engines.EngineAddress, match=r"--engine http://nowhere\.invalid:1: nowhere\.invalid cannot be"):
        await engines.resolve(["http://nowhere.invalid:1"])
