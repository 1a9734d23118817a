"""The store: a list kept up to date, whatever its source goes through."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from matrixinfer.cluster.backoff import Backoff
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import Unavailable
from matrixinfer.cluster.store import Store, Stores
from tests.cluster.conformance import PATIENCE_S, WIDGET, a_widget, owned_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUICK = Backoff(first_s=0.001, most_s=0.01)


class Recorder:
    """A handler that can be waited on."""

    def __init__(self, store: Store) -> None:
        self.changes: list[tuple[str, str]] = []
        self._grown = asyncio.Event()
        store.on_change(self._note)

    def _note(self, old, new) -> None:
        what = "deleted" if new is None else "added" if old is None else "modified"
        self.changes.append((what, (new or old)["metadata"]["name"]))
        self._grown.set()

    async def count(self, count: int) -> list[tuple[str, str]]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.changes) < count:
                self._grown.clear()
                await self._grown.wait()
        return self.changes


@contextlib.asynccontextmanager
async def running(*stores: Store) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(store.run()) for store in stores]
    try:
        async with asyncio.timeout(PATIENCE_S):
            for store in stores:
                await store.synced()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def cluster():
    return MemoryCluster()


async def test_a_store_has_what_stood_and_what_changes(cluster):
    await cluster.create(WIDGET, a_widget("default", "before"))
    store = Store(cluster, WIDGET)
    recorder = Recorder(store)
    async with running(store):
        created = await cluster.create(WIDGET, a_widget("default", "after"))
        await cluster.update(WIDGET, created | {"spec": {"size": 1}})
        await cluster.delete(WIDGET, "before", "default")

        changes = await recorder.count(4)

    assert changes == [("added", "before"), ("added", "after"), ("modified", "after"), ("deleted", "before")]
    assert [item["metadata"]["name"] for item in store.all()] == ["after"]
    assert store.get("before", "default") is None


async def test_stores_of_the_same_kind_are_one_and_read_once(cluster):
    await cluster.create(WIDGET, a_widget("default"))
    lists = []

    class Counted:
        def __getattr__(self, name):
            if name == "list":
                lists.append(name)
            return getattr(cluster, name)

    stores = Stores(Counted())
    one, same, narrow = stores.of(WIDGET), stores.of(WIDGET), stores.of(WIDGET, "other")
    task = asyncio.create_task(stores.run())
    await asyncio.wait_for(asyncio.gather(one.synced(), narrow.synced()), PATIENCE_S)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert one is same
    assert (len(one.all()), len(narrow.all()), len(lists)) == (1, 0, 2)


async def test_a_late_handler_is_told_of_what_stands(cluster):
    await cluster.create(WIDGET, a_widget("default"))
    store = Store(cluster, WIDGET)
    async with running(store):
        assert Recorder(store).changes == [("added", "w")]


async def test_a_handler_that_fails_does_not_keep_others_from_the_news(cluster):
    await cluster.create(WIDGET, a_widget("default"))
    store = Store(cluster, WIDGET)
    store.on_change(lambda old, new: {}["missing"])
    recorder = Recorder(store)
    async with running(store):
        assert await recorder.count(1) == [("added", "w")]


async def test_indexes_follow_labels_owners_and_namespaces(cluster):
    owner = await cluster.create(WIDGET, a_widget("default", "owner"))
    await cluster.create(WIDGET, owned_by(a_widget("default", "child", labels={"app": "x", "tier": "y"}), owner))
    await cluster.create(WIDGET, a_widget("other", "child", labels={"app": "x"}))
    store = Store(cluster, WIDGET)
    recorder = Recorder(store)

    def named(items) -> list[tuple[str, str]]:
        return [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in items]

    async with running(store):
        assert named(store.select({"app": "x"})) == [("default", "child"), ("other", "child")]
        assert named(store.select({"app": "x"}, "other")) == [("other", "child")]
        assert named(store.select({"app": "x", "tier": "y"})) == [("default", "child")]
        assert named(store.select({"app": "z"})) == []
        assert named(store.select({}, "default")) == [("default", "child"), ("default", "owner")]
        assert named(store.owned(owner["metadata"]["uid"])) == [("default", "child")]
        assert named(store.all("other")) == [("other", "child")]

        child = await cluster.get(WIDGET, "child", "default")
        child["metadata"] |= {"labels": {"app": "z"}, "ownerReferences": []}
        await cluster.update(WIDGET, child)
        await recorder.count(4)

        assert named(store.select({"app": "x"})) == [("other", "child")]
        assert named(store.select({"app": "z"})) == [("default", "child")]
        assert named(store.owned(owner["metadata"]["uid"])) == []


class Flaky:
    """A source that can be taken away, and be given another cluster in its place."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self.cluster: MemoryCluster | None = cluster
        self._broken = asyncio.Event()
        self.tries = 0
        self.tried = asyncio.Event()

    def lose(self) -> None:
        self.cluster = None
        self._broken.set()

    def give(self, cluster: MemoryCluster) -> None:
        self.cluster = cluster
        self._broken = asyncio.Event()

    def _reach(self) -> MemoryCluster:
        self.tries += 1
        self.tried.set()
        if self.cluster is None:
            raise Unavailable("nobody there")
        return self.cluster

    async def list(self, kind, **options):
        return await self._reach().list(kind, **options)

    async def watch(self, kind, **options):
        events = self._reach().watch(kind, **options)
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            while True:
                upcoming = asyncio.ensure_future(anext(events))
                await asyncio.wait((upcoming, broken), return_when=asyncio.FIRST_COMPLETED)
                if broken.done():
                    upcoming.cancel()
                    raise Unavailable("gone")
                yield upcoming.result()
        finally:
            broken.cancel()


