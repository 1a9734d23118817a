"""A request's way through its limits, from the director's door to its settlement."""

import pytest

from extproc import errors
from extproc.traffic.limits import rules, words
from extproc.traffic.limits.buckets import Verdict
from extproc.traffic.limits.rules import Kind
from tests.director.stage import Stage, a_chat, a_route, an_outcome
from tests.limits.builders import a_charge, a_limit

MINUTE = 60


def a_stage(**limit):
    return Stage(route=a_route(rateLimit={"unit": "minute", **limit}))


def used(stage, kind=Kind.INPUT, scope="route", name=""):
    key = f"{{ns/demo}}/{scope}/{kind.value}/{name}"
    return stage.director.limiter.buckets.used(key, stage.clock.now)


def test_a_request_reserves_its_bound_and_is_charged_what_it_took():
    stage = a_stage(inputTokensPerUnit=1000, outputTokensPerUnit=1000)
    decision = stage.decide(a_chat("hello", max_tokens=100))
    reserved = used(stage, Kind.OUTPUT)

    stage.director.settle(an_outcome(decision))

    assert reserved == 100
    assert (used(stage, Kind.INPUT), used(stage, Kind.OUTPUT)) == (10, 5)


def test_a_settlement_that_arrives_twice_is_charged_once():
    stage = a_stage(outputTokensPerUnit=1000)
    decision = stage.decide(a_chat("hello", max_tokens=100))

    stage.director.settle(an_outcome(decision))
    stage.director.settle(an_outcome(decision))

    assert used(stage, Kind.OUTPUT) == 5


def test_a_settlement_before_its_request_changes_nothing():
    stage = a_stage(outputTokensPerUnit=1000)

    class Early:
        ticket = "t0"
        endpoints = ("127.0.0.1:8000",)

    stage.director.settle(an_outcome(Early))

    assert used(stage, Kind.OUTPUT) == 0
    assert stage.decide(a_chat("hello", max_tokens=7)).told


def test_a_settlement_that_never_comes_gives_its_reservation_back():
    stage = Stage(route=a_route(rateLimit={"unit": "month", "outputTokensPerUnit": 1000}))
    stage.decide(a_chat("hello", max_tokens=100))
    stage.clock.now += 4000.0

    stage.director.expire()

    assert used(stage, Kind.OUTPUT) == 0
    assert len(stage.director.limiter) == 0


def test_over_a_limit_the_answer_says_which_and_when_to_come_back_and_nothing_is_charged():
    stage = a_stage(requestsPerUnit=1, outputTokensPerUnit=1000)
    stage.decide(a_chat("hello", max_tokens=100))

    with pytest.raises(errors.LimitReached, match="1 requests per minute of route ns/demo") as refused:
        stage.decide(a_chat("hello", max_tokens=100))

    assert refused.value.retry_after_s == MINUTE
    assert dict(refused.value.headers)["x-ratelimit-remaining-requests"] == "0"
    assert used(stage, Kind.OUTPUT) == 100
    assert sum(stage.inflight()) == 1


def test_an_admitted_request_is_told_what_is_left():
    stage = a_stage(requestsPerUnit=10, inputTokensPerUnit=1000, outputTokensPerUnit=200)

    told = dict(stage.decide(a_chat("hello", max_tokens=100)).told)

    assert told == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "9",
        "x-ratelimit-reset-requests": "6s",
        "x-ratelimit-limit-tokens": "200",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "30s",
    }


def test_a_client_that_leaves_while_the_counter_is_asked_gives_all_back():
    limit = {"requestsPerUnit": 10, "global": {"redis": {"address": "redis:6379"}}}
    stage, spent = a_stage(**limit), []
    stage.director.limiter.tell = spent.append
    story = stage.director.decide(a_chat("hello"))
    asked = next(story)

    story.close()

    assert [(one.ticket, one.amounts[0][1]) for one in spent] == [(asked.ticket, 0)]
    assert len(stage.director.limiter) == 0


def test_without_a_limit_nothing_is_told():
    assert Stage().decide(a_chat("hello")).told == ()


