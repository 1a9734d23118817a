"""A controller that is killed two hundred times while it rolls: what it leaves behind at each write is taken up by the next."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random

import pytest

from controllers.modelinfer.reconcile import controller
from matrixinfer.api import kinds
from matrixinfer.cluster.loop import Loop
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.local.hollow import HollowNode
from tests.cluster.conformance import eventually
from tests.modelinfer.guard import Guard
from tests.modelinfer.village import a_role, an_infer, rolling

KILLS = 200
REPLICAS, UNAVAILABLE, SURGE = 5, 2, 1
WRITES = ("apply", "apply_status", "create", "delete", "update_status")


class Mortal:
    """A cluster whose user dies at its `left`th write: before it has been carried out, or after."""

    def __init__(self, cluster, left, *, after):
        self._cluster = cluster
        self._left = left
        self._after = after
        self.dead = asyncio.Event()

    def __getattr__(self, name):
        return self._write(name) if name in WRITES else getattr(self._cluster, name)

    def _write(self, name):
        async def write(*arguments, **options):
            self._left -= 1
            if self._left < 0 or (self._left == 0 and not self._after):
                await self._die()
            done = await getattr(self._cluster, name)(*arguments, **options)
            if self._left == 0:
                await self._die()
            return done

        return write

    async def _die(self):
        self.dead.set()
        await asyncio.Event().wait()


def the_infer(image):
    roles = (a_role("decode", workers=1, image=image), a_role("prefill", image=image))
    strategy = rolling(maxUnavailable=UNAVAILABLE, maxSurge=SURGE)
    return an_infer(*roles, replicas=REPLICAS, rolloutStrategy=strategy)


@contextlib.asynccontextmanager
async def running(work):
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("seed", range(2))
async def test_whenever_the_controller_is_killed_the_next_ends_what_it_began(seed):
    chance = random.Random(seed)
    cluster = MemoryCluster()
    images = (f"sim:{number}" for number in itertools.count())
    guard = Guard(cluster, "demo", pods_a_group=3, floor=REPLICAS - UNAVAILABLE, ceiling=REPLICAS + SURGE)
    async with running(HollowNode(cluster).run()), running(guard.run()):
        for _ in range(KILLS // 2):
            if chance.random() < 0.2:  # another template, sometimes in the middle of a rollout
                await cluster.apply(kinds.MODEL_INFER, the_infer(next(images)), manager="user", force=True)
            mortal = Mortal(cluster, chance.randint(1, 9), after=chance.random() < 0.5)
            async with running(Loop(mortal, controller()).run()):
                dying = asyncio.ensure_future(mortal.dead.wait())
                await asyncio.wait([dying], timeout=0.2)  # or there was nothing left to do
                if not dying.done():
                    dying.cancel()
                    await cluster.apply(kinds.MODEL_INFER, the_infer(next(images)), manager="user", force=True)
                    await asyncio.wait_for(mortal.dead.wait(), 20)
        last = next(images)
        await cluster.apply(kinds.MODEL_INFER, the_infer(last), manager="user", force=True)

        def rolled():
            images = {pod["spec"]["containers"][0]["image"] for pod in guard.pods()}
            return images == {last} and len(guard.pods()) == REPLICAS * 3 and guard.available() == REPLICAS

        async def tidy():
            services = (await cluster.list(kinds.SERVICE)).items
            return sorted(one["metadata"]["name"] for one in services) == [
                f"{group}-decode-0-0" for group in sorted(guard.groups())
            ]

        async with running(Loop(cluster, controller()).run()):
            await guard.until(rolled)
            await eventually(tidy)

    assert guard.broken == []
    assert len(guard.groups()) == REPLICAS
