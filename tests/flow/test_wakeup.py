"""When a picker says that requests wait for an engine, and when it does not."""

import asyncio
import dataclasses
import logging

import numpy as np
import pytest

from extproc.adapters.wakeup import WakeUps
from matrixinfer.cluster.protocol import Unavailable
from tests.flow.room import RULES, Room

HOLDING = dataclasses.replace(RULES, no_endpoint_ttl_s=60.0)


class Heard:
    """What was said, in place of a feed."""

    def __init__(self):
        self.said = []
        self.error = None

    async def held(self, namespace, name):
        self.said.append((namespace, name))
        if self.error is not None:
            raise self.error


def a_room(endpoints=0):
    room, heard = Room(HOLDING, endpoints=endpoints), Heard()
    return room, heard, WakeUps(room.gate, heard.held, clock=lambda: room.now)


async def test_held_requests_are_told_of_at_once_and_then_every_few_seconds():
    room, heard, wakeups = a_room()
    room.ask()
    room.ask()
    counts = []
    for _ in range(21):
        await wakeups.look()
        counts.append(len(heard.said))
        room.now += 0.5

    assert counts == [1] * 10 + [2] * 10 + [3]
    assert set(heard.said) == {("ns", "engines")}


async def test_each_model_server_is_told_of_by_itself():
    room, heard, wakeups = a_room()
    room.ask(pool="ns/a")
    await wakeups.look()
    room.ask(pool="ns/b")
    await wakeups.look()

    assert heard.said == [("ns", "a"), ("ns", "b")]


async def test_nobody_is_told_of_requests_that_wait_for_a_busy_engine():
    room, heard, wakeups = a_room(endpoints=1)
    room.ask()
    waiting = room.ask()
    await wakeups.look()

    assert waiting.waits
    assert heard.said == []


async def test_it_is_over_when_an_engine_is_ready_and_told_at_once_when_it_begins_anew():
    room, heard, wakeups = a_room(endpoints=1)
    ready, room.rows = room.rows, np.array([], dtype=np.intp)
    asked = room.ask()
    await wakeups.look()
    room.rows = ready
    room.gate.pump()
    await wakeups.look()
    assert not asked.waits

    room.end(asked)
    room.rows = np.array([], dtype=np.intp)
    room.ask()
    await wakeups.look()

    assert heard.said == [("ns", "engines")] * 2


async def test_a_client_that_leaves_is_told_of_no_more():
    room, heard, wakeups = a_room()
    asked = room.ask()
    room.gate.leave(asked.ticket)
    await wakeups.look()

    assert heard.said == []


@pytest.mark.parametrize("error", [Unavailable("away"), TimeoutError()])
async def test_that_nobody_hears_is_a_warning_once_and_tried_again(error, caplog):
    room, heard, wakeups = a_room()
    heard.error = error
    room.ask()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await wakeups.look()
            room.now += 5

    assert len(heard.said) == 3
    assert [record.getMessage() for record in caplog.records] == ["nobody hears that requests wait for an engine"]


async def test_it_looks_by_itself():
    room, heard, wakeups = a_room()
    room.ask()
    looking = asyncio.create_task(wakeups.run())
    async with asyncio.timeout(20):
        while not heard.said:  # noqa: ASYNC110 - the fake has nothing to await
            await asyncio.sleep(0.02)
    looking.cancel()
