"""What the picker says of requests that go on to a provider after their engines: whom it lists, and how it says them again."""

import json

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from extproc import errors
from extproc.adapters.outward import Outward
from extproc.providers.note import Speech, read
from extproc.providers.relay import Relay
from extproc.traffic.ledger import End
from extproc.traffic.routes import RouteTable
from extproc.types import HttpRequest, Usage
from matrixinfer.api import dataplane
from tests.director.stage import ADDRESSES, a_chat, a_route, a_server, an_outcome
from tests.flow.room import RULES, Slots
from tests.providers.builders import CHAT, MESSAGES, a_provider
from tests.providers.test_story import INSIDE, OUTSIDE, SPARE, a_stage, not_ready

RELAY = dataplane.RELAY_ENDPOINT
HELLO = [{"role": "user", "content": "Hello"}]


def a_relaying_stage(*targets, relays=True, addresses=ADDRESSES, **given):
    stage = a_stage(*(targets or (INSIDE, SPARE)), addresses=addresses, **given)
    stage.director.candidates.relays = relays
    return stage


def relay_of(stage):
    return Relay(stage.director.relay, lambda: stage.director.routes)


def failed(decision, http):
    """What Envoy holds of a request that its engines have failed."""
    return http._replace(body=decision.body or http.body, ticket=decision.ticket)


def relayed(provider, http, model=None):
    """A decided request, and what is said of it in the relay."""
    stage = a_relaying_stage(provider=provider)
    route = a_route(rules=[{"targetModels": [INSIDE, SPARE]}])
    stage.director.use_routes(RouteTable.build([route], [a_server(model)], stage.director.routes.providers.values()))
    decision = stage.decide(http)
    return decision, relay_of(stage).decide(failed(decision, http))


def an_http(path=CHAT, **body):
    text = json.dumps({"model": "demo", "messages": HELLO, **body}).encode()
    return HttpRequest("POST", path, {"content-type": "application/json"}, text)


# ---- who is listed


def test_the_relay_is_last_of_the_list_behind_the_tries_of_the_own_target():
    decision = a_relaying_stage().decide(a_chat("Hello"))

    assert len(decision.endpoints) == 4
    assert decision.endpoints[-1] == RELAY
    assert set(decision.endpoints[:3]) < set(ADDRESSES)
    assert dict(decision.headers)[dataplane.HANDLING].endswith(dataplane.RELAYED)


def test_a_gateway_that_is_not_ours_is_told_nothing_of_it():
    decision = a_relaying_stage(relays=False).decide(a_chat("Hello"))

    assert set(decision.endpoints) == set(ADDRESSES)
    assert not dict(decision.headers)[dataplane.HANDLING].endswith(dataplane.RELAYED)


@pytest.mark.parametrize(
    ("targets", "given"),
    [
        ((INSIDE,), {}),
        ((INSIDE, {**OUTSIDE, "weight": 1}), {}),
        ((INSIDE, {**SPARE, "weight": 0}), {}),
        ((INSIDE, SPARE), {"provider": not_ready()}),
        ((INSIDE, SPARE), {"trafficPolicy": {"retry": {"attempts": 0}}}),
    ],
)
def test_who_takes_no_overflow_or_cannot_gets_nothing_that_failed(targets, given):
    stage = a_relaying_stage(*targets, **given)

    decisions = [stage.decide(a_chat(f"Hello {number}")) for number in range(20)]

    assert all(RELAY not in decision.endpoints for decision in decisions)


def test_a_gateways_own_choice_of_endpoints_is_kept():
    assert a_relaying_stage().decide(a_chat("Hello", subset=ADDRESSES[:1])).endpoints == ADDRESSES[:1]


@pytest.mark.parametrize(
    ("path", "type", "listed"),
    [
        (CHAT, "OpenAI", True),
        (CHAT, "Anthropic", True),
        (MESSAGES, "OpenAI", True),
        (MESSAGES, "Anthropic", True),
        ("/v1/responses", "OpenAI", True),
        ("/v1/responses", "Anthropic", False),
        ("/v1/completions", "Anthropic", False),
        ("/v1/messages/count_tokens", "OpenAI", False),
        ("/tokenize", "OpenAI", False),
    ],
)
def test_a_path_that_the_provider_does_not_know_stays_with_the_engines(path, type, listed):  # noqa: A002 - as in the manifest
    stage = a_relaying_stage(provider=a_provider(type))
    http = an_http(path, **({"max_tokens": 5} if path in (CHAT, MESSAGES) else {"prompt": "Hello", "input": "Hello"}))

    decision = stage.decide(http)

    assert (RELAY in decision.endpoints) is listed
    if listed:
        assert relay_of(stage).decide(failed(decision, http)).target == "provider/ns/p"


