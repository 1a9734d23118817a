"""Whose times are learned from a settled request, and what they say of one that a client left."""

import pytest

from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.traffic.ledger import Done, End, Sent, Settlement
from extproc.traffic.times import Times
from extproc.types import Outcome
from matrixinfer.api import networking

ENGINE, ABROAD = "10.0.0.1:80", "api.example.com:443"


def a_provider(name="p", url="https://api.example.com/v1", model=None, **spec):
    return networking.ExternalModelProvider.model_validate(
        {"metadata": {"namespace": "ns", "name": name}, "spec": {"baseURL": url, "model": model, **spec}}
    )


def those(*providers):
    return {f"ns/{one.metadata.name}": one for one in providers}


def times(*providers):
    engines = EndpointTable()
    engines.upsert(Endpoint(ENGINE, "ns/a", "vLLM"))
    made = Times(engines)
    made.use(those(*providers or (a_provider(),)))
    return made


def a_settlement(end, *, provider="p", model="m", served=None, **facts):
    target, endpoint = (f"provider/ns/{provider}", ABROAD) if provider else ("ns/s", ENGINE)
    path, outside = "/v1/chat/completions", bool(provider)
    sent = Sent("t", "", model, model, target, "ns/r", path, False, (endpoint,), 100, 0, 0, 0.0, outside=outside)
    told = {"status": 200, "endpoint": endpoint, "attempts": 1, "sent_s": 0.0, "duration_s": 1.0, "first_token_s": None}
    told |= {"prompt_tokens": None, "completion_tokens": None, "cached_tokens": None} | facts
    outcome = Outcome("t", "", "", flags=(), details="", started_at=0.0, **told)
    return Settlement(sent, end, outcome, endpoint if served is None else served, ())


def whole(**facts):
    """An answer of 100 tokens in a second."""
    return a_settlement(End.COMPLETE, **{"prompt_tokens": 100, "completion_tokens": 100} | facts)


def left(**facts):
    """A plain answer that was left after half a second."""
    return a_settlement(End.CLIENT_GONE, **{"status": 0, "duration_s": 0.505} | facts)


def test_what_a_provider_made_of_an_answer_that_was_left_follows_from_those_that_it_finished():
    made = times()
    before = made.done(left())
    made.learn(whole(), 100.0)

    assert before is None
    assert made.done(left()) == Done(100, 50, 0)


def test_engines_are_learned_where_scheduling_reads_them():
    made = times()
    made.learn(whole(provider=""), 100.0)

    assert made.done(left(provider="")) == Done(100, 50, 0)
    assert len(made.providers) == 0
    assert made.done(left()) is None


def test_models_of_a_provider_have_times_of_their_own():
    made = times()
    made.learn(whole(model="quick", completion_tokens=1000), 100.0)
    made.learn(whole(model="slow", completion_tokens=10), 100.0)

    assert made.done(left(model="quick")).completion_tokens == 505
    assert made.done(left(model="slow")).completion_tokens == 5
    assert made.done(left(model="other")) is None


def test_names_of_a_model_that_the_provider_knows_by_one_share_its_times():
    made = times(a_provider(model="theirs"))
    made.learn(whole(model="one"), 100.0)

    assert made.done(left(model="other")) == Done(100, 50, 0)


def test_a_request_that_went_on_to_a_provider_has_its_times():
    made = times()
    made.learn(whole(), 100.0)
    moved = left(provider="", endpoint="relay")
    moved = moved._replace(served="relay", sent=moved.sent._replace(further={"relay": "provider/ns/p"}))

    assert made.done(moved) == Done(100, 50, 0)


@pytest.mark.parametrize("facts", [{"status": 503}, {"status": 400}, {"attempts": 2}, {"served": "", "status": 0}])
def test_what_says_nothing_of_a_provider_is_not_learned(facts):
    made = times()
    made.learn(whole(**facts), 100.0)

    assert made.done(left()) is None


@pytest.mark.parametrize(
    ("now", "forgotten"),
    [
        ((), True),
        ((a_provider("other"),), True),
        ((a_provider(url="https://other.example.com/v1"),), True),
        ((a_provider(model="theirs"),), True),
        ((a_provider(), a_provider("other")), False),
        ((a_provider(headers={"x-a": "b"}),), False),
    ],
    ids=["it went", "another took its place", "it moved", "another model", "another came", "another header"],
)
def test_times_go_with_their_provider(now, forgotten):
    made = times()
    made.learn(whole(), 100.0)

    made.use(those(*now))
    assert len(made.providers) == (0 if forgotten else 1)
    made.use(those(a_provider()))
    assert (made.done(left()) is None) is forgotten


def test_of_very_many_models_those_that_told_last_are_kept():
    made = times()
    for number in range(300):
        made.learn(whole(model=f"m{number}"), 100.0 + number)

    assert len(made.providers) == 256
    assert made.done(left(model="m43")) is None
    assert made.done(left(model="m44")) == made.done(left(model="m299")) == Done(100, 50, 0)
