"""Real Envoy under changes: nothing is lost on the way, a refusal keeps what was good, a restart finds its way back."""

from __future__ import annotations

import asyncio

import pytest

from controllers import ir
from tests.local.waiting import eventually
from tests.xds.stack import Envoy, demo, running

pytestmark = pytest.mark.envoy


async def test_routes_clusters_and_endpoints_change_under_load_without_a_failed_request():
    async with running() as stack:
        stack.pick(0, 1, 2)
        statuses = []
        stop = asyncio.Event()

        async def load():
            while not stop.is_set():
                statuses.append((await stack.envoy.request()).status)

        clients = [asyncio.create_task(load()) for _ in range(4)]
        for number in range(6):
            other = ir.Backend("default", f"other-{number}", (ir.Endpoint("127.0.0.1", stack.engines[1].port),))
            members = stack.engines[: 2 + number % 2]
            delivery = await stack.apply(
                backends=(demo(members, timeout_s=10.0 + number), other),
                models=(ir.Model(f"model-{number}", (ir.Rule((ir.Share("default", other.name, 1),)),)),),
            )
            assert delivery.refusals == ()
            seen = len(statuses)
            await eventually(lambda seen=seen: len(statuses) >= seen + 8)
        stop.set()
        await asyncio.gather(*clients)

    assert set(statuses) == {200}


def a_model(name, **rule):
    return ir.Model(name, (ir.Rule((ir.Share("default", "demo", 1),), **rule),))


async def test_what_envoy_refuses_is_left_out_and_named_and_the_rest_is_served():
    async with running() as stack:
        broken = a_model("broken", path=ir.TextMatch(ir.Match.REGEX, "("))

        refused = await stack.apply(models=(a_model("demo"), a_model("new"), broken, a_model("newer")))
        await stack.picker.stop()
        answers = {
            name: (await stack.envoy.request(body=b'{"model":"%s"}' % name.encode())).status
            for name in ("demo", "new", "newer", "broken")
        }
        again = await stack.apply(backends=(demo(stack.engines[:1]),))
        healed = await stack.apply(models=(a_model("demo"), a_model("broken")))
        broken_healed = await stack.envoy.request(body=b'{"model":"broken"}')

    assert [(refusal.models, refusal.backends) for refusal in refused.refusals] == [({"broken"}, set())]
    assert "missing )" in refused.refusals[0].message
    assert answers == {"demo": 200, "new": 200, "newer": 200, "broken": 404}
    assert again.refusals == refused.refusals
    assert (healed.refusals, broken_healed.status) == ((), 200)


async def test_an_endpoint_that_envoy_refuses_is_traced_to_its_modelserver():
    async with running() as stack:
        stack.pick(0)
        broken = ir.Backend("default", "broken", (ir.Endpoint("no address", 80),))

        delivery = await stack.apply(backends=(*stack.config.backends, broken))

    assert [refusal.backends for refusal in delivery.refusals] == [frozenset({("default", "broken")})]


async def test_several_envoys_are_served_and_one_that_restarts_catches_up():
    async with running() as stack:
        stack.pick(0)
        second = Envoy(stack.envoy.folder, name="second", publisher=stack.envoy.publisher)
        await second.start(stack.config)
        assert stack.envoy.publisher.delivery().envoys == 2
        first_answer, second_answer = await stack.envoy.request(), await second.request()
        await second.kill()

        await stack.apply(backends=(demo(stack.engines[:1]),))
        await second.start(stack.config)
        again = await second.request()
        await second.kill()

    assert [answer.status for answer in (first_answer, second_answer, again)] == [200, 200, 200]


async def test_envoy_serves_on_without_a_control_plane():
    async with running() as stack:
        stack.pick(0)
        await stack.envoy.publisher.stop()

        answer = await stack.envoy.request()

    assert answer.status == 200


async def test_an_envoy_that_asks_after_its_control_plane_keeps_its_stream(caplog):
    caplog.set_level("INFO", logger="controllers.xds.ads")
    async with running(served=False) as stack:
        await stack.envoy.start(stack.config, ping="0.1s")
        await asyncio.sleep(2)  # twenty pings; gRPC's own default hangs up at the third

    assert [record.message for record in caplog.records].count("envoy connected") == 1
