"""Tenants share over all pickers, through a real Redis; each picker by itself while that is away."""

import dataclasses
import time
from contextlib import asynccontextmanager

from extproc.adapters.redis_limits import Stores
from extproc.adapters.shares import Shares
from tests.flow.room import RULES, Room
from tests.limits import server


@asynccontextmanager
async def two(address):
    """Two pickers' gates, one endpoint each, and their exchanges."""
    rules = dataclasses.replace(RULES, redis=address)
    stores = [Stores((), picker=name) for name in ("p", "q")]
    rooms = [Room(rules), Room(rules)]
    try:
        yield rooms, [Shares(room.gate, one.client, time.time) for room, one in zip(rooms, stores, strict=True)]
    finally:
        for one in stores:
            await one.close()


def serve(room):
    """Let the request that is served end, so that the next one goes; returns whose it was."""
    (ticket,) = room.sent
    asked = room.asked[ticket]
    room.end(asked, prompt=100)
    return asked.passed.tenant


def backlog(room, *tenants, each=60):
    for _ in range(each):
        for tenant in tenants:
            room.ask(tenant, prompt=100, output=0)


async def test_what_a_tenant_is_served_elsewhere_counts_here():
    async with server.running() as redis, two(redis.address) as (rooms, shares):
        here, there = rooms
        backlog(here, "both", "one")
        backlog(there, "both")
        served = {"both": 0, "one": 0}
        for _ in range(40):
            for one in shares:
                await one.exchange()
            for room in (here, there):
                served[serve(room)] += 1

    assert sum(one.counts["ok"] for one in shares) == 80
    assert abs(served["both"] - served["one"]) <= 4  # by itself, each picker would have made it 60 to 20


async def test_what_it_was_served_elsewhere_while_it_did_not_wait_here_does_not():
    async with server.running() as redis, two(redis.address) as (rooms, shares):
        here, there = rooms
        backlog(there, "early")
        backlog(here, "late")
        for _ in range(20):
            serve(there)
            for one in shares:
                await one.exchange()
        backlog(here, "early")
        for one in shares:
            await one.exchange()
        order = [serve(here) for _ in range(20)]

    assert abs(order.count("early") - order.count("late")) <= 2


async def test_without_redis_each_picker_goes_on_by_itself_and_tells_later():
    async with server.running() as redis, two(redis.address) as (rooms, shares):
        here, there = rooms
        backlog(here, "both", "one")
        backlog(there, "both")
        for one in shares:
            await one.exchange()
        redis.kill()
        order = []
        for _ in range(10):
            await shares[0].exchange()
            order.append(serve(here))
            serve(there)
        assert order.count("both") == order.count("one") == 5
        assert shares[0].counts["failed"] == 10

        redis.start()
        await redis.ready()
        for _ in range(3):
            for one in shares:
                await one.exchange()
        assert shares[0].counts["ok"] >= 2
        assert set(here.gate.queues["ns/engines"].bands[0].counters.fresh) == set()


async def test_without_an_address_nothing_is_told():
    room = Room()
    shares = Shares(room.gate, lambda _address: None, time.time)
    room.end(room.ask("a"))

    await shares.exchange()
    room.gate.forget()

    assert not shares.counts
    assert room.gate.queues["ns/engines"].bands[0].counters.fresh == {}
