"""The gate by examples: who goes, who waits, who is refused, who makes room."""

import dataclasses

import pytest

from extproc import errors
from extproc.traffic.ledger import Done, End
from tests.flow.room import BAND, FAIR, POOL, RULES, Room, a_settlement, an_outcome

TOLD_OF_ONE = {"sent_s": 0.1, "first_token_s": 0.2, "prompt_tokens": 40, "completion_tokens": 7}


def with_band(**changes):
    return dataclasses.replace(RULES, default=BAND._replace(**changes))


def tenants(room):
    return [room.asked[ticket].passed.tenant for ticket in room.order]


def test_without_rules_everybody_passes_unrecorded():
    room = Room(None)

    assert [room.ask().passed for _ in range(5)] == [None] * 5
    assert room.gate.count == 0


def test_a_request_goes_on_at_once_while_there_is_a_place():
    room = Room(slots=2)

    assert [room.ask().waits for _ in range(3)] == [False, False, True]
    assert room.gate.counts.outcomes == {("0", "at-once"): 2}


def test_the_end_of_a_request_lets_the_next_one_go_in_the_same_moment():
    room = Room()
    first, second, third = room.ask(), room.ask(), room.ask()
    room.now += 2

    room.end(first)

    assert (second.waits, third.waits) == (False, True)
    assert second.passed.waited_s == 2


def test_a_turn_takes_a_place_until_its_request_is_sent():
    room = Room(slots=1)
    first = room.ask()
    waiting = [room.ask() for _ in range(3)]
    room._send = lambda _asked: None  # its story is still on its way

    room.end(first)
    room.gate.pump()
    room.gate.pump()

    assert [one.waits for one in waiting] == [False, True, True]


def test_what_comes_while_others_wait_waits_behind_them():
    room = Room()
    first = room.ask()
    second, third = room.ask(), room.ask()

    room.end(first)
    room.end(second)

    assert room.order == ["t1", "t2", "t3"]
    assert not third.waits


def test_a_higher_priority_goes_first_whoever_came_before():
    rules = dataclasses.replace(RULES, keys={"urgent": 10})
    room = Room(rules)
    first = room.ask()
    room.ask()
    urgent = room.ask(key="urgent")

    room.end(first)

    assert not urgent.waits
    assert urgent.passed.priority == 10


def test_a_negative_priority_is_refused_where_it_would_wait():
    room = Room(dataclasses.replace(RULES, objectives={"batch": -1}))
    header = {"x-llm-d-inference-objective": "batch"}

    assert room.ask(headers=header).passed.priority == -1
    refused = room.ask(headers=header).refusal
    assert isinstance(refused, errors.Shed)
    assert refused.retry_after_s == 1


def test_a_band_for_a_negative_priority_lets_it_wait():
    room = Room(dataclasses.replace(RULES, objectives={"batch": -1}, bands={-1: BAND}))
    room.ask()

    assert room.ask(headers={"x-llm-d-inference-objective": "batch"}).waits


def test_a_header_never_raises_a_priority_unless_headers_are_trusted():
    objectives = {"gold": 5, "batch": -5}
    rules = dataclasses.replace(RULES, objectives=objectives)

    def priority(rules, name):
        return Room(rules).ask(headers={"x-gateway-inference-objective": name}).passed.priority

    assert [priority(rules, name) for name in ("gold", "batch", "unknown")] == [0, -5, 0]
    trusting = dataclasses.replace(rules, trusted=True)
    assert [priority(trusting, name) for name in ("gold", "batch", "unknown")] == [5, -5, 0]


def test_a_header_names_no_tenant_unless_headers_are_trusted():
    header = {"x-llm-d-inference-fairness-id": "fresh"}

    assert Room().ask("acme", headers=header).passed.tenant == "acme"
    assert Room(dataclasses.replace(RULES, trusted=True)).ask("acme", headers=header).passed.tenant == "fresh"


def test_a_client_that_leaves_gives_up_its_place_at_once():
    room = Room(with_band(max_requests=1))
    first = room.ask()
    second = room.ask()
    assert isinstance(room.ask().refusal, errors.QueueFull)

    room.leave(second)

    assert (room.gate.count, room.gate.size) == (0, 0)
    third = room.ask()
    room.end(first)
    assert not third.waits


def test_a_client_that_leaves_when_its_turn_has_come_passes_it_on():
    room = Room()
    first = room.ask("a")
    second, third = room.ask("a"), room.ask("b")
    send, room._send = room._send, lambda _asked: None

    room.end(first, prompt=0)
    room._send = send
    room.gate.leave(second.ticket)

    assert not third.waits
    assert room.gate.queues[POOL].bands[0].counters.level("a") == 0