def test_a_request_that_is_refused_after_its_reservation_costs_nothing():
    stage = a_stage(requestsPerUnit=10)
    story = stage.director.decide(a_chat("hello"))
    stage.director._schedule = raises(errors.Saturated("all are busy"))

    with pytest.raises(errors.Saturated):
        next(story)

    assert used(stage, Kind.REQUESTS) == 0


def raises(error):
    def schedule(_cycle):
        raise error

    return schedule


@pytest.mark.parametrize(
    ("how", "charged"),
    [
        ({"endpoint": "", "status": 503}, 0),
        ({"status": 400}, 0),
        ({"status": 0, "flags": ("DC",), "sent_s": 0.1}, 100),
        ({"status": 0, "flags": ("DC",), "sent_s": None}, 0),
        ({"status": 200}, 100),
    ],
    ids=[
        "nobody served",
        "the engine refused",
        "the client left, usage unknown",
        "the client left before an engine had it",
        "usage unknown",
    ],
)
def test_what_is_charged_where_no_usage_is_told(how, charged):
    stage = a_stage(outputTokensPerUnit=1000)
    decision = stage.decide(a_chat("hello", max_tokens=100))
    outcome = an_outcome(decision)._replace(prompt_tokens=None, completion_tokens=None, **how)

    stage.director.settle(outcome)

    assert used(stage, Kind.OUTPUT) == charged


@pytest.mark.parametrize(("first_token_s", "charged"), [(None, 0), (0.5, 100)], ids=["before a token", "after one"])
def test_a_stream_whose_client_left_before_any_token_is_charged_its_prompt_only(first_token_s, charged):
    stage = a_stage(outputTokensPerUnit=1000, inputTokensPerUnit=1000)
    decision = stage.decide(a_chat("hello", max_tokens=100, stream=True))
    outcome = an_outcome(decision, status=200, flags=("DC",))
    outcome = outcome._replace(prompt_tokens=None, completion_tokens=None, first_token_s=first_token_s, sent_s=0.1)

    stage.director.settle(outcome)

    assert used(stage, Kind.OUTPUT) == charged
    assert used(stage, Kind.INPUT) == 10  # the estimate


def test_a_client_that_leaves_a_plain_answer_is_charged_what_the_engine_made_by_then():
    stage = a_stage(requestsPerUnit=10, inputTokensPerUnit=1000, outputTokensPerUnit=10_000)
    stream = stage.decide(a_chat("hello", stream=True))  # tells 0.1 s to the first token, and 0.01 s a token
    whole = an_outcome(stream)._replace(sent_s=0.0, duration_s=0.14)
    stage.director.settle(whole)
    left = stage.decide(a_chat("hello", max_tokens=8192))
    before = used(stage, Kind.OUTPUT)

    gone = an_outcome(left, status=0, flags=("DC",), endpoint=stream.endpoints[0])
    ended = stage.director.settle(
        gone._replace(prompt_tokens=None, completion_tokens=None, first_token_s=None, sent_s=0.5, duration_s=1.105)
    )

    assert before == 5 + 8192
    assert used(stage, Kind.OUTPUT) == 5 + 51
    assert ended.charged == ("estimate", 1, 10, 51)
    assert stage.director.limiter.counts.settled == {"usage": 1, "estimate": 1}


@pytest.mark.parametrize(
    ("body", "reserved"),
    [
        ({"max_tokens": -5}, 0),
        ({"max_tokens": 10**18}, 1000),
        ({"max_tokens": 20, "n": 3}, 60),
        ({"max_tokens": 20, "n": -3}, 20),
        ({"max_tokens": 20, "n": "3"}, 60),
        ({"max_tokens": 20, "n": None}, 20),
        ({"max_tokens": 20, "n": 10**30}, 20),
        ({"max_completion_tokens": 30, "max_tokens": 20}, 30),
        ({}, 256),
    ],
)
def test_what_is_reserved_for_the_answer(body, reserved):
    stage = a_stage(outputTokensPerUnit=1000)

    stage.decide(a_chat("hello", **body))

    assert used(stage, Kind.OUTPUT) == reserved


