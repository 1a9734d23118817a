"""What the picker decides about providers, and what it learns of them: how their requests ended, and how long they took."""

import json

import pytest

from extproc import errors
from extproc.providers.note import Speech, read
from extproc.traffic.ledger import End
from extproc.traffic.routes import RouteTable
from extproc.types import Usage
from matrixinfer.api import networking
from tests.director.stage import Stage, a_chat, a_route, a_server, an_outcome
from tests.flow.room import RULES, Slots
from tests.providers.builders import a_provider

FILTERED = {
    "apiVersion": "llm-d.ai/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [{"type": "least-request-filter", "parameters": {"maxWaitingRequests": 1}}],
    "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "least-request-filter"}]}],
}
INSIDE, OUTSIDE = {"modelServerName": "engines"}, {"externalModelProviderName": "p"}
SPARE = {**OUTSIDE, "overflow": True}


def a_stage(*targets, provider=None, saturated=False, addresses=("127.0.0.1:8000",), **spec):
    """A director whose only route has these targets."""
    stage = Stage(addresses, document=FILTERED if saturated else None)
    route = a_route(rules=[{"targetModels": list(targets)}], **spec)
    found = provider or a_provider()
    found = found.model_copy(update={"metadata": found.metadata.model_copy(update={"namespace": "ns"})})
    stage.director.use_routes(RouteTable.build([route], [a_server()], [found]))
    if saturated:
        stage.table.waiting[:] = 100.0
    return stage


