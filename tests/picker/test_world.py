"""What the cluster says, as endpoints, pools and routes."""

import asyncio

from extproc.adapters.world import KINDS, WorldView
from matrixinfer.api import dataplane, kinds
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.store import Store
from tests.director.stage import Stage, a_chat
from tests.picker.running import a_pod, a_route, a_server, eventually, put


class At:
    """An engine's address without an engine."""

    def __init__(self, address):
        self.address = address


A, B = At("127.0.0.1:8001"), At("127.0.0.2:8002")


class Following(Stage):
    """A director whose world follows a cluster."""

    async def start(self):
        self.cluster = MemoryCluster()
        self.view = WorldView(self.director._world, self.director)
        self.stores = [Store(self.cluster, kind) for kind in KINDS]
        for store in self.stores:
            self.view.follow(store)
        self.tasks = [asyncio.create_task(store.run()) for store in self.stores]
        for store in self.stores:
            await store.synced()
        for manifest in (a_pod(A, "a"), a_pod(B, "b"), a_server(), a_route()):
            await put(self.cluster, manifest)
        await eventually(lambda: self.ready() == {A.address, B.address} and self.director.routes_know("demo"))
        return self

    def ready(self):
        return {self.table.address(row) for row in self.pools.ready("ns/engines")}

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def following():
    return await Following(addresses=()).start()


async def test_pods_that_are_not_ready_or_on_their_way_out_get_nothing():
    stage = await following()

    await put(stage.cluster, a_pod(A, "a", ready=False))
    await eventually(lambda: stage.ready() == {B.address})
    dying = a_pod(B, "b")
    dying["metadata"]["finalizers"] = ["matrixinfer.ai/drain"]
    await put(stage.cluster, dying)
    await stage.cluster.delete(kinds.POD, "b", "ns")
    await eventually(lambda: stage.ready() == set())

    assert len(stage.table) == 2
    await stage.stop()


async def test_a_pod_that_is_replaced_under_its_address_starts_anew():
    stage = await following()
    decision = stage.decide(a_chat("hello " * 100))
    address = decision.endpoints[0]
    name, engine = ("a", A) if address == A.address else ("b", B)

    await stage.cluster.delete(kinds.POD, name, "ns")
    await stage.cluster.create(kinds.POD, a_pod(engine, name))
    await put(stage.cluster, a_pod(engine, name))
    await eventually(lambda: stage.ready() == {A.address, B.address} and not stage.index.held(stage.table.row(address)))

    assert stage.table.inflight[stage.table.row(address)] == 0
    await stage.stop()


async def test_a_restarted_engine_has_forgotten_its_cache():
    stage = await following()
    address = stage.decide(a_chat("hello " * 100)).endpoints[0]
    row = stage.table.row(address)
    name, engine = ("a", A) if address == A.address else ("b", B)

    restarted = a_pod(engine, name)
    restarted["status"]["containerStatuses"] = [{"name": "engine", "ready": True, "restartCount": 1}]
    await put(stage.cluster, restarted)
    await eventually(lambda: stage.index.held(row) == 0)

    assert stage.table.inflight[row] == 1
    await stage.stop()


async def test_a_resource_that_cannot_be_read_keeps_its_last_good_version():
    stage = await following()
    broken = a_route()
    broken["spec"]["rules"] = "none"

    stage.view.put(kinds.MODEL_ROUTE, broken)
    stage.view.rebuild()

    assert "rules" in stage.view.problems["ModelRoute ns/demo"]
    assert stage.director.routes_know("demo")
    stage.view.put(kinds.MODEL_ROUTE, a_route())
    assert stage.view.problems == {}
    await stage.stop()


async def test_a_change_in_many_pods_is_one_rebuild():
    stage = await following()
    before = stage.view.rebuilds

    for number in range(50):
        stage.view.put(kinds.POD, a_pod(At(f"127.0.1.{number + 1}:8000"), f"p{number}"))
    await eventually(lambda: len(stage.ready()) == 52)

    assert stage.view.rebuilds == before + 1
    await stage.stop()


async def test_the_time_at_which_requests_were_held_is_no_news():
    stage = await following()
    await eventually(lambda: stage.view._pending is None)
    before = (stage.view.changes, stage.view.rebuilds)
    held = {dataplane.HELD_ANNOTATION: "2030-01-01T12:00:00Z"}
    server = a_server()
    server["metadata"]["annotations"] = held
    await stage.cluster.apply(kinds.MODEL_SERVER, server, manager="matrixinfer-wakeup", force=True)
    [store] = [each for each in stage.stores if each.kind == kinds.MODEL_SERVER]
    await eventually(lambda: store.get("engines", "ns")["metadata"].get("annotations") == held)
    assert (stage.view.changes, stage.view.rebuilds) == before

    other = a_server(app="other")
    other["metadata"]["annotations"] = held
    await put(stage.cluster, other)
    await eventually(lambda: stage.ready() == set())
    await stage.stop()
