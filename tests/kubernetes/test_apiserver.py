"""What the client does with a real API server beyond the suite of all clusters, seen through the official client."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import pytest
from kubernetes import client as official

from matrixinfer.api import kinds
from matrixinfer.cluster import lease
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.loop import Controller, Loop, itself
from matrixinfer.cluster.plan import Emit, Plan
from matrixinfer.cluster.protocol import Forbidden, NotFound
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import WIDGET, a_pod, a_widget, eventually, next_events
from tests.kubernetes.conftest import access


def a_config_map(namespace: str, name: str, **data: str) -> dict:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


async def test_a_long_list_comes_in_chunks_and_whole(plane, cluster, namespace):
    asked = Counter()
    for number in range(7):
        await cluster.create(kinds.CONFIG_MAP, a_config_map(namespace, f"c{number}"))

    def count(verb, *_):
        asked[verb] += 1

    async with ApiServer(access(plane), Settings(chunk=3), report=count) as chunked:
        found = await chunked.list(kinds.CONFIG_MAP, namespace=namespace)

    names = [item["metadata"]["name"] for item in found.items if item["metadata"]["name"].startswith("c")]
    assert names == [f"c{number}" for number in range(7)]
    assert asked["list"] >= 3
    assert all(item["kind"] == "ConfigMap" and "managedFields" not in item["metadata"] for item in found.items)


async def test_a_watch_that_the_server_ends_goes_on_where_it_was(plane, cluster, namespace):
    async with ApiServer(access(plane), Settings(watch_s=1)) as brief:
        since = (await brief.list(WIDGET, namespace=namespace)).resource_version
        watching = asyncio.create_task(next_events(brief, WIDGET, since, 12, namespace=namespace))
        for number in range(12):
            await cluster.create(WIDGET, a_widget(namespace, f"w{number}"))
            await asyncio.sleep(0.3)  # so that the changes span several watches

        assert await watching == [("ADDED", f"w{number}") for number in range(12)]


async def test_a_status_is_written_without_touching_labels(cluster, core, namespace):
    pod = a_pod(namespace, node="n1")
    pod["metadata"]["labels"] = {"app": "x"}
    await cluster.create(kinds.POD, pod)
    given = {"metadata": {"name": "p", "namespace": namespace}, "status": {"phase": "Running", "podIP": "127.0.1.5"}}
    await cluster.update_status(kinds.POD, given)

    seen = await asyncio.to_thread(core.read_namespaced_pod, "p", namespace)
    assert (seen.status.phase, seen.status.pod_ip, seen.metadata.labels) == ("Running", "127.0.1.5", {"app": "x"})


async def test_what_we_write_is_ours_by_name(cluster, core, namespace):
    await cluster.create(kinds.CONFIG_MAP, a_config_map(namespace, "made", a="1"))
    await cluster.apply(kinds.CONFIG_MAP, a_config_map(namespace, "applied", a="1"), manager="tester")

    def managers(name):
        return [
            (item.manager, item.operation)
            for item in core.read_namespaced_config_map(name, namespace).metadata.managed_fields
        ]

    assert await asyncio.to_thread(managers, "made") == [("matrixinfer", "Update")]
    assert await asyncio.to_thread(managers, "applied") == [("tester", "Apply")]


async def test_nothing_is_written_without_the_right_to_but_leases(plane, namespace):
    left = [10.0]
    async with ApiServer(access(plane), remaining=lambda: left[0]) as fenced:
        await fenced.create(kinds.CONFIG_MAP, a_config_map(namespace, "before"))
        left[0] = 0.0
        for write in (
            fenced.create(kinds.CONFIG_MAP, a_config_map(namespace, "after")),
            fenced.apply(kinds.CONFIG_MAP, a_config_map(namespace, "before", late="1"), manager="x"),
            fenced.delete(kinds.CONFIG_MAP, "before", namespace),
        ):
            with pytest.raises(lease.NotLeader):
                await write

        stands = await fenced.get(kinds.CONFIG_MAP, "before", namespace)
        assert "data" not in stands
        with pytest.raises(NotFound):
            await fenced.get(kinds.CONFIG_MAP, "after", namespace)
        await fenced.create(kinds.LEASE, {"metadata": {"name": "l", "namespace": namespace}})


async def test_an_event_is_told_once_and_counted_on_by_the_next_process(cluster, look, namespace):
    widget = await cluster.create(WIDGET, a_widget(namespace))
    events = official.EventsV1Api(look)

    def reconcile(key, _world, _now):
        about = (Emit(widget, "Odd", "something is odd", "Warning"),)
        return Plan(about if key.namespace == namespace else ())

    async def counted(count: int) -> bool:
        found = await asyncio.to_thread(events.list_namespaced_event, namespace)
        return [(item.reason, item.series.count if item.series else 1) for item in found.items] == [("Odd", count)]

    for process in (1, 2):  # the second finds the first one's count
        loop = Loop(cluster, Controller("tester", reconcile, {WIDGET: itself(WIDGET)}))
        running = asyncio.create_task(loop.run())
        if process == 1:
            await eventually(lambda: counted(1))
            await cluster.update(WIDGET, a_widget(namespace, size=2))
            await eventually(lambda: counted(2))
        else:
            await eventually(lambda: counted(3))
        loop.stop()
        await running

    [seen] = (await asyncio.to_thread(events.list_namespaced_event, namespace)).items
    assert (seen.regarding.name, seen.type, seen.note) == ("w", "Warning", "something is odd")


async def test_who_follows_and_has_nothing_to_do_asks_nothing(plane, namespace):
    asked = Counter()

    def count(verb, *_):
        asked[verb] += 1

    async with ApiServer(access(plane), report=count) as server:
        stores = [Store(server, kind, namespace=namespace) for kind in (WIDGET, kinds.POD, kinds.CONFIG_MAP)]
        running = [asyncio.create_task(store.run()) for store in stores]

        async def connected() -> bool:
            return all(store.connected for store in stores)

        await eventually(connected)
        before = asked.copy()
        await asyncio.sleep(2)  # an absence cannot be awaited

        assert asked == before == Counter(list=3)
        for task in running:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_a_right_that_is_missing_is_named(plane, core, namespace):
    await asyncio.to_thread(
        core.create_namespaced_service_account, namespace, {"metadata": {"name": "nobody", "namespace": namespace}}
    )
    as_nobody = access(plane, impersonate=f"system:serviceaccount:{namespace}:nobody")
    async with ApiServer(as_nobody) as server:
        with pytest.raises(Forbidden, match=r"nobody.*cannot list resource"):
            await server.list(kinds.POD, namespace=namespace)
