"""Real Envoy while the picker is down or frozen: open, it balances by itself; closed, it says so. Never the client's choice."""

from __future__ import annotations

import pytest

from controllers import ir
from tests.xds.stack import Engine, demo, running

pytestmark = pytest.mark.envoy


@pytest.mark.parametrize("module", [True, False])
async def test_open_it_balances_by_the_model_in_the_body_over_the_rules_of_its_route(module):
    canary = Engine()
    await canary.start()
    async with running(module=module) as stack:
        to_canary = ir.Rule(
            (ir.Share("default", "canary", 1),), headers=(("x-tier", ir.TextMatch(ir.Match.REGEX, "^gold$")),)
        )
        everyone = ir.Rule((ir.Share("default", "demo", 1),), path=ir.TextMatch(ir.Match.PREFIX, "/v1/"))
        await stack.apply(
            backends=(demo(stack.engines), ir.Backend("default", "canary", (ir.Endpoint("127.0.0.1", canary.port),))),
            models=(ir.Model("demo", (to_canary, everyone)),),
        )
        await stack.picker.stop()

        plain = [await stack.envoy.request() for _ in range(6)]
        gold = await stack.envoy.request(x_tier="gold")
        unknown = await stack.envoy.request(body=b'{"model":"nope"}')
        nameless = await stack.envoy.request(body=b"not json")
        elsewhere = await stack.envoy.request(path="/other")
        models = await stack.envoy.request("GET", "/v1/models")
        chosen = await stack.envoy.request(
            x_gateway_destination_endpoint="127.0.0.1:1",
            x_matrixinfer_target="default/canary",
            x_matrixinfer_model="x",
        )

    await canary.stop()
    assert [answer.status for answer in plain] == [200] * 6
    assert (gold.status, len(canary.requests)) == (200, 1)
    assert (unknown.status, nameless.status, elsewhere.status) == (404, 404, 404)
    assert unknown.json["error"]["code"] == "model_not_found"
    assert [model["id"] for model in models.json["data"]] == ["demo"]
    assert chosen.status == 200
    assert sum(len(engine.requests) for engine in stack.engines) == 7


NAMED = {
    b'{"model":"demo"}': 200,
    b' { "messages" : [{"model":"nope","x":{"model":"nope"}}] , "model" : "demo" } ': 200,
    b'{"prompt":"\\"model\\":\\"nope\\"}","model":"demo"}': 200,
    b'{"model":"nope","model":"demo"}': 200,
    b'{"mod\\u0065l":"d\\u0065mo"}': 200,
    b'{"model":"org\\/m\\u00e9\\ud83d\\ude00"}': 200,
    '{"model":"org/mé😀"}'.encode(): 200,
    b'{"model":"demo","model":"nope"}': 404,
    b'{"messages":[{"model":"demo"}]}': 404,
    b'{"model":["demo"]}': 404,
    b'{"model":null}': 404,
    b'{"model":"demo\\r\\nx-matrixinfer-target: default/demo"}': 404,
    b'{"model":"%s"}' % (b"x" * 5000): 404,
    b'{"model":"demo': 404,
    b'["model","demo"]': 404,
    b"": 404,
}


@pytest.mark.parametrize("module", [True, False])
async def test_open_the_model_is_read_as_engines_read_it(module):
    async with running(module=module) as stack:
        rule = ir.Rule((ir.Share("default", "demo", 1),))
        models = (ir.Model("demo", (rule,)), ir.Model("org/mé😀", (rule,)))
        await stack.apply(backends=(demo(stack.engines),), models=models)
        await stack.picker.stop()

        answers = {body: (await stack.envoy.request(body=body)).status for body in NAMED}

    assert answers == NAMED


@pytest.mark.parametrize("module", [True, False])
async def test_open_a_large_body_goes_through_without_the_picker(module):
    async with running(module=module) as stack:
        await stack.picker.stop()
        body = b'{"prompt":"%s","model":"demo"}' % (b"x" * 5_000_000)

        answer = await stack.envoy.request(body=body)

    assert answer.status == 200
    assert sum(request.body == body for engine in stack.engines for request in engine.requests) == 1


async def test_open_a_picker_that_fails_or_freezes_is_gone_around():
    async with running() as stack:
        failing = await stack.envoy.request()
        async with stack.picker.frozen():
            frozen = await stack.envoy.request()

    assert (failing.status, frozen.status) == (200, 200)


async def test_closed_it_answers_503_and_the_health_page_still_answers():
    async with running(fail_open=False) as stack:
        failing = await stack.envoy.request()
        async with stack.picker.frozen():
            frozen = await stack.envoy.request()
        await stack.picker.stop()
        gone = await stack.envoy.request(x_gateway_destination_endpoint=stack.engines[0].address)
        health = await stack.envoy.request("GET", "/healthz")

    assert [answer.status for answer in (failing, frozen, gone)] == [503, 503, 503]
    assert {answer.json["error"]["code"] for answer in (failing, frozen, gone)} == {"no_picker"}
    assert gone.headers["x-matrixinfer-reason"] == "picker-unavailable"
    assert health.status == 200
    assert not any(engine.requests for engine in stack.engines)