# ---- how it is said


def test_the_providers_name_of_the_model_takes_the_engines_place():
    _, said = relayed(a_provider(model="theirs"), an_http(temperature=0.70), model="engines-name")

    assert said.body == an_http(temperature=0.70).body.replace(b'"demo"', b'"theirs"')
    assert (said.target, read(said.provider).speaks) == ("provider/ns/p", Speech.OPENAI)


def test_a_provider_without_a_name_of_its_own_gets_the_clients():
    decision, said = relayed(a_provider(), an_http(), model="engines-name")

    assert json.loads(decision.body)["model"] == "engines-name"
    assert said.body == an_http().body


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({}, {"include_usage": True}),
        ({"stream_options": {"include_usage": True}}, {"include_usage": True}),
        ({"stream_options": {"include_obfuscation": False}}, {"include_usage": True, "include_obfuscation": False}),
    ],
)
def test_a_stream_is_not_asked_for_what_only_engines_know(options, asked):
    decision, said = relayed(a_provider(), an_http(stream=True, **options))

    assert json.loads(decision.body)["stream_options"]["continuous_usage_stats"] is True
    assert json.loads(said.body)["stream_options"] == asked
    assert decision.usage is not Usage.AS_IS


def test_it_is_translated_for_a_provider_of_the_other_api():
    _, said = relayed(a_provider("Anthropic", model="theirs"), an_http(stream=True, max_tokens=7))

    assert json.loads(said.body) == {
        "model": "theirs",
        "max_tokens": 7,
        "stream": True,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
    }
    assert read(said.provider).client is Speech.OPENAI


def test_what_cannot_be_translated_has_failed_at_engines():
    with pytest.raises(errors.EngineFailed, match="n: 2 cannot be asked"):
        relayed(a_provider("Anthropic"), an_http(n=2))


def test_a_provider_that_went_meanwhile_gets_nothing():
    stage = a_relaying_stage()
    http = an_http()
    decision = stage.decide(http)
    stage.director.use_routes(RouteTable())

    with pytest.raises(errors.EngineFailed, match="cannot be used any more"):
        relay_of(stage).decide(failed(decision, http))


# ---- what becomes of it


def test_it_counts_at_no_endpoint_any_more_and_is_settled_once():
    stage = a_relaying_stage()
    http = an_http()
    decision = stage.decide(http)
    before = sum(stage.inflight())

    relay_of(stage).decide(failed(decision, http))
    relay_of(stage).decide(failed(decision, http))
    between = sum(stage.inflight())
    settlement = stage.director.settle(an_outcome(decision, endpoint=RELAY, attempts=4))

    assert (before, between, sum(stage.inflight())) == (1, 0, 0)
    assert (settlement.end, settlement.target, settlement.served) == (End.COMPLETE, "provider/ns/p", RELAY)
    assert settlement.failed == decision.endpoints[:3]
    assert stage.director.settle(an_outcome(decision, endpoint=RELAY)) is None


def test_the_place_that_it_leaves_goes_at_once_to_who_waits():
    stage = a_relaying_stage(addresses=ADDRESSES[:1])
    relaying = a_route(rules=[{"targetModels": [INSIDE, SPARE]}])
    waiting = a_route("patient", modelName="patient")  # the same engines, and nobody who takes what overflows
    known = stage.director.routes.providers.values()
    stage.director.use_routes(RouteTable.build([relaying, waiting], [a_server()], known))
    stage.director.gate.use(RULES, Slots(1))
    http, turns = an_http(), []
    first = stage.decide(http)
    for name in ("one", "other"):
        story = stage.director.decide(an_http(model="patient"))
        next(story).then(lambda refusal, name=name, story=story: turns.append((name, refusal, finish(story))))
    assert turns == []

    relay_of(stage).decide(failed(first, http))

    assert [(name, refusal, decision.endpoints) for name, refusal, decision in turns] == [("one", None, ADDRESSES[:1])]
    assert (stage.inflight(), stage.director.gate.count) == ([1], 1)


