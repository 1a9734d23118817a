"""What holds at the gate for any sizes, prices, weights, arrivals, and ends in any order."""

import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.scheduling.flow import Prices, Tenant
from extproc.traffic.flow.queue import State
from tests.flow.room import BAND, POOL, RULES, Room

SEEDS = st.integers(0, 1 << 32)
LOCALITIES = st.sampled_from([0, 1000])
TOKENS = st.integers(0, 2000)
PRICES = st.builds(
    Prices,
    request=st.just(0.0),
    input=st.sampled_from([0.5, 1.0]),
    cached=st.sampled_from([0.0, 0.1]),
    output=st.sampled_from([1.0, 2.0, 4.0]),
    locality=st.sampled_from([0, 500, 5000]),
)
WEIGHTS = st.sampled_from([0.5, 1.0, 3.0])


def fair(prices, weights):
    tenants = {name: Tenant(name, weight) for name, weight in weights.items()}
    return dataclasses.replace(RULES, default=BAND._replace(prices=prices), tenants=tenants)


def keep_waiting(room, chance):
    """Let both tenants have more waiting than can go at one end of a request."""
    for name in ("a", "b"):
        while len(room.gate.queues[POOL].bands[0].flows.get(name, ())) < 2:
            room.ask(
                name,
                prompt=chance.randint(0, 2000),
                output=chance.randint(0, 2000),
                known=lambda: chance.randint(0, 2000),
            )


@settings(max_examples=60)
@given(SEEDS, PRICES, WEIGHTS, WEIGHTS, st.integers(1, 4))
def test_tenants_that_wait_never_differ_by_more_than_the_bound(seed, prices, weight_a, weight_b, slots):
    """W: weighted tokens served, by weight; U: the most that one request counts; F: what may be in flight.

    Counters differ by locality + (F + 1) U at most. Served is what has ended; up to F requests are charged and have not.
    """
    chance = random.Random(seed)
    weights = {"a": weight_a, "b": weight_b}
    room = Room(fair(prices, weights), slots=slots)
    costliest = max(prices.weighed(2000, 0, 0), 0) + prices.output * 2000
    unit = costliest / min(weights.values())
    counters_bound = prices.locality + (slots + 1) * unit
    bound = 2 * counters_bound + slots * unit
    served = {"a": 0.0, "b": 0.0}
    for _ in range(slots):
        room.ask("a", prompt=0, output=0)
    keep_waiting(room, chance)
    counters = room.gate.queues[POOL].bands[0].counters

    for _ in range(60):
        keep_waiting(room, chance)
        ticket = chance.choice(sorted(room.sent))
        prompt, cached, output = chance.randint(0, 2000), chance.randint(0, 2000), chance.randint(0, 2000)
        asked = room.asked[ticket]
        room.end(asked, prompt=prompt, cached=cached, output=output)
        tenant = asked.passed.tenant
        served[tenant] += prices.weighed(prompt, min(cached, prompt), output) / weights[tenant]

        assert abs(counters.level("a") - counters.level("b")) <= counters_bound + 1e-6
        assert abs(served["a"] - served["b"]) <= bound + 1e-6


@settings(max_examples=60)
@given(SEEDS, WEIGHTS, WEIGHTS, LOCALITIES)
def test_with_exact_estimates_they_differ_by_one_request_and_the_locality(seed, weight_a, weight_b, locality):
    chance = random.Random(seed)
    prices = Prices(input=1.0, output=0.0, locality=locality)
    room = Room(fair(prices, {"a": weight_a, "b": weight_b}))
    room.ask("a", prompt=0)
    keep_waiting(room, chance)
    counters = room.gate.queues[POOL].bands[0].counters

    for _ in range(60):
        keep_waiting(room, chance)
        (ticket,) = room.sent
        room.end(room.asked[ticket], prompt=room.gate._entries[ticket].tokens[0])

        gap = abs(counters.level("a") - counters.level("b"))
        assert gap <= prices.locality + 2000 / min(weight_a, weight_b) + 1e-6


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abc"), st.integers(0, 400), st.sampled_from(["", "low", "high"])),
        st.tuples(st.sampled_from(["end", "lose", "leave"]), st.integers(0, 50), TOKENS, st.booleans()),
        st.tuples(st.just("wait"), st.integers(0, 30), st.just(0), st.just("")),
        st.tuples(st.just("endpoints"), st.integers(0, 3), st.just(0), st.just("")),
    ),
    max_size=120,
)