def not_ready():
    condition = {
        "type": "ResolvedRefs",
        "status": "False",
        "reason": "SecretNotUsable",
        "message": "no Secret",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = networking.ExternalModelProviderStatus.model_validate({"conditions": [condition]})
    return a_provider().model_copy(update={"status": status})


def test_a_request_goes_to_its_provider():
    stage = a_stage(OUTSIDE, provider=a_provider(model="theirs"))

    decision = stage.decide(a_chat("Hello"))

    assert decision.target == "provider/ns/p"
    assert decision.endpoints == ("api.example.com:443",)
    assert json.loads(decision.body)["model"] == "theirs"
    assert read(decision.provider).speaks is Speech.OPENAI
    assert stage.inflight() == [0]


def test_a_stream_is_asked_for_its_usage_and_hides_it():
    decision = a_stage(OUTSIDE, provider=a_provider("Anthropic")).decide(a_chat("Hello", stream=True))

    assert decision.usage is Usage.HIDE_ALL
    assert json.loads(decision.body)["stream"] is True


def test_its_end_is_told_by_the_providers_name_whatever_that_resolves_to():
    stage = a_stage(OUTSIDE)
    decision = stage.decide(a_chat("Hello"))

    settlement = stage.director.settle(an_outcome(decision, endpoint="203.0.113.7:443", attempts=2))

    assert (settlement.end, settlement.served, settlement.failed) == (End.COMPLETE, "api.example.com:443", ())


def test_a_long_answer_is_not_given_up_because_engines_are_idle():
    stage = a_stage(OUTSIDE)
    stage.decide(a_chat("Hello"))
    stage.clock.now += 600.0

    assert stage.director.expire() == []


def test_while_an_endpoint_is_ready_overflow_gets_nothing():
    decision = a_stage(INSIDE, SPARE).decide(a_chat("Hello"))

    assert decision.target == "ns/engines"
    assert decision.provider == ""


def test_without_an_endpoint_overflow_takes_the_request():
    decision = a_stage(INSIDE, SPARE, addresses=()).decide(a_chat("Hello"))

    assert decision.target == "provider/ns/p"


def test_what_saturated_endpoints_refuse_overflows():
    decision = a_stage(INSIDE, SPARE, saturated=True).decide(a_chat("Hello"))

    assert decision.target == "provider/ns/p"


def test_what_would_have_to_wait_overflows():
    stage = a_stage(INSIDE, SPARE)
    stage.director.gate.use(RULES, Slots(1))

    decisions = [stage.decide(a_chat("Hello")) for _ in range(3)]

    assert [decision.target for decision in decisions] == ["ns/engines", "provider/ns/p", "provider/ns/p"]
    stage.director.settle(an_outcome(decisions[0]))
    assert stage.decide(a_chat("Hello")).target == "ns/engines"


def test_a_provider_without_overflow_gets_its_share_only():
    with pytest.raises(errors.Saturated):
        a_stage(INSIDE, {**OUTSIDE, "weight": 0}, saturated=True).decide(a_chat("Hello"))


def test_what_cannot_be_said_in_the_providers_words_does_not_overflow():
    stage = a_stage(INSIDE, SPARE, saturated=True, provider=a_provider("Anthropic"))

    with pytest.raises(errors.Saturated):
        stage.decide(a_chat("Hello", n=2))


def test_a_provider_that_cannot_be_used_is_passed_over():
    assert (
        a_stage(INSIDE, {**OUTSIDE, "weight": 100}, provider=not_ready()).decide(a_chat("Hello")).target == "ns/engines"
    )

    with pytest.raises(errors.NoEndpoints, match="ns/p cannot be used: its condition ResolvedRefs does not hold"):
        a_stage(OUTSIDE, provider=not_ready()).decide(a_chat("Hello"))


def test_a_provider_that_does_not_exist_is_said():
    with pytest.raises(errors.NoEndpoints, match="ExternalModelProvider ns/gone does not exist"):
        a_stage({"externalModelProviderName": "gone"}).decide(a_chat("Hello"))


def test_shares_between_engines_and_providers_follow_their_weights():
    stage = a_stage({**INSIDE, "weight": 1}, {**OUTSIDE, "weight": 1})

    targets = [stage.decide(a_chat(f"Hello {number}")).target for number in range(200)]

    assert 60 < targets.count("provider/ns/p") < 140


def test_a_decision_explains_itself():
    decision = a_stage(OUTSIDE).decide(a_chat("Hello", headers={"x-matrixinfer-explain": "1"}))

    assert json.loads(decision.explanation)["target"] == "provider/ns/p"


def test_a_plain_answer_that_was_left_is_charged_what_the_provider_made_by_then():
    stage = a_stage(OUTSIDE, rateLimit={"unit": "month", "outputTokensPerUnit": 100_000})
    told = {"prompt_tokens": None, "completion_tokens": None, "first_token_s": None, "sent_s": 0.5}
    ends = []
    for _ in range(2):
        left = stage.decide(a_chat("Hello", max_tokens=8192))
        gone = an_outcome(left, endpoint="203.0.113.7:443", status=0, flags=("DC",))._replace(**told)
        ends.append(stage.director.settle(gone._replace(duration_s=1.505)).charged)
        whole = an_outcome(stage.decide(a_chat("Hello")), endpoint="203.0.113.7:443")
        stage.director.settle(whole._replace(sent_s=0.0, first_token_s=1.0, completion_tokens=100))  # in a second

    assert [(end.by, end.output_tokens) for end in ends] == [("reservation", 8192), ("estimate", 100)]


def test_what_was_learned_of_a_provider_that_went_is_forgotten():
    stage = a_stage(OUTSIDE, rateLimit={"unit": "month", "outputTokensPerUnit": 100_000})
    whole = an_outcome(stage.decide(a_chat("Hello")))
    stage.director.settle(whole._replace(sent_s=0.0, completion_tokens=100))
    routes = stage.director.routes
    stage.director.use_routes(RouteTable.build([], []))
    stage.director.use_routes(routes)
    left = an_outcome(stage.decide(a_chat("Hello", max_tokens=99)), status=0, flags=("DC",))

    told = {"prompt_tokens": None, "completion_tokens": None, "first_token_s": None, "sent_s": 0.5}
    assert stage.director.settle(left._replace(**told)).charged.by == "reservation"
