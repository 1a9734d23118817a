"""Objects that others name, one by one: on both clusters by way of the memory cluster's semantics, and with few rights."""

from __future__ import annotations

import asyncio
import contextlib

from matrixinfer.api import kinds
from matrixinfer.cluster.chosen import Chosen
from matrixinfer.cluster.loop import Controller, Loop, itself
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import Plan, Publish
from matrixinfer.cluster.protocol import Forbidden
from tests.cluster.conformance import WIDGET, a_widget, eventually


def a_secret(name, value="v"):
    return {"metadata": {"name": name, "namespace": "default"}, "stringData": {"key": value}}


@contextlib.asynccontextmanager
async def following(cluster):
    chosen = Chosen(cluster, kinds.SECRET, draw=lambda: 0.0)
    task = asyncio.create_task(chosen.run())
    await asyncio.sleep(0)
    try:
        yield chosen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Strict:
    """A cluster in which an account may read certain objects by name, and nothing else."""

    def __init__(self, cluster, *allowed):
        self.cluster = cluster
        self.allowed = set(allowed)

    async def list(self, kind, *, name="", **options):
        self._check(name)
        return await self.cluster.list(kind, name=name, **options)

    def watch(self, kind, *, name="", **options):
        self._check(name)
        return self.cluster.watch(kind, name=name, **options)

    def _check(self, name):
        if name not in self.allowed:
            raise Forbidden(f"secrets {name!r} is forbidden")


def names(chosen):
    return [one["metadata"]["name"] for one in chosen.all()]


async def test_what_is_named_is_there_at_once_and_the_rest_is_not():
    cluster = MemoryCluster()
    for name in "abc":
        await cluster.create(kinds.SECRET, a_secret(name))
    async with following(cluster) as chosen:
        await chosen.choose({("default", "a"), ("default", "absent")})
        assert names(chosen) == ["a"]
        await chosen.choose({("default", "b")})
        assert names(chosen) == ["b"]
        assert chosen.get("a", "default") is None


async def test_changes_of_what_is_named_are_told_and_no_others():
    cluster = MemoryCluster()
    told = []
    async with following(cluster) as chosen:
        chosen.on_change(lambda old, new: told.append((old is None, (new or old)["metadata"]["name"])))
        await chosen.choose({("default", "a")})
        await cluster.create(kinds.SECRET, a_secret("b"))
        await cluster.create(kinds.SECRET, a_secret("a"))

        async def known():
            return names(chosen) == ["a"]

        await eventually(known)

    assert told == [(True, "a")]


async def test_what_may_not_be_read_is_as_if_it_were_not_there_and_holds_up_no_other():
    cluster = MemoryCluster()
    for name in "ab":
        await cluster.create(kinds.SECRET, a_secret(name))
    strict = Strict(cluster, "a")
    async with following(strict) as chosen:
        await asyncio.wait_for(chosen.choose({("default", "a"), ("default", "b")}), 20)
        assert names(chosen) == ["a"]
        strict.allowed.add("b")

        async def both():
            return names(chosen) == ["a", "b"]

        await eventually(both)


async def test_a_loop_knows_what_is_named_before_it_decides():
    cluster = MemoryCluster()
    await cluster.create(kinds.SECRET, a_secret("a"))
    await cluster.create(WIDGET, a_widget("default", "a"))
    seen = []

    def reconcile(key, world, _now):
        return Plan((Publish(world.get(kinds.SECRET, key.name, key.namespace) is not None),))

    def named(world):
        return [("default", one["metadata"]["name"]) for one in world.all(WIDGET)]

    watches = {WIDGET: itself(WIDGET), kinds.SECRET: itself(WIDGET)}
    loop = Loop(cluster, Controller("t", reconcile, watches, chosen={kinds.SECRET: named}), publish=seen.append)
    running = asyncio.create_task(loop.run())

    async def decided():
        return bool(seen)

    await eventually(decided)
    loop.stop()
    await running

    assert set(seen) == {True}
