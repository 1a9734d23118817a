"""One outcome per request, whatever arrives in whatever order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.traffic.ledger import End, Ledger, Sent
from extproc.types import Outcome

A, B, C = "127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"


def a_table(*addresses):
    table = EndpointTable()
    for address in addresses or (A, B, C):
        table.upsert(Endpoint(address, f"ns/{address}", "vLLM"))
    return table


def sent(ticket="t", endpoints=(A, B, C), tokens=10, at=0.0):
    return Sent(
        ticket=ticket,
        request_id="r",
        model="demo",
        engine_model="demo",
        target="ns/s",
        route="ns/r",
        path="/v1/completions",
        stream=False,
        endpoints=endpoints,
        prompt_tokens=tokens,
        blocks=0,
        matched=0,
        at=at,
    )


def an_outcome(ticket="t", endpoint=A, status=200, flags=(), attempts=1):
    return Outcome(
        ticket=ticket,
        request_id="r",
        model="demo",
        endpoint=endpoint,
        status=status,
        flags=flags,
        details="",
        attempts=attempts,
        started_at=0.0,
        duration_s=1.0,
        first_token_s=None,
        prompt_tokens=None,
        completion_tokens=None,
        cached_tokens=None,
    )


def test_a_request_counts_at_its_first_endpoint_until_it_is_settled():
    table = a_table()
    ledger = Ledger(table)

    ledger.open(sent())
    during = (table.inflight.tolist()[:3], table.inflight_tokens.tolist()[:3])
    settlement = ledger.settle(an_outcome(), now=1.0)

    assert during == ([1, 0, 0], [10, 0, 0])
    assert (table.inflight.sum(), table.inflight_tokens.sum()) == (0, 0)
    assert (settlement.end, settlement.served, settlement.failed) == (End.COMPLETE, A, ())


def test_a_second_record_changes_nothing():
    table = a_table()
    ledger = Ledger(table)
    ledger.open(sent())
    ledger.settle(an_outcome(), now=1.0)

    assert ledger.settle(an_outcome(), now=2.0) is None
    assert ledger.settle(an_outcome("never-ours"), now=2.0) is None
    assert (ledger.counts.duplicates, ledger.counts.strangers) == (1, 1)
    assert table.inflight.sum() == 0


def test_a_client_that_left_before_the_decision_arrived_is_settled_and_speaks_against_nobody():
    table = a_table()
    ledger = Ledger(table)
    ledger.open(sent())

    settlement = ledger.settle(
        an_outcome(endpoint="", status=0, flags=("DC",), attempts=0)._replace(placed=False), now=1.0
    )

    assert (settlement.end, settlement.served, settlement.failed) == (End.CLIENT_GONE, "", ())
    assert table.inflight.sum() == 0


def test_a_gateway_that_went_on_without_the_decision_did_not_try_its_endpoints():
    ledger = Ledger(a_table())
    ledger.open(sent())

    settlement = ledger.settle(an_outcome(endpoint="10.0.0.9:8000", attempts=2)._replace(placed=False), now=1.0)

    assert (settlement.served, settlement.failed) == ("10.0.0.9:8000", ())


def test_the_record_of_a_request_that_was_refused_is_no_strangers():
    ledger = Ledger(a_table())

    assert ledger.settle(an_outcome("refused", endpoint="")._replace(placed=False), now=1.0) is None
    assert ledger.counts.strangers == 0


def test_a_ticket_is_opened_once():
    ledger = Ledger(a_table())
    ledger.open(sent())

    with pytest.raises(ValueError, match="open already"):
        ledger.open(sent())


@pytest.mark.parametrize(
    ("outcome", "end", "served", "failed"),
    [
        (an_outcome(endpoint=B, attempts=2), End.COMPLETE, B, (A,)),
        (an_outcome(endpoint=C, attempts=3), End.COMPLETE, C, (A, B)),
        (an_outcome(endpoint=A, status=200, flags=("UC",)), End.FAILED, "", (A,)),
        (an_outcome(endpoint=A, status=503, flags=("UF",)), End.FAILED, "", (A,)),
        (an_outcome(endpoint=A, status=200, flags=("SI",)), End.FAILED, "", (A,)),
        (an_outcome(endpoint=A, status=503), End.FAILED, "", (A,)),
        (an_outcome(endpoint="", status=503, flags=("UH",)), End.FAILED, "", ()),
        (an_outcome(endpoint=A, status=400), End.FAILED, A, ()),
        (an_outcome(endpoint=A, status=0, flags=("DC",)), End.CLIENT_GONE, A, ()),
    ],
)
def test_blame_goes_to_who_failed_and_credit_to_who_served(outcome, end, served, failed):
    table = a_table()
    ledger = Ledger(table)
    ledger.open(sent())

    settlement = ledger.settle(outcome, now=5.0)

    assert (settlement.end, settlement.served, settlement.failed) == (end, served, failed)
    avoided = {table.address(row) for row in np.flatnonzero(table.avoid_until > 5.0)}
    assert avoided == set(failed)


def test_repeated_failures_weigh_more_and_a_success_ends_them():
    table = a_table()
    ledger = Ledger(table)
    spans, now = [], 100.0
    for number in range(7):
        ledger.open(sent(str(number), at=now))
        ledger.settle(an_outcome(str(number), flags=("UF",), status=503), now=now)
        spans.append(table.avoid_until[table.row(A)] - now)
        now = table.avoid_until[table.row(A)]

    ledger.open(sent("good"))
    ledger.settle(an_outcome("good"), now=now)

    assert spans == [1, 2, 4, 8, 16, 30, 30]
    assert table.avoid_until[table.row(A)] == 0


def test_an_engine_that_dies_with_many_requests_has_failed_once():
    table = a_table()
    ledger = Ledger(table)
    for number in range(8):
        ledger.open(sent(str(number), at=99.0))
    for number in range(8):
        ledger.settle(an_outcome(str(number), flags=("UC",), status=200), now=100.0 + number / 10)
    at_once = table.avoid_until[table.row(A)]

    ledger.open(sent("for want of another", at=100.9))
    ledger.settle(an_outcome("for want of another", flags=("UF",), status=503), now=100.9)
    avoided = table.avoid_until[table.row(A)]
    ledger.open(sent("next", at=101.0))
    ledger.settle(an_outcome("next", flags=("UF",), status=503), now=101.0)

    assert (at_once, avoided) == (101.0, 101.0)
    assert table.avoid_until[table.row(A)] == 103.0


def test_strikes_are_forgotten_with_time():
    table = a_table()
    ledger = Ledger(table)
    for number, now in enumerate((0.0, 1.0, 1000.0)):
        ledger.open(sent(str(number), at=now))
        ledger.settle(an_outcome(str(number), flags=("UF",), status=503), now=now)

    assert table.avoid_until[table.row(A)] == 1001.0


def test_a_request_expires_when_its_engines_say_they_are_idle():
    table = a_table(A, B)
    ledger = Ledger(table, grace_s=60.0)
    ledger.open(sent(endpoints=(A, B), at=0.0))
    ledger.open(sent("later", endpoints=(A, B), at=100.0))
    table.scraped_at[:2] = 90.0
    table.running[table.row(B)] = 1
    busy = ledger.expire(now=120.0)
    table.running[table.row(B)] = 0

    settlements = ledger.expire(now=120.0)

    assert busy == []
    assert [(each.sent.ticket, each.end) for each in settlements] == [("t", End.EXPIRED)]
    assert table.inflight.tolist()[:2] == [1, 0]
    assert ledger.settle(an_outcome(), now=121.0) is None
    assert ledger.counts.duplicates == 1


def test_a_long_stream_on_an_engine_that_reports_nothing_expires_late():
    ledger = Ledger(a_table())
    ledger.open(sent(at=0.0))

    assert ledger.expire(now=3599.0) == []
    assert len(ledger.expire(now=3600.0)) == 1


def test_an_endpoint_that_left_takes_its_count_along():
    table = a_table()
    ledger = Ledger(table)
    ledger.open(sent())
    row = table.remove(A)
    ledger.release(row)
    table.upsert(Endpoint(A, "ns/new", "vLLM"))

    ledger.settle(an_outcome(), now=1.0)

    assert table.inflight.tolist() == [0] * len(table.inflight)


TICKETS = st.sampled_from("abcd")
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), TICKETS),
        st.tuples(st.just("settle"), TICKETS),
        st.tuples(st.just("lost"), st.just("")),
        st.tuples(st.just("idle"), st.just("")),
        st.tuples(st.just("leave"), st.sampled_from([A, B])),
        st.tuples(st.just("come"), st.sampled_from([A, B])),
    ),
    max_size=40,
)


@given(EVENTS)
def test_every_request_has_one_outcome_and_counts_come_back_to_zero(events):
    table = a_table(A, B)
    ledger = Ledger(table, grace_s=60.0)
    opened, ended, now = [], [], 0.0
    for number, (what, which) in enumerate(events):
        now += 1.0
        if what == "open" and f"{which}{number}" not in opened:
            opened.append(f"{which}{number}")
            ledger.open(sent(opened[-1], endpoints=(A, B) if number % 2 else (B, A), at=now))
        elif what == "settle":
            for ticket in [ticket for ticket in opened if ticket.startswith(which)]:
                settlement = ledger.settle(an_outcome(ticket, endpoint=B), now)
                ended += [settlement.sent.ticket] if settlement else []
        elif what == "lost":
            now += 4000.0
            ended += [settlement.sent.ticket for settlement in ledger.expire(now)]
        elif what == "idle":
            now += 100.0
            table.scraped_at[:] = now
            ended += [settlement.sent.ticket for settlement in ledger.expire(now)]
        elif what == "leave":
            row = table.remove(which)
            if row is not None:
                ledger.release(row)
        elif what == "come":
            table.upsert(Endpoint(which, "ns/p", "vLLM"))
        assert (table.inflight >= 0).all()
        assert len(ledger) == len(opened) - len(ended)
    ended += [settlement.sent.ticket for settlement in ledger.expire(now + 4000.0)]

    assert sorted(ended) == sorted(opened)
    assert table.inflight.sum() == 0
    assert table.inflight_tokens.sum() == 0
    assert ledger.counts.opened == ledger.counts.settled + ledger.counts.expired
