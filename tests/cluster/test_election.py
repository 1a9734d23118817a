"""Electors on one cluster: one leads, another follows when it lets go or falls silent, and each is told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster import election
from matrixinfer.cluster.election import Elector
from matrixinfer.cluster.lease import Candidate, Terms
from matrixinfer.cluster.loop import Controller, Loop, itself
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import ApplyStatus, Plan, Publish
from matrixinfer.cluster.protocol import Unavailable
from tests.cluster.conformance import WIDGET, a_widget, eventually

TERMS = Terms(duration_s=1, every_s=0.05, margin_s=0.2)


class Breakable:
    """A cluster that can be out of reach for one of its users."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.away = False

    def __getattr__(self, name):
        async def call(*arguments, **options):
            if self.away:
                raise Unavailable("out of reach")
            return await getattr(self.cluster, name)(*arguments, **options)

        return call


@contextlib.asynccontextmanager
async def standing(cluster, name):
    told: list[bool] = []
    elector = Elector(cluster, Candidate("lease", "default", name, TERMS), changed=told.append)
    task = asyncio.create_task(elector.run())
    elector.told, elector.task = told, task
    try:
        yield elector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async def holds() -> bool:
        return condition()

    await eventually(holds)


async def test_one_leads_and_the_next_takes_over_when_it_lets_go():
    cluster = MemoryCluster()
    async with standing(cluster, "a") as first:
        await until(lambda: first.leads)
        async with standing(cluster, "b") as second:
            first.task.cancel()
            await asyncio.gather(first.task, return_exceptions=True)
            await first.release()
            await until(lambda: second.leads)

            assert (first.told, second.told) == ([True, False], [True])
            lease = await cluster.get(kinds.LEASE, "lease", "default")
            assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)


class Slow(Breakable):
    """A cluster that carries out writes at once, and answers them when told to, as one does that is asked in a thread."""

    def __init__(self, cluster):
        super().__init__(cluster)
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def create(self, kind, manifest):
        return await self._late(await self.cluster.create(kind, manifest))

    async def update(self, kind, manifest):
        return await self._late(await self.cluster.update(kind, manifest))

    async def _late(self, written):
        self.asked.set()
        await self.answers.wait()
        return written


@pytest.mark.parametrize("renewal", [False, True])
async def test_who_stops_while_a_write_of_the_lease_is_on_its_way_lets_go_of_it_as_well(renewal):
    cluster = MemoryCluster()
    slow = Slow(cluster)
    async with standing(slow, "a") as first:
        if renewal:
            slow.answers.set()
            await until(lambda: first.leads)
            slow.answers.clear()
            slow.asked.clear()
        await slow.asked.wait()
        first.task.cancel()
        await asyncio.sleep(0)
        slow.answers.set()
        await asyncio.gather(first.task, return_exceptions=True)
        await first.release()

        lease = await cluster.get(kinds.LEASE, "lease", "default")
        assert lease["spec"]["holderIdentity"] == ""
        assert not first.leads


async def test_who_stops_does_not_wait_for_ever_for_a_write_of_the_lease(monkeypatch):
    monkeypatch.setattr(election, "_ARRIVES_S", 0.05)
    slow = Slow(MemoryCluster())
    async with standing(slow, "a") as first:
        await slow.asked.wait()
        first.task.cancel()

        async with asyncio.timeout(20):
            await asyncio.gather(first.task, return_exceptions=True)
    assert not first.leads


async def test_a_leader_that_cannot_renew_is_told_so_before_another_leads():
    cluster = MemoryCluster()
    cut_off = Breakable(cluster)
    async with standing(cut_off, "a") as first:
        await until(lambda: first.leads)
        async with standing(cluster, "b") as second:
            cut_off.away = True
            await until(lambda: second.leads)
            assert first.told == [True, False]

            cut_off.away = False
            await asyncio.sleep(TERMS.every_s * 4)  # it looks again, and stays where it is
            assert (first.told, second.told) == ([True, False], [True])


async def test_a_deleted_lease_is_made_again():
    cluster = MemoryCluster()
    async with standing(cluster, "a") as elector:
        await until(lambda: elector.leads)
        await cluster.delete(kinds.LEASE, "lease", "default")

        async def back() -> bool:
            found = (await cluster.list(kinds.LEASE)).items
            return [item["spec"]["holderIdentity"] for item in found] == ["a"]

        await eventually(back)
        assert elector.told == [True]


async def test_a_loop_that_may_not_write_publishes_all_the_same_and_makes_up_for_it_later():
    cluster, leads, published = MemoryCluster(), [False], asyncio.Event()

    def reconcile(key, _world, _now):
        mark = {"metadata": {"name": key.name, "namespace": key.namespace}, "status": {"seen": True}}
        return Plan((ApplyStatus(WIDGET, mark), Publish(key)))

    loop = Loop(
        cluster,
        Controller("tester", reconcile, {WIDGET: itself(WIDGET)}),
        publish=lambda _: published.set(),
        may_write=lambda: leads[0],
    )
    running = asyncio.create_task(loop.run())
    await cluster.create(WIDGET, a_widget("default"))
    await asyncio.wait_for(published.wait(), 20)
    assert "status" not in await cluster.get(WIDGET, "w", "default")

    leads[0] = True
    loop.refresh()

    async def written() -> bool:
        return (await cluster.get(WIDGET, "w", "default")).get("status") == {"seen": True}

    await eventually(written)
    loop.stop()
    await running