async def test_the_last_state_stands_while_the_source_is_away_and_the_watch_resumes(cluster):
    await cluster.create(WIDGET, a_widget("default", "a"))
    source = Flaky(cluster)
    store = Store(source, WIDGET, backoff=QUICK)
    recorder = Recorder(store)
    async with running(store):
        source.lose()
        await cluster.create(WIDGET, a_widget("default", "b"))
        await tries(source, source.tries + 3)
        assert [item["metadata"]["name"] for item in store.all()] == ["a"]
        assert not store.connected

        source.give(cluster)

        assert await recorder.count(2) == [("added", "a"), ("added", "b")]


async def test_another_history_is_listed_and_the_difference_told(cluster):
    for name in ("same", "gone"):
        await cluster.create(WIDGET, a_widget("default", name))
    source = Flaky(cluster)
    store = Store(source, WIDGET, backoff=QUICK)
    recorder = Recorder(store)
    async with running(store):
        source.lose()
        other = MemoryCluster()
        await other.create(WIDGET, a_widget("default", "same"))
        await other.create(WIDGET, a_widget("default", "new"))
        source.give(other)

        changes = await recorder.count(6)

    assert changes[2] == ("deleted", "gone")
    assert sorted(changes[3:]) == [("added", "new"), ("added", "same"), ("deleted", "same")]


async def test_a_source_that_is_not_there_yet_is_waited_for(cluster):
    await cluster.create(WIDGET, a_widget("default"))
    source = Flaky(cluster)
    source.lose()
    store = Store(source, WIDGET, backoff=QUICK)
    task = asyncio.create_task(store.run())
    await tries(source, 2)
    source.give(cluster)

    async with asyncio.timeout(PATIENCE_S):
        await store.synced()
    task.cancel()

    assert len(store.all()) == 1


async def test_a_store_that_falls_behind_lists_again():
    cluster = MemoryCluster(kept=2)
    store = Store(cluster, WIDGET, backoff=QUICK)
    recorder = Recorder(store)
    async with running(store):
        for number in range(10):
            await cluster.create(WIDGET, a_widget("default", f"w{number}"))

        assert len(await recorder.count(10)) == 10

    assert len(store.all()) == 10


async def tries(source: Flaky, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while source.tries < count:
            source.tried.clear()
            await source.tried.wait()
