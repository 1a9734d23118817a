"""A request's whole story with flow control: limits before the queue, candidates after it, leaving at any moment."""

import asyncio

import pytest

from extproc import errors, plugins
from extproc.adapters.errands import Errands
from extproc.adapters.turns import Turns
from extproc.scheduling import config
from extproc.types import Decision, Turn
from tests.director.stage import ADDRESSES, Stage, Waiting, a_chat, a_route, an_outcome, told

LIMIT = {"unit": "hour", "requestsPerUnit": 10}


def a_stage(addresses=ADDRESSES[:1], *, each=1, rate_limit=None, **section):
    route = a_route(rateLimit=rate_limit) if rate_limit else None
    stage = Stage(addresses, route=route)
    document = {
        "apiVersion": config.API_VERSIONS[0],
        "kind": config.KIND,
        "plugins": [{"type": "concurrency-detector", "parameters": {"maxConcurrency": each}}],
        "flowControl": {"saturationDetector": {"pluginRef": "concurrency-detector"}, **section},
    }
    found = config.load(document, plugins.BUILTIN)
    stage.director.gate.use(found.flow, config.detector(found))
    stage.clock.now = asyncio.get_running_loop().time()
    stage.errands = Errands(turns=Turns(stage.director.gate))
    return stage


async def test_a_request_that_need_not_wait_yields_nothing():
    stage = a_stage()

    decision = told(stage.director.decide(a_chat("hi")))

    assert isinstance(decision, Decision)
    assert stage.director.recent[decision.ticket].passed.waited_s == 0


async def test_a_request_waits_until_another_ends_and_is_placed_then():
    stage = a_stage()
    first = told(stage.director.decide(a_chat("hi")))
    waiting = Waiting(stage, a_chat("there"))
    await asyncio.sleep(0)
    assert not waiting.heard.done()

    stage.director.settle(an_outcome(first))

    assert isinstance(await waiting.heard, Decision)
    assert stage.inflight() == [1]
    assert stage.director.gate.queues["ns/engines"].granted == 0


async def test_an_endpoint_is_not_thought_slow_because_requests_wait_for_their_turn():
    stage = a_stage()
    first = told(stage.director.decide(a_chat("hi", stream=True)))
    waiting = Waiting(stage, a_chat("there", stream=True))
    stage.clock.now += 7
    stage.director.settle(an_outcome(first))
    second = await waiting.heard
    seen = stage.table.ttft_s[0]

    stage.director.settle(an_outcome(second)._replace(first_token_s=7.1, duration_s=8.0))

    assert seen == pytest.approx(0.1)
    assert stage.table.ttft_s[0] == pytest.approx(0.1)


async def test_a_story_that_is_refused_by_the_clock_says_so():
    stage = a_stage(defaultRequestTTL="50ms")
    told(stage.director.decide(a_chat("hi")))

    refusal = await Waiting(stage, a_chat("there")).heard

    assert isinstance(refusal, errors.WaitedTooLong)
    assert stage.director.gate.count == 0


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_gives_back_its_place_and_its_reservation(begun):
    stage = a_stage(rate_limit=LIMIT)
    told(stage.director.decide(a_chat("hi")))
    waiting = Waiting(stage, a_chat("there"))
    if begun:
        await asyncio.sleep(0)
    assert (stage.director.gate.count, len(stage.director.limiter)) == (1, 2)

    waiting.telling.withdraw()
    for _ in range(3):
        await asyncio.sleep(0)

    assert (stage.director.gate.count, len(stage.director.limiter)) == (0, 1)


async def test_a_client_that_leaves_as_its_turn_comes_passes_it_on():
    stage = a_stage()
    first = told(stage.director.decide(a_chat("hi")))
    leaving, staying = Waiting(stage, a_chat("there")), Waiting(stage, a_chat("too"))
    await asyncio.sleep(0)

    stage.director.settle(an_outcome(first))
    leaving.telling.withdraw()

    assert isinstance(await staying.heard, Decision)
    assert stage.inflight() == [1]


async def test_a_request_over_its_limit_does_not_wait_to_hear_it():
    stage = a_stage(rate_limit={"unit": "hour", "requestsPerUnit": 1})
    told(stage.director.decide(a_chat("hi")))

    with pytest.raises(errors.LimitReached):
        next(stage.director.decide(a_chat("there")))
    assert stage.director.gate.count == 0


async def test_a_shed_request_reserves_nothing():
    stage = a_stage(rate_limit=LIMIT, objectives=[{"name": "batch", "priority": -1}])
    told(stage.director.decide(a_chat("hi")))

    with pytest.raises(errors.Shed):
        next(stage.director.decide(a_chat("there", headers={"x-llm-d-inference-objective": "batch"})))
    assert len(stage.director.limiter) == 1


async def test_without_endpoints_a_request_is_held_only_where_that_is_asked_for():
    with pytest.raises(errors.NoEndpoints):
        next(a_stage(()).director.decide(a_chat("hi")))

    assert isinstance(next(a_stage((), noEndpointRequestTTL="5m").director.decide(a_chat("hi"))), Turn)


async def test_held_requests_go_when_an_endpoint_is_ready():
    stage = a_stage(noEndpointRequestTTL="5m")
    stage.pools.set({})
    waiting = [Waiting(stage, a_chat(str(number))) for number in range(2)]
    await asyncio.sleep(0)
    assert stage.director.gate.held("ns/engines")

    stage.pools.set({"ns/engines": ADDRESSES[:1]})
    stage.director.use_routes(stage.director.routes)

    first = await waiting[0].heard
    assert first.endpoints == ADDRESSES[:1]
    assert not waiting[1].heard.done()
    stage.director.settle(an_outcome(first))
    assert isinstance(await waiting[1].heard, Decision)


async def test_full_endpoints_are_only_fallen_back_to():
    stage = a_stage(ADDRESSES, each=1)
    decisions = [told(stage.director.decide(a_chat("the same words", "for all", "of them"))) for _ in range(4)]

    assert {one.endpoints[0] for one in decisions} == set(ADDRESSES)
    assert all(sorted(one.endpoints) == sorted(ADDRESSES) for one in decisions)
    assert stage.inflight() == [1, 1, 1, 1]


async def test_a_record_tells_priority_tenant_and_wait():
    stage = a_stage(tenants=[{"name": "acme", "priority": 3}])

    decision = told(stage.director.decide(a_chat("hi", headers={"x-matrixinfer-explain": "1"})._replace(tenant="acme")))

    assert '"queue":{"priority":3,"tenant":"acme","waited_s":0.0}' in decision.explanation


async def test_turning_it_off_lets_everybody_go():
    stage = a_stage()
    told(stage.director.decide(a_chat("hi")))
    waiting = [Waiting(stage, a_chat(str(number))) for number in range(3)]
    await asyncio.sleep(0)

    stage.director.gate.use(None, None)

    assert all(isinstance(one, Decision) for one in await asyncio.gather(*(one.heard for one in waiting)))