def finish(story):
    """Tell a story to its end, its wait being over."""
    with pytest.raises(StopIteration) as end:
        story.send(None)
    return end.value.value


def test_its_tenant_is_charged_once_what_the_provider_counted():
    each = {"unit": "month", "requestsPerUnit": 10, "outputTokensPerUnit": 1000}
    stage = a_relaying_stage(rateLimit={"tenants": [each]})
    http = an_http(max_tokens=500)._replace(tenant="red")
    decision = stage.decide(http)

    relay_of(stage).decide(failed(decision, http))
    settlement = stage.director.settle(an_outcome(decision, endpoint=RELAY, attempts=4))

    charged = settlement.charged
    assert (charged.by, charged.requests, charged.output_tokens) == ("usage", 1, 5)
    told = dict(stage.decide(an_http(max_tokens=0)._replace(tenant="red")).told)
    assert told["x-ratelimit-remaining-requests"] == "8"
    assert told["x-ratelimit-remaining-tokens"] == "995"


def test_a_long_answer_is_not_given_up_because_engines_are_idle():
    stage = a_relaying_stage()
    http = an_http()
    failing, lost = stage.decide(http), stage.decide(http)
    relay_of(stage).decide(failed(failing, http))
    stage.clock.now += 600.0
    stage.table.scraped_at[:] = stage.clock.now

    assert [settlement.sent.ticket for settlement in stage.director.expire()] == [lost.ticket]


def test_a_ticket_that_is_not_open_or_may_not_go_on_is_refused():
    stage = a_relaying_stage()
    http = an_http()
    over = stage.decide(http)
    stage.director.settle(an_outcome(over))
    stage.director.candidates.relays = False
    stays = stage.decide(http)

    for decision in (over, stays):
        with pytest.raises(errors.EngineFailed):
            relay_of(stage).decide(failed(decision, http))
    assert sum(stage.inflight()) == 1


# ---- over the wire


class Call:
    """Keeps what is answered."""

    def __init__(self):
        self.sent = []

    def send(self, data):
        self.sent.append(pb.ProcessingResponse.FromString(data))

    def finish(self, *_status):
        self.sent.append("end")


def asked(service, *, ticket="", end=False, body=None):
    call = Call()
    listener = service.open(call)
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end
    for name, value in (
        (":method", "POST"),
        (":path", CHAT),
        ("content-type", "application/json"),
        (dataplane.RELAY, ticket),
    ):
        entry = message.request_headers.headers.headers.add()
        entry.key, entry.raw_value = name, value.encode()
    listener.on_message(message.SerializeToString())
    if body is not None:
        listener.on_message(pb.ProcessingRequest(request_body=pb.HttpBody(body=body)).SerializeToString())
    return call.sent


def test_the_relays_question_is_answered_with_body_and_note_and_counted():
    stage = a_relaying_stage(provider=a_provider(model="theirs"))
    service, http = Outward(relay_of(stage)), an_http()
    decision = stage.decide(http)

    first, second, end = asked(service, ticket=decision.ticket, body=http.body)

    assert first.WhichOneof("response") == "request_headers"
    response = second.request_body.response
    assert json.loads(response.body_mutation.body)["model"] == "theirs"
    put = {one.header.key: one.header.raw_value.decode() for one in response.header_mutation.set_headers}
    assert put[dataplane.TARGET] == "provider/ns/p"
    assert put["content-length"] == str(len(response.body_mutation.body))
    assert read(second.dynamic_metadata[dataplane.METADATA][dataplane.PROVIDER]) is not None
    assert end == "end"
    assert service.relayed == {("ns/p",): 1}


@pytest.mark.parametrize("how", [{"ticket": ""}, {"ticket": "t0", "end": True}])
def test_who_has_no_ticket_or_no_body_is_refused(how):
    stage = a_relaying_stage()
    stage.decide(an_http())

    refusal, end = asked(Outward(relay_of(stage)), **how)

    assert (refusal.immediate_response.status.code, end) == (500, "end")


@pytest.mark.parametrize("relay", [True, False])
def test_a_strangers_ticket_is_refused(relay):
    service = Outward(relay_of(a_relaying_stage()) if relay else None)

    _, refusal, end = asked(service, ticket="not-ours", body=an_http().body)

    assert (refusal.immediate_response.status.code, end) == (503 if relay else 500, "end")
    assert not service.relayed
