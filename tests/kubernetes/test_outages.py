"""An API server that forgets, restarts or falls silent: the last known state stands, and what happened meanwhile is made up for."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.protocol import Expired, Unavailable
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import eventually, next_changes
from tests.kubernetes.conftest import access, own_control_plane


def a_config_map(name: str) -> dict:
    return {"metadata": {"name": name, "namespace": "default"}}


@contextlib.asynccontextmanager
async def following(server, store=None):
    store = store or Store(server, kinds.CONFIG_MAP, namespace="default")
    running = asyncio.create_task(store.run())
    try:
        await store.synced()
        yield store
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def names(store: Store) -> set[str]:
    return {item["metadata"]["name"] for item in store.all()} - {"kube-root-ca.crt"}


async def until(condition) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds)


async def test_a_restart_and_a_silence_cost_nothing_but_time(own_plane):
    settings = Settings(silence_s=2, connect_s=1, answer_s=2)
    async with ApiServer(access(own_plane), settings) as server, following(server) as store:
        await server.create(kinds.CONFIG_MAP, a_config_map("before"))
        await until(lambda: names(store) == {"before"})

        await asyncio.to_thread(own_plane.stop)
        await until(lambda: not store.connected)
        assert names(store) == {"before"}
        with pytest.raises(Unavailable):
            await server.get(kinds.CONFIG_MAP, "before", "default")
        await asyncio.to_thread(own_plane.start)
        await server.create(kinds.CONFIG_MAP, a_config_map("after"))
        await until(lambda: store.connected and names(store) == {"before", "after"})

        own_plane.freeze()  # connections stay open, and nobody answers
        await until(lambda: not store.connected)
        with pytest.raises(Unavailable, match="timed out"):
            await server.get(kinds.CONFIG_MAP, "before", "default")
        own_plane.thaw()
        await until(lambda: store.connected)
        await server.delete(kinds.CONFIG_MAP, "before", "default")
        await until(lambda: names(store) == {"after"})


async def test_a_history_that_is_gone_is_listed_again():
    with own_control_plane("--apiserver=--watch-cache=false") as plane:
        async with ApiServer(access(plane)) as server:
            first = await server.create(kinds.CONFIG_MAP, a_config_map("first"))
            async with following(server) as store:
                await until(lambda: names(store) == {"first"})
            for name in ("second", "third"):
                last = await server.create(kinds.CONFIG_MAP, a_config_map(name))
            await server.delete(kinds.CONFIG_MAP, "first", "default")
            await compact(plane, (await server.list(kinds.CONFIG_MAP)).resource_version)

            with pytest.raises(Expired):
                await next_changes(server, kinds.CONFIG_MAP, first["metadata"]["resourceVersion"], 1)
            assert names(store) == {"first"}
            async with following(server, store):
                await until(lambda: names(store) == {"second", "third"})
                await server.delete(kinds.CONFIG_MAP, "third", "default", uid=last["metadata"]["uid"])
                await until(lambda: names(store) == {"second"})


async def compact(plane, revision: str) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{plane.said['etcd']}/v3/kv/compaction", json={"revision": revision, "physical": True}) as answer,
    ):
        assert answer.status == 200, await answer.text()