def test_a_request_is_refused_when_its_time_is_over():
    room = Room(with_band(ttl_s=5.0))
    room.ask()
    alarms = []
    room.gate.alarm = alarms.append
    second = room.ask()
    room.now += 2
    third = room.ask()
    assert alarms == [1005.0]

    assert room.gate.expire(1005.0) == 1007.0
    assert isinstance(second.refusal, errors.WaitedTooLong)
    assert third.waits
    assert room.gate.expire(1007.0) is None
    assert third.refusal.status == 429
    assert room.gate.count == 0


def test_requests_are_held_until_the_pool_has_an_endpoint():
    room = Room(dataclasses.replace(RULES, no_endpoint_ttl_s=30.0))
    rows, room.rows = room.rows, room.rows[:0]
    first, second = room.ask(), room.ask()
    assert room.gate.held(POOL)
    assert (first.waits, second.waits) == (True, True)

    room.rows = rows
    room.gate.pump()

    assert (first.waits, second.waits) == (False, True)


def test_a_held_request_is_told_that_nothing_is_ready_when_its_time_is_over():
    room = Room(dataclasses.replace(RULES, no_endpoint_ttl_s=30.0))
    room.rows = room.rows[:0]
    first = room.ask()

    room.gate.expire(room.now + 29)
    assert first.waits
    room.gate.expire(room.now + 30)
    assert (first.refusal.status, first.refusal.reason) == (503, "no-endpoints")


def test_a_full_band_is_shared_whoever_fills_it():
    room = Room(with_band(max_requests=4))
    room.ask()
    flood = [room.ask("flood") for _ in range(4)]
    assert isinstance(room.ask("flood").refusal, errors.QueueFull)

    late = [room.ask("late"), room.ask("late")]

    assert [one.waits for one in late] == [True, True]
    assert [isinstance(one.refusal, errors.Displaced) for one in flood] == [False, False, True, True]
    assert isinstance(room.ask("late").refusal, errors.QueueFull)


def test_bytes_are_bounded_like_requests():
    room = Room(with_band(max_bytes=1000))
    room.ask()
    big = room.ask("flood", size=600)
    assert isinstance(room.ask("flood", size=600).refusal, errors.QueueFull)
    assert isinstance(room.ask("other", size=1001).refusal, errors.QueueFull)

    assert room.ask("other", size=500).refusal is not None  # it would have as much as who has most
    assert room.ask("other", size=400).waits
    assert big.waits


def test_over_the_bound_of_all_pools_the_least_urgent_leave_newest_first():
    rules = dataclasses.replace(RULES, max_requests=3, keys={"low": -2, "lower": -3}, bands={-2: BAND, -3: BAND})
    room = Room(rules)
    room.ask()
    low = [room.ask(key="low"), room.ask(key="lower"), room.ask(key="lower", pool="ns/other")]
    assert low[2].waits

    urgent = [room.ask() for _ in range(4)]

    assert [isinstance(one.refusal, errors.Displaced) for one in low] == [True, True, True]
    assert [one.waits for one in urgent] == [True, True, True, False]
    assert isinstance(urgent[3].refusal, errors.QueueFull)


def test_tenants_share_by_tokens():
    room = Room()
    first = room.ask("heavy", prompt=300, output=0)
    for _ in range(2):
        room.ask("heavy", prompt=300, output=0)
    for _ in range(4):
        room.ask("light", prompt=100, output=0)
    asked = first
    for _ in range(6):
        room.end(asked)
        asked = room.asked[room.order[-1]]

    assert tenants(room) == ["heavy", "heavy", "light", "light", "light", "heavy", "light"]


def test_what_was_used_alone_is_not_held_against_anybody():
    room = Room()
    for _ in range(50):
        room.end(room.ask("early", prompt=1000, output=0), prompt=1000)
    room.ask("early", prompt=100, output=0)
    for tenant in ("early", "late", "early", "late"):
        room.ask(tenant, prompt=100, output=0)
    while room.sent:
        room.end(room.asked[next(iter(room.sent))], prompt=100)

    assert tenants(room)[51:] == ["early", "late", "early", "late"]


def test_the_counter_follows_what_the_engine_did():
    room = Room(slots=3)
    one, two, three = (room.ask("a", prompt=100, output=50) for _ in range(3))
    level = room.gate.queues[POOL].bands[0].counters.level
    assert level("a") == 3 * (100 + 2 * 50)

    room.end(one, prompt=120, cached=20, output=10)
    assert level("a") == 2 * 200 + 100 + 2 + 20
    room.end(two, served=False)
    assert level("a") == 200 + 122
    room.end(three, expired=True)
    assert level("a") == 322


def test_where_the_engine_could_not_tell_the_counter_follows_what_it_can_be_expected_to_have_done():
    room = Room(slots=3)
    one = room.ask("a", prompt=100, output=50)

    told_nothing = a_settlement(one.ticket, an_outcome(one.ticket, None, 0))
    room.gate.settle(told_nothing._replace(done=Done(100, 30, 40)))

    assert room.gate.queues[POOL].bands[0].counters.level("a") == 60 + 4 + 2 * 30


