"""What a request took of its limits, by how its exchange ended: the table in docs/limits.md, row by row."""

import pytest

from extproc.traffic.ledger import Done, End, Sent, Settlement
from extproc.traffic.limits import charging
from extproc.traffic.limits.rules import Kind
from extproc.types import Outcome
from tests.limits.builders import a_charge, a_limit

WHOLE, GONE, DIED = (End.COMPLETE, 200), (End.CLIENT_GONE, 0), (End.FAILED, 200)
TOLD = {"prompt_tokens": 40, "completion_tokens": 7}
BEGUN = {"first_token_s": 0.2}


def a_settlement(end, *, stream=False, done=None, choices=1, **facts):
    how, status = end
    sent = Sent("t", "", "m", "m", "ns/s", "ns/r", "/v1/completions", stream, ("10.0.0.1:80",), 50, 0, 0, 0.0)
    sent = sent._replace(choices=choices)
    given = {"endpoint": "10.0.0.1:80", "status": status, "sent_s": 0.1, "first_token_s": None}
    given |= {"prompt_tokens": None, "completion_tokens": None} | facts
    rest = {"model": "", "details": "", "attempts": 1, "started_at": 0.0, "duration_s": 1.0, "cached_tokens": None}
    outcome = Outcome(ticket="t", request_id="", flags=(), **rest, **given)
    return Settlement(sent, how, outcome, outcome.endpoint, (), done=done)


def amounts(settlement):
    """Requests, input and output tokens, of reservations of 1, 50 and 100; and how that was found."""
    took = charging.took(settlement)
    reserved = {Kind.REQUESTS: 1, Kind.INPUT: 50, Kind.OUTPUT: 100}
    return (took.by, *(took.of(a_charge(amount, a_limit(kind=kind))) for kind, amount in reserved.items()))


@pytest.mark.parametrize(
    ("settlement", "taken"),
    [
        (a_settlement(WHOLE, **TOLD), ("usage", 1, 40, 7)),
        (a_settlement(WHOLE, prompt_tokens=40, completion_tokens=900), ("usage", 1, 40, 900)),
        (a_settlement(WHOLE), ("reservation", 1, 50, 100)),
        (a_settlement(DIED, stream=True, **TOLD, **BEGUN), ("passed-on", 1, 40, 7)),
        (a_settlement(GONE, stream=True, **TOLD, **BEGUN), ("passed-on", 1, 40, 7)),
        (a_settlement(GONE, stream=True), ("passed-on", 1, 50, 0)),
        (a_settlement(WHOLE, stream=True, choices=4, **TOLD, **BEGUN), ("usage", 1, 40, 7)),
        (a_settlement(GONE, choices=4, **TOLD), ("passed-on", 1, 40, 7)),
        (a_settlement(GONE, stream=True, prompt_tokens=0, completion_tokens=0, **BEGUN), ("reservation", 1, 50, 100)),
        (a_settlement(WHOLE, prompt_tokens=0, completion_tokens=0), ("usage", 1, 0, 0)),
        (a_settlement(GONE, stream=True, choices=4, **TOLD, **BEGUN), ("reservation", 1, 50, 100)),
        (a_settlement(GONE, stream=True, choices=4, **TOLD, **BEGUN, done=Done(50, 30, 0)), ("estimate", 1, 50, 30)),
        (a_settlement(GONE, stream=True, **BEGUN, done=Done(50, 12, 0)), ("estimate", 1, 50, 12)),
        (a_settlement(GONE, done=Done(50, 12, 0)), ("estimate", 1, 50, 12)),
        (a_settlement(GONE, done=Done(60, 120, 0)), ("estimate", 1, 50, 100)),
        (a_settlement(GONE), ("reservation", 1, 50, 100)),
        (a_settlement(GONE, sent_s=None), ("nothing", 0, 0, 0)),
        (a_settlement(GONE, endpoint=""), ("nothing", 0, 0, 0)),
        (a_settlement((End.FAILED, 503), endpoint=""), ("nothing", 0, 0, 0)),
        (a_settlement((End.FAILED, 400)), ("nothing", 1, 0, 0)),
        (a_settlement((End.FAILED, 503)), ("nothing", 0, 0, 0)),
        (a_settlement(WHOLE, **TOLD)._replace(end=End.EXPIRED, outcome=None), ("nothing", 0, 0, 0)),
    ],
)
def test_what_is_charged_by_how_it_ended(settlement, taken):
    assert amounts(settlement) == taken
