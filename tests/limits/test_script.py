"""The script in a real Redis, on a clock of the test's, against the buckets of one picker."""

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extproc.adapters import redis_limits
from extproc.traffic.limits.buckets import Buckets
from extproc.types import Spent
from tests.limits.builders import a_charge, a_limit
from tests.limits.server import running

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = ("{r}/due", "{r}/open", "{r}/pickers")
LIMIT = a_limit(100)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis():
    async with running() as server:
        yield server.client()


class Script:
    """The script as it is, but for its clock."""

    def __init__(self, client):
        client.flushall()
        text, _ = redis_limits._script()
        clock = 'local clock = redis.call("TIME")'
        assert clock in text
        self._run = client.register_script(text.replace(clock, 'local clock = redis.call("HMGET", "clock", "s", "us")'))
        self._client = client
        self.at(0)

    def at(self, now):
        whole = int(now)
        self._client.hset("clock", mapping={"s": whole, "us": round((now - whole) * 1e6)})

    def take(self, ticket, amount, *, limit=LIMIT, picker="a", level=0.0, ttl=3600, untold=0):
        bucket = (amount, limit.amount, repr(limit.rate), int(limit.shadow), repr(level), untold)
        answer = self._run(keys=(*KEYS, limit.key), args=("take", ticket, picker, ttl, *bucket))
        return redis_limits._taken(answer, 1)

    def settle(self, ticket, actual, *, limit=LIMIT, known=0):
        return self.settle_all((ticket, actual, limit, known))

    def settle_all(self, *settlements):
        """Settle in one command."""
        spent = [
            Spent("store", "r", ticket, ((limit.key, actual, limit.rate, known),))
            for ticket, actual, limit, known in settlements
        ]
        keys, arguments = redis_limits._settlement(spent)
        settled, _, *levels = self._run(keys=(*KEYS, *keys), args=arguments)
        assert len(levels) == len(keys)
        return settled

    def used(self):
        """What is used now: asked by a request that takes nothing."""
        return self.take("look", 0).used[0]


@pytest.fixture
def script(redis):
    return Script(redis)


steps = st.lists(
    st.tuples(st.booleans(), st.integers(0, 2_000_000), st.integers(0, 150), st.integers(0, 20)), max_size=25
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
async def test_the_script_counts_as_a_pickers_buckets_do(redis, happened):
    script, buckets, microseconds, taken = Script(redis), Buckets(), 0, []
    for number, (takes, passes, amount, which) in enumerate(happened):
        microseconds += passes
        now = microseconds / 1e6
        script.at(now)
        if takes:
            here, there = buckets.take([a_charge(amount, LIMIT)], now), script.take(str(number), amount)
            assert (there.admitted, there.over) == (here.admitted, here.over)
            assert there.used == pytest.approx(here.used, abs=1e-3)
            if here.admitted:
                taken.append((str(number), amount, now))
        elif taken:
            ticket, reserved, since = taken.pop(which % len(taken))
            buckets.settle(a_charge(reserved, LIMIT), actual=amount, since=since, now=now)
            assert script.settle(ticket, amount) == 1
        assert script.used() == pytest.approx(buckets.used(LIMIT.key, now), abs=1e-3)


async def test_a_settlement_that_arrives_twice_is_charged_once(script):
    script.take("a", 50)

    assert [script.settle("a", 10), script.settle("a", 10)] == [1, 0]
    assert script.used() == 10


async def test_an_admission_that_arrives_after_its_settlement_charges_nothing_more(script):
    script.settle("a", 10)

    assert script.take("a", 50).admitted
    assert script.used() == 10


async def test_many_settlements_in_one_command_are_those_one_by_one(script):
    other = a_limit(100, name="other")
    script.take("a", 50)
    script.take("b", 60, limit=other)
    script.take("c", 20)

    assert script.settle_all(("a", 10, LIMIT, 50), ("b", 5, other, 60), ("a", 10, LIMIT, 50), ("c", 2, LIMIT, 20)) == 3
    assert script.used() == 12
    assert script.take("look", 0, limit=other).used[0] == 5


async def test_what_a_picker_admitted_alone_and_has_not_told_yet_counts(script):
    assert script.take("a", 50, untold=40).used == (50,)
    assert not script.take("b", 20, untold=40).admitted
    assert script.take("c", 20, untold=30).admitted


async def test_what_is_settled_and_was_never_asked_for_is_charged_in_full(script):
    script.settle("a", 30)

    assert script.used() == 30


async def test_what_was_reserved_before_the_server_lost_its_memory_is_settled_by_what_the_picker_knows(script):
    script.take("b", 1, level=60.0)  # in which is a reservation of 50

    script.settle("a", 30, known=50)

    assert script.used() == 41


async def test_an_admission_that_is_repeated_is_charged_once(script):
    assert [script.take("a", 60).used, script.take("a", 60).used] == [(60,), (60,)]


async def test_a_reservation_that_is_never_settled_is_given_back_when_its_time_is_over(script):
    month = a_limit(100)._replace(rate=1e-6)
    script.take("a", 60, limit=month, ttl=10)
    script.at(11)

    assert script.take("b", 100, limit=month).admitted


async def test_a_refused_request_leaves_no_reservation(script, redis):
    script.take("a", 80)

    assert not script.take("b", 80).admitted
    assert redis.hkeys(KEYS[1]) == ["a"]


async def test_a_server_that_has_lost_its_memory_begins_with_what_the_picker_knows(script):
    assert script.take("a", 60, level=70.0).admitted is False


async def test_a_clock_that_goes_back_drains_nothing_and_stops_nothing(script):
    script.at(1000)
    script.take("a", 100)
    script.at(10)
    assert script.used() == 100
    script.at(10.5)

    assert script.used() == pytest.approx(50)


async def test_pickers_that_were_here_lately_are_counted(script):
    script.take("a", 1, picker="one")
    assert script.take("b", 1, picker="two").pickers == 2
    script.at(31)

    assert script.take("c", 1, picker="two").pickers == 1


async def test_a_limit_whose_unit_changes_keeps_its_count_and_drains_at_the_new_rate(script):
    script.take("a", 90)
    script.at(0.5)  # 50 have drained by the second
    minute = LIMIT._replace(unit="minute", rate=LIMIT.amount / 60)

    assert script.take("b", 50, limit=minute).used == (90,)
    script.at(30.5)
    assert script.take("look", 0, limit=minute).used[0] == pytest.approx(40)


async def test_a_limit_that_is_lowered_keeps_its_count(script):
    script.take("a", 90)

    assert not script.take("b", 1, limit=LIMIT._replace(amount=50, rate=50.0)).admitted
