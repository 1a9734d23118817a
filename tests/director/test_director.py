"""One request's story, with everything real behind it."""

import json
from collections import Counter

import numpy as np
import pytest

from extproc import errors
from extproc.types import Decision, HttpRequest, Reply, Usage
from tests.director.stage import ADDRESSES, Stage, a_chat, a_route, an_outcome, words
from tests.kvcache.builders import Engine, an_index


def test_a_chat_is_placed_on_an_endpoint_with_fallbacks_behind_it():
    stage = Stage()

    decision = stage.decide(a_chat("hi"))

    assert isinstance(decision, Decision)
    assert (decision.target, decision.body, decision.usage) == ("ns/engines", None, Usage.AS_IS)
    assert sorted(decision.endpoints) == sorted(ADDRESSES)
    assert sum(stage.inflight()) == 1


def test_later_turns_land_where_the_first_one_did():
    stage = Stage()
    for seed in range(10):
        turns = [words(seed, 400)]
        first = stage.decide(a_chat(*turns)).endpoints[0]
        for turn in range(4):
            turns += [words(100 + seed, 50), words(1000 + 10 * seed + turn, 50)]
            decision = stage.decide(a_chat(*turns))
            stage.director.settle(an_outcome(decision))

            assert decision.endpoints[0] == first


def test_requests_that_share_nothing_spread_evenly():
    stage = Stage()

    placed = Counter(stage.decide(a_chat(words(seed, 200))).endpoints[0] for seed in range(400))

    assert all(90 <= placed[address] <= 110 for address in ADDRESSES)


def test_a_request_keeps_the_name_under_which_the_gateway_knows_it():
    stage = Stage()

    decision = stage.decide(a_chat("hi")._replace(ticket="t-9"))

    assert (decision.ticket, stage.director.sent_at("t-9") is not None) == ("t-9", True)


def test_settlement_ends_the_request_once():
    stage = Stage()
    decision = stage.decide(a_chat("hi"))

    settlement = stage.director.settle(an_outcome(decision))

    assert settlement.served == decision.endpoints[0]
    assert stage.director.settle(an_outcome(decision)) is None
    assert sum(stage.inflight()) == 0
    assert stage.director.recent[decision.ticket].settlement == settlement._replace(chain=())


def test_after_a_failover_the_next_turn_follows_the_endpoint_that_served():
    stage = Stage()
    turns = [words(1, 400)]
    decision = stage.decide(a_chat(*turns))
    first, second = decision.endpoints[:2]
    stage.director.settle(an_outcome(decision, endpoint=second, attempts=2))

    later = stage.decide(a_chat(*turns, "x", "y"))

    assert later.endpoints[0] == second
    assert stage.table.avoid_until[stage.table.row(first)] > stage.clock.now


def test_what_an_endpoint_held_is_forgotten_when_it_leaves():
    stage = Stage()
    decision = stage.decide(a_chat(words(1, 400)))
    row = stage.table.row(decision.endpoints[0])

    stage.director.endpoint_left(row)

    assert stage.index.held(row) == 0
    assert sum(stage.inflight()) == 0


def test_a_stream_is_asked_for_usage_and_the_model_is_renamed():
    stage = Stage(model="org/demo-7b")

    decision = stage.decide(a_chat("hi", stream=True))

    body = json.loads(decision.body)
    assert body["model"] == "org/demo-7b"
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert decision.usage is Usage.HIDE_ALL


def test_only_endpoints_of_the_gateways_subset_are_chosen():
    stage = Stage()

    decisions = [stage.decide(a_chat("hi", subset=(ADDRESSES[2], "10.0.0.1:1"))) for _ in range(5)]

    assert {decision.endpoints for decision in decisions} == {(ADDRESSES[2],)}
    for empty in ((), ("10.0.0.1:1",), ("127.0.0.3:8001",)):
        with pytest.raises(errors.NoEndpoints):
            stage.decide(a_chat("hi", subset=empty))


def test_an_adapter_goes_where_it_is_loaded():
    stage = Stage(route=a_route(loraAdapters=["adapter"]), model="org/demo-7b")
    stage.table.models[stage.table.row(ADDRESSES[3])] = frozenset({"org/demo-7b", "adapter"})

    decision = stage.decide(HttpRequest("POST", "/v1/completions", {}, b'{"model":"adapter","prompt":"hi"}'))

    assert decision.endpoints == (ADDRESSES[3],)
    assert decision.body is None


def test_without_endpoints_the_client_is_told_when_to_come_back():
    with pytest.raises(errors.NoEndpoints) as caught:
        Stage(addresses=()).decide(a_chat("hi"))

    assert caught.value.retry_after_s


def test_a_saturated_pool_says_when_to_come_back():
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": "least-request-filter", "parameters": {"maxWaitingRequests": 1}}],
        "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "least-request-filter"}]}],
    }
    stage = Stage(document=document)
    stage.table.waiting[:] = 50

    with pytest.raises(errors.Saturated) as caught:
        stage.decide(a_chat("hi"))

    assert caught.value.retry_after_s == 1
    assert sum(stage.inflight()) == 0


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models?x=1"])
def test_models_are_listed(path):
    reply = Stage(route=a_route(loraAdapters=["adapter"])).decide(HttpRequest("GET", path, {}, b""))

    assert isinstance(reply, Reply)
    assert [model["id"] for model in json.loads(reply.body)["data"]] == ["adapter", "demo"]


def test_one_model_is_described():
    stage = Stage()

    assert json.loads(stage.decide(HttpRequest("GET", "/v1/models/demo", {}, b"")).body)["owned_by"] == "matrixinfer"
    with pytest.raises(errors.UnknownModel):
        stage.decide(HttpRequest("GET", "/v1/models/other", {}, b""))


def test_a_client_that_asks_is_told_why():
    decision = Stage().decide(a_chat("hi", headers={"x-matrixinfer-explain": "1", "x-request-id": "é"}))

    told = json.loads(decision.explanation)
    assert decision.explanation.isascii()
    assert told["endpoints"] == list(decision.endpoints)
    assert len(told["candidates"]) == len(ADDRESSES)
    assert told["reason"]


def test_recent_decisions_are_bounded():
    stage = Stage()
    for _ in range(600):
        stage.director.settle(an_outcome(stage.decide(a_chat("hi"))))

    assert len(stage.director.recent) == 512
    assert next(iter(stage.director.recent)) == "t88"


def test_a_refused_request_leaves_no_trace():
    stage = Stage()
    for body in (b"", b"{", b'{"model":"other","messages":[{}]}'):
        with pytest.raises(errors.Rejection):
            stage.decide(HttpRequest("POST", "/v1/chat/completions", {}, body))

    assert (sum(stage.inflight()), len(stage.ledger), len(stage.director.recent)) == (0, 0, 0)


@pytest.mark.parametrize("loss", ["restart", "clear"])
def test_what_was_learned_of_an_engine_is_forgotten_when_its_events_say_that_it_lost_all(loss):
    exact = an_index()
    stage = Stage(exact=exact)
    engine = Engine(exact, row=1)
    engine.publish(engine.stored(range(8)))
    for row in (0, 1):
        stage.index.learn([11, 12, 13], row)
    if loss == "restart":
        engine.restart()
        engine.publish(engine.stored(range(4)))
    else:
        engine.publish(engine.cleared())

    assert stage.index.match([11, 12, 13], np.array([0, 1])).tolist() == [3, 0]
