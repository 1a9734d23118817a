"""What becomes of a rule with several targets: overflow, failover, and callers who stay where they are."""

import asyncio
import json

import pytest

from extproc import errors
from extproc.adapters.errands import Errands
from extproc.adapters.turns import Turns
from extproc.scheduling.endpoints import Endpoint
from extproc.traffic.routes import RouteTable
from matrixinfer.api import dataplane, networking
from tests.director.stage import ADDRESSES, Stage, Waiting, a_chat, a_route, an_outcome
from tests.flow.room import RULES, Slots

FILTERED = {
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [{"type": "least-request-filter", "parameters": {"maxWaitingRequests": 1}}],
    "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "least-request-filter"}]}],
}
OWN, SPARE = ADDRESSES[:2], "127.0.0.9:8000"


def a_server(name, model):
    return networking.ModelServer.model_validate(
        {
            "metadata": {"namespace": "ns", "name": name},
            "spec": {
                "model": model,
                "inferenceEngine": "vLLM",
                "workloadSelector": {"matchLabels": {"app": name}},
                "workloadPort": {"port": 8000},
            },
        }
    )


def a_stage(document=None, **target):
    """`ns/engines` on two endpoints, `ns/spare` on another."""
    stage = Stage(OWN, document=document)
    stage.table.upsert(Endpoint(SPARE, "ns/spare", "vLLM"))
    stage.table.scraped_at[:] = 100.0
    stage.pools.set({"ns/engines": OWN, "ns/spare": [SPARE]})
    targets = [{"modelServerName": "engines"}, {"modelServerName": "spare", "overflow": True} | target]
    servers = [a_server("engines", "own-name"), a_server("spare", "spare-name")]
    stage.director.use_routes(RouteTable.build([a_route(rules=[{"targetModels": targets}])], servers))
    return stage


def busy(stage, *addresses):
    for address in addresses:
        stage.table.waiting[stage.table.row(address)] = 50.0


def test_what_saturated_endpoints_refuse_goes_to_the_modelserver_that_overflows():
    stage = a_stage(FILTERED)
    busy(stage, *OWN)

    decision = stage.decide(a_chat("hi"))

    assert decision.target == "ns/spare"
    assert decision.endpoints[0] == SPARE
    assert json.loads(decision.body)["model"] == "spare-name"


def test_where_both_are_saturated_the_request_is_refused():
    stage = a_stage(FILTERED)
    busy(stage, *OWN, SPARE)

    with pytest.raises(errors.Saturated):
        stage.decide(a_chat("hi"))

    assert sum(stage.inflight()) == 0


def test_what_would_have_to_wait_goes_to_the_modelserver_that_overflows():
    stage = a_stage()
    stage.director.gate.use(RULES, Slots(1))

    decisions = [stage.decide(a_chat("hi")) for _ in range(3)]

    assert [decision.target for decision in decisions] == ["ns/engines", "ns/engines", "ns/spare"]
    stage.director.settle(an_outcome(decisions[0]))
    assert stage.decide(a_chat("hi")).target == "ns/engines"


def test_while_it_has_a_place_the_own_modelserver_gets_everything():
    stage = a_stage()

    assert {stage.decide(a_chat("hi", str(number))).target for number in range(20)} == {"ns/engines"}


def test_envoy_is_told_where_else_a_request_may_go_and_what_the_model_is_called_there():
    decision = a_stage().decide(a_chat("hi"))

    names = dict(decision.names)
    start, length = (int(number) for number in names.pop(dataplane.SPAN).split(":"))
    assert sorted(decision.endpoints) == sorted([*OWN, SPARE])
    assert decision.endpoints[-1] == SPARE
    assert decision.body[start : start + length] == b'"own-name"'
    assert names == {SPARE: '"spare-name"'}
    assert dict(decision.headers)[dataplane.HANDLING]


def test_a_prefix_that_was_served_elsewhere_is_not_learned_there():
    stage = a_stage()
    decision = stage.decide(a_chat("a long story " * 300))

    settlement = stage.director.settle(an_outcome(decision, endpoint=SPARE, attempts=3))

    assert settlement.target == "ns/spare"
    assert settlement.failed == decision.endpoints[:2]
    assert stage.index.held(stage.table.row(SPARE)) == 0


@pytest.mark.parametrize("kept", [True, False])
async def test_who_waited_while_its_rule_changed_is_not_sent_where_envoy_has_no_route_any_more(kept):
    stage = a_stage()
    stage.director.gate.use(RULES, Slots(1))
    stage.errands = Errands(turns=Turns(stage.director.gate))
    before = stage.director.routes
    first = [stage.decide(a_chat("hi")) for _ in range(3)]
    waiting = Waiting(stage, a_chat("there"))
    await asyncio.sleep(0)
    stage.clock.now += 1
    if not kept:
        targets = [{"modelServerName": "engines"}]
        stage.director.use_routes(
            RouteTable.build([a_route(rules=[{"targetModels": targets}])], before.servers.values())
        )

    for one in first:
        stage.director.settle(an_outcome(one))
    decision = await waiting.heard

    assert (dataplane.HANDLING in dict(decision.headers)) == kept
    assert (SPARE in decision.endpoints) == kept
    assert decision.endpoints[0] in OWN


@pytest.mark.parametrize(("caller", "who"), [("Tenant", "tenant"), ("APIKey", "key")])
def test_callers_stay_at_one_target(caller, who):
    stage = a_stage(overflow=False)
    rule = {
        "stickyBy": {"caller": caller},
        "targetModels": [{"modelServerName": "engines"}, {"modelServerName": "spare"}],
    }
    servers = [a_server("engines", "own-name"), a_server("spare", "spare-name")]
    stage.director.use_routes(RouteTable.build([a_route(rules=[rule])], servers))

    def targets(name):
        return {stage.decide(a_chat("hi")._replace(**{who: name})).target for _ in range(8)}

    placed = [targets(f"caller-{number}") for number in range(20)]

    assert {len(each) for each in placed} == {1}
    assert set.union(*placed) == {"ns/engines", "ns/spare"}
    assert len(targets("")) == 2
