"""Kinds that a cluster may not have: nothing while they are missing, like any other while they are there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from pathlib import Path

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.feed import KINDS, MAY_BE_MISSING, Feed, serve
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.missing import Lenient
from matrixinfer.cluster.protocol import Expired, NotFound, Unavailable
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import PATIENCE_S, WIDGET, a_widget, eventually
from tests.cluster.test_store import QUICK, Recorder, running


class Partly(MemoryCluster):
    """A cluster that has a kind only while it is installed."""

    def __init__(self, kind=WIDGET):
        super().__init__()
        self.kind = kind
        self.away = False
        self.looks = 0
        self._ends: set[asyncio.Event] = set()
        self.installed = False

    def uninstall(self):
        self.installed = False
        for end in self._ends:
            end.set()

    async def list(self, kind, **options):
        if kind == self.kind:
            self.looks += 1
            if self.away:
                raise Unavailable("the cluster is away")
            if not self.installed:
                raise NotFound("the API server answered 404: 404 page not found")
        return await super().list(kind, **options)

    async def watch(self, kind, **options):
        if kind != self.kind:
            async for event in super().watch(kind, **options):
                yield event
            return
        end = asyncio.Event()
        self._ends.add(end)
        events = super().watch(kind, **options)
        ending = asyncio.ensure_future(end.wait())
        try:
            while True:
                coming = asyncio.ensure_future(anext(events))
                await asyncio.wait((coming, ending), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    raise NotFound("the API server answered 404: 404 page not found")
                yield coming.result()
        finally:
            ending.cancel()


def a_store(source):
    return Store(source, WIDGET, backoff=QUICK)


def lenient(cluster):
    return Lenient(cluster, (WIDGET,), look_every_s=0.01)


async def test_a_kind_that_is_missing_has_no_objects_and_the_store_is_filled_and_connected(caplog):
    caplog.set_level(logging.INFO)
    cluster = Partly()
    store = a_store(lenient(cluster))
    async with running(store):
        await eventually(lambda: settled(cluster.looks > 5))

        assert (store.filled, store.all()) == (True, [])
    assert [record.message for record in caplog.records] == []


async def settled(condition):
    return condition


async def test_it_is_followed_as_soon_as_it_is_there_and_empty_when_it_goes():
    cluster = Partly()
    await cluster.create(WIDGET, a_widget("default", "one"))
    store = a_store(lenient(cluster))
    recorder = Recorder(store)
    async with running(store):
        cluster.installed = True
        assert await recorder.count(1) == [("added", "one")]
        await cluster.create(WIDGET, a_widget("default", "two"))
        assert await recorder.count(2) == [("added", "one"), ("added", "two")]

        cluster.uninstall()
        await recorder.count(4)
        assert store.all() == []

        cluster.installed = True
        await recorder.count(6)
        assert [one["metadata"]["name"] for one in store.all()] == ["one", "two"]


async def test_a_cluster_that_is_away_while_it_is_looked_for_says_nothing_of_the_kind():
    cluster = Partly()
    store = a_store(lenient(cluster))
    async with running(store):
        cluster.away = True
        before = cluster.looks
        await eventually(lambda: settled(cluster.looks > before + 2))
        cluster.installed = True
        await cluster.create(WIDGET, a_widget("default", "one"))
        recorder = Recorder(store)
        cluster.away = False

        assert await recorder.count(1) == [("added", "one")]


async def test_any_other_kind_that_is_missing_is_said():
    source = Lenient(Partly(), (kinds.POD,))

    with pytest.raises(NotFound):
        await source.list(WIDGET)


async def test_what_has_come_is_to_be_listed_again():
    cluster = Partly()
    source = lenient(cluster)
    since = (await source.list(WIDGET)).resource_version
    cluster.installed = True

    with pytest.raises(Expired):
        await asyncio.wait_for(anext(source.watch(WIDGET, since=since)), PATIENCE_S)


async def test_pickers_do_without_the_kinds_that_others_install():
    [kind, other] = MAY_BE_MISSING
    assert {kind, other} < set(KINDS)
    cluster = Partly(kind)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed"
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(serve(cluster, path, KINDS, look_every_s=0.01, heartbeat_s=0.05))
            stores = [Store(Feed(path), each, backoff=QUICK) for each in KINDS]
            await stack.enter_async_context(running(*stores))
            await eventually(lambda: settled(all(store.connected for store in stores)))
            recorder = Recorder(stores[KINDS.index(kind)])
            cluster.installed = True
            await cluster.create(
                kind,
                {
                    "apiVersion": kind.api_version,
                    "kind": kind.kind,
                    "metadata": {"namespace": "ns", "name": "batch"},
                    "spec": {"priority": -1, "poolRef": {"name": "engines"}},
                },
            )

            assert await recorder.count(1) == [("added", "batch")]