def test_without_a_bound_as_much_is_reserved_as_answers_usually_have():
    stage = a_stage(outputTokensPerUnit=100_000)
    for _ in range(200):
        decision = stage.decide(a_chat("hello", max_tokens=10))
        stage.director.settle(an_outcome(decision)._replace(completion_tokens=40))
        stage.clock.now += 60.0

    stage.decide(a_chat("hello"))

    assert 40 <= used(stage, Kind.OUTPUT) <= 50


def test_embeddings_reserve_no_answer():
    stage = a_stage(outputTokensPerUnit=1000)

    stage.decide(a_chat("hello")._replace(path="/v1/embeddings", body=b'{"model":"demo","input":"hello"}'))

    assert used(stage, Kind.OUTPUT) == 0


def test_an_answer_that_is_longer_than_guessed_is_owed():
    stage = a_stage(outputTokensPerUnit=300)
    decision = stage.decide(a_chat("hello"))
    stage.director.settle(an_outcome(decision)._replace(completion_tokens=900))

    assert used(stage, Kind.OUTPUT) == 900
    with pytest.raises(errors.LimitReached):
        stage.decide(a_chat("hello", max_tokens=1))


def test_tenants_and_keys_have_limits_of_their_own_and_strangers_only_the_routes():
    entry = {"requestsPerUnit": 1, "unit": "minute"}
    stage = a_stage(requestsPerUnit=100, tenants=[entry, entry | {"name": "acme", "requestsPerUnit": 2}], keys=[entry])

    def ask(**who):
        try:
            stage.decide(a_chat("hello")._replace(**who))
        except errors.LimitReached as refused:
            return refused.message.partition(" of route")[0].rpartition(" of ")[2]
        return "admitted"

    assert [ask(tenant="acme") for _ in range(3)] == ["admitted", "admitted", "tenant 'acme'"]
    assert [ask(tenant="b"), ask(tenant="b"), ask(tenant="c")] == ["admitted", "tenant 'b'", "admitted"]
    assert [ask(key="k"), ask(key="k")] == ["admitted", "key 'k'"]
    assert [ask() for _ in range(3)] == ["admitted"] * 3


def test_shadow_limits_are_counted_and_neither_refuse_nor_are_told():
    stage = a_stage(requestsPerUnit=1, shadow=True)

    told = [stage.decide(a_chat("hello")).told for _ in range(3)]

    assert told == [(), (), ()]
    assert stage.director.limiter.counts.over == {("route", "requests", "shadow"): 2}


def test_a_limit_that_is_taken_away_lets_through_at_once_and_its_open_requests_are_settled():
    stage = a_stage(requestsPerUnit=1, outputTokensPerUnit=1000)
    decision = stage.decide(a_chat("hello", max_tokens=100))
    limited = stage.director.routes

    stage.director.use_routes(Stage().director.routes)
    assert stage.decide(a_chat("hello")).told == ()
    stage.director.settle(an_outcome(decision))
    stage.director.use_routes(limited)

    assert (used(stage, Kind.OUTPUT), used(stage, Kind.REQUESTS)) == (5, 1)
    with pytest.raises(errors.LimitReached):
        stage.decide(a_chat("hello"))


def test_a_route_of_adapters_only_is_limited_too():
    route = a_route(modelName="", loraAdapters=["demo"], rateLimit={"requestsPerUnit": 1, "unit": "minute"})
    stage = Stage(route=route)
    stage.decide(a_chat("hello"))

    with pytest.raises(errors.LimitReached):
        stage.decide(a_chat("hello"))


def test_a_rate_limit_that_names_nothing_is_none():
    assert rules.of_route("ns/demo", a_route(rateLimit={"unit": "hour"}).spec.rate_limit) is None


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s"), (3661, "1h1m1s"), (2_592_000, "720h0m0s")],
)
def test_times_are_written_as_openai_writes_them(seconds, written):
    assert words.duration(seconds) == written


def test_of_several_limits_the_one_with_the_least_left_is_told():
    wide, tight = a_limit(1000), a_limit(100, kind=Kind.OUTPUT)

    told = words.headers([a_charge(1, wide), a_charge(1, tight)], Verdict(True, (False, False), (10.0, 90.0), 0.0))

    assert told[0] == ("x-ratelimit-limit-tokens", "100")