@pytest.mark.parametrize(
    ("end", "sent", "facts", "charged"),
    [
        (End.FAILED, {}, {"status": 500}, 0),
        (End.FAILED, {}, {"status": 400}, 0),
        (End.CLIENT_GONE, {}, {"sent_s": None}, 0),
        (End.CLIENT_GONE, {"stream": True}, {"sent_s": 0.1}, 100),
        (End.CLIENT_GONE, {}, {"sent_s": 0.1}, 100 + 2 * 50),
        (End.CLIENT_GONE, {"stream": True, "choices": 3}, TOLD_OF_ONE, 100 + 2 * 50),
        (End.CLIENT_GONE, {"stream": True}, TOLD_OF_ONE, 40 + 2 * 7),
    ],
    ids=[
        "the engine failed",
        "the engine refused it",
        "the client left before an engine had it",
        "a stream was left before it began",
        "a plain answer was left, and nobody knows",
        "a stream of several choices was left, and nobody knows",
        "a stream was left",
    ],
)
def test_what_did_not_end_well_counts_as_limits_charge_it(end, sent, facts, charged):
    room = Room()
    one = room.ask("a", prompt=100, output=50)
    ended = a_settlement(one.ticket, an_outcome(one.ticket, None, 0)._replace(**({"status": 200} | facts)))

    room.gate.settle(ended._replace(end=end, sent=ended.sent._replace(**sent)))

    assert room.gate.queues[POOL].bands[0].counters.level("a") == charged
    assert room.gate.accounts.tokens == {"other": charged}


def test_a_settlement_counts_once():
    room = Room(slots=3)
    one = room.ask("a", prompt=100, output=50)
    level = room.gate.queues[POOL].bands[0].counters.level

    for _ in range(3):
        room.gate.settle(a_settlement(one.ticket, an_outcome(one.ticket, 100, 10)))
    room.gate.settle(a_settlement("stranger", an_outcome("stranger", 100, 10)))

    assert level("a") == 120


def test_among_tenants_within_the_bound_the_better_known_prompt_goes_first():
    near = BAND._replace(prices=FAIR._replace(locality=500))
    room = Room(dataclasses.replace(RULES, default=near))
    first = room.ask("a", prompt=300, output=0)
    room.ask("b", prompt=300, output=0, known=lambda: 0)
    known = room.ask("a", prompt=300, output=0, known=lambda: 256)

    room.end(first, prompt=300)
    assert not known.waits
    room.ask("a", prompt=300, output=0, known=lambda: 256)
    room.end(known, prompt=300)  # a is 600 ahead now
    assert tenants(room) == ["a", "a", "b"]


def test_new_rules_hold_for_those_who_wait_and_none_let_them_go():
    room = Room()
    room.ask()
    waiting = [room.ask() for _ in range(3)]
    room.detector.most = 2

    room.gate.use(RULES, room.detector)
    assert [one.waits for one in waiting] == [False, True, True]
    room.gate.use(None, None)
    assert [one.waits for one in waiting] == [False, False, False]
    assert (room.gate.count, room.gate.size) == (0, 0)
    for one in room.asked.values():
        room.end(one)


def test_idle_tenants_are_forgotten_without_a_difference():
    room = Room(slots=2)
    for number in range(100):
        room.end(room.ask(f"tenant-{number}", prompt=10, output=0), prompt=10)
    room.end(room.ask("last", prompt=10, output=0), prompt=10)
    room.ask("last", prompt=10, output=0)

    room.gate.forget()

    counters = room.gate.queues[POOL].bands[0].counters
    assert len(counters) <= 102
    assert counters.level("unheard-of") <= counters.level("last")


@pytest.mark.parametrize("avoided", [False, True])
def test_an_endpoint_that_fails_is_no_place(avoided):
    room = Room(slots=1, endpoints=2)
    if avoided:
        room.table.avoid_until[room.rows[0]] = room.now + 10

    assert [room.ask().waits for _ in range(2)] == [False, avoided]


def test_candidates_are_narrowed_to_those_with_a_place():
    room = Room(slots=1, endpoints=3)
    room.table.inflight[room.rows[0]] = 1

    assert room.gate.narrowed(room.rows, room.now).tolist() == room.rows[1:].tolist()
    room.table.inflight[room.rows] = 1
    assert room.gate.narrowed(room.rows, room.now).tolist() == room.rows.tolist()


def test_a_pool_is_full_when_a_request_would_wait():
    room = Room(slots=2)
    assert not room.gate.full(POOL)
    room.ask()
    assert not room.gate.full(POOL)
    room.ask()
    assert room.gate.full(POOL)
    assert not Room(None, slots=0).gate.full(POOL)
