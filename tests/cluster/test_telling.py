"""Events are written beside what is done: in order, within bounds, and without holding anything up."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster import telling
from matrixinfer.cluster.loop import Controller, Loop, itself
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import Emit, Plan
from matrixinfer.cluster.protocol import Unavailable
from matrixinfer.cluster.telling import Teller
from tests.cluster.conformance import PATIENCE_S, WIDGET, a_widget, eventually

ABOUT = {"apiVersion": "x/v1", "kind": "Widget", "metadata": {"name": "w", "namespace": "n", "uid": "1"}}


class Slow:
    """A cluster in which Events wait until they are let through, or that is away."""

    def __init__(self):
        self.cluster = MemoryCluster()
        self.open = asyncio.Event()
        self.away = False
        self.notes = []

    def __getattr__(self, name):
        return getattr(self.cluster, name)

    async def create(self, kind, manifest):
        if kind == kinds.EVENT:
            await self.open.wait()
            if self.away:
                raise Unavailable("the server is away")
            self.notes.append(manifest["note"])
        return await self.cluster.create(kind, manifest)


@pytest.fixture
def slow():
    return Slow()


@contextlib.asynccontextmanager
async def telling_of(cluster, may_write=lambda: True):
    teller = Teller(cluster, "tester", clock=lambda: 1000.0, may_write=may_write)
    task = asyncio.create_task(teller.run())
    try:
        yield teller
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_events_are_written_in_the_order_in_which_they_were_said(slow):
    async with telling_of(slow) as teller:
        for number in range(5):
            teller.say(Emit(ABOUT, "Odd", str(number)))
        slow.open.set()
        await teller.finish(PATIENCE_S)

    assert slow.notes == ["0", "1", "2", "3", "4"]


async def test_what_is_said_while_too_much_waits_takes_the_place_of_the_oldest(slow, monkeypatch, caplog):
    monkeypatch.setattr(telling, "_WAITING_AT_MOST", 2)
    async with telling_of(slow) as teller:
        for number in range(5):
            teller.say(Emit(ABOUT, "Odd", str(number)))
        slow.open.set()
        await teller.finish(PATIENCE_S)

    assert slow.notes == ["3", "4"]
    assert "3 events were left out" in caplog.text


async def test_warnings_give_way_last(slow, monkeypatch):
    monkeypatch.setattr(telling, "_WAITING_AT_MOST", 2)
    async with telling_of(slow) as teller:
        for number, kind in enumerate(("Warning", "Normal", "Normal", "Warning", "Normal", "Warning")):
            teller.say(Emit(ABOUT, "Odd", str(number), type=kind))
        slow.open.set()
        await teller.finish(PATIENCE_S)

    assert slow.notes == ["3", "5"]


async def test_while_the_server_is_away_what_waits_is_left_out_and_what_comes_later_is_written(slow, caplog):
    caplog.set_level(logging.WARNING)
    async with telling_of(slow) as teller:
        slow.away = True
        slow.open.set()
        for number in range(3):
            teller.say(Emit(ABOUT, "Odd", str(number)))
        await teller.finish(PATIENCE_S)
        slow.away = False
        teller.say(Emit(ABOUT, "Odd", "later"))
        await teller.finish(PATIENCE_S)

    assert slow.notes == ["later"]
    assert "2 events were left out" in caplog.text


async def test_who_may_not_write_tells_nothing(slow):
    slow.open.set()
    async with telling_of(slow, may_write=lambda: False) as teller:
        teller.say(Emit(ABOUT, "Odd", "something"))
        await teller.finish(PATIENCE_S)

    assert slow.notes == []


async def test_what_is_done_waits_for_no_event_and_a_loop_that_stops_writes_what_it_has_said(slow):
    looked = []

    def reconcile(key, world, _now):
        looked.append(key.name)
        subject = world.get(WIDGET, key.name, key.namespace)
        return Plan((Emit(subject, "Seen", f"{key.name} was seen"),))

    loop = Loop(slow, Controller("tester", reconcile, {WIDGET: itself(WIDGET)}))
    task = asyncio.create_task(loop.run())
    for name in ("a", "b"):
        await slow.create(WIDGET, a_widget("default", name))

    async def both():
        return {"a", "b"} <= set(looked)

    await eventually(both)
    assert slow.notes == []
    slow.open.set()
    loop.stop()
    await asyncio.wait_for(task, PATIENCE_S)
    assert slow.notes == ["a was seen", "b was seen"]