def consistent(room):
    """Hold the gate's books against what is there."""
    gate = room.gate
    waiting = room.waiting()
    assert gate.count == len(waiting)
    assert gate.size == sum(gate._entries[one.ticket].size for one in waiting)
    queue = gate.queues.get(POOL)
    if queue is None:
        return
    assert queue.count == sum(band.count for band in queue.bands.values()) == len(waiting)
    assert queue.granted == 0
    for band in queue.bands.values():
        assert band.count == sum(len(flow) for flow in band.flows.values()) <= band.rule.max_requests
        assert band.size == sum(flow.size for flow in band.flows.values()) <= band.rule.max_bytes
        assert all(band.flows.values())


@settings(max_examples=150)
@given(STEPS, st.integers(1, 3), st.integers(0, 6))
def test_bounds_hold_nothing_idles_and_nothing_is_lost(steps, slots, most):
    band = BAND._replace(max_requests=4, max_bytes=900, ttl_s=20.0)
    rules = dataclasses.replace(
        RULES,
        default=band,
        bands={5: band, -5: band},
        keys={"low": -5, "high": 5},
        max_requests=most,
        no_endpoint_ttl_s=50.0,
    )
    room = Room(rules, slots=slots, endpoints=3)
    everywhere = room.rows
    for step in steps:
        match step:
            case ("ask", tenant, size, key):
                room.ask(tenant, key=key, size=size)
            case ("end" | "lose", at, tokens, served) if room.sent:
                asked = room.asked[sorted(room.sent)[at % len(room.sent)]]
                room.end(asked, prompt=tokens, output=tokens, served=served, expired=step[0] == "lose")
            case ("leave", at, *_) if room.waiting():
                waiting = room.waiting()
                room.leave(waiting[at % len(waiting)])
            case ("wait", seconds, *_):
                room.now += seconds
                room.gate.expire(room.now)
                assert all(room.gate._entries[one.ticket].deadline > room.now for one in room.waiting())
            case ("endpoints", count, *_):
                room.rows = everywhere[:count]
                room.gate.pump()
        consistent(room)
        assert most == 0 or room.gate.count <= most
        if room.waiting():  # work is conserved: nobody waits beside a place
            assert all(room.table.inflight[row] >= slots for row in room.rows)
        assert all(room.table.inflight[row] <= slots for row in everywhere)

    room.rows = everywhere
    room.gate.pump()
    while room.sent:
        room.end(room.asked[next(iter(room.sent))], prompt=10, output=1)
    assert room.waiting() == []
    assert room.gate._entries == {}
    assert all((one.passed is None) != (one.refusal is None) or one.over for one in room.asked.values())


@settings(max_examples=40)
@given(SEEDS, st.integers(2, 5), LOCALITIES)
def test_nobody_starves(seed, tenants, locality):
    """However others flood: a request is served after at most as many requests as fit into the bound on counters."""
    chance = random.Random(seed)
    prices = Prices(input=1.0, output=0.0, locality=locality)
    room = Room(fair(prices, {}))
    room.ask("flood", prompt=0)
    for number in range(40):
        room.ask(f"t{number % tenants}", prompt=chance.randint(500, 2000), known=lambda: chance.randint(0, 2000))
    late = room.ask("late", prompt=2000)
    turns = 0
    while late.waits:
        (ticket,) = room.sent
        room.end(room.asked[ticket], prompt=room.gate._entries[ticket].tokens[0])
        room.ask(f"t{turns % tenants}", prompt=chance.randint(500, 2000), known=lambda: chance.randint(0, 2000))
        turns += 1
        # the late one begins beside the lowest; each other gets ahead of it by the locality and a request at most
        assert turns <= tenants * ((2 * prices.locality + 2 * 2000) / 500 + 2)
    assert room.gate._entries[late.ticket].state is State.SENT
