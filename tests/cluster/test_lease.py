"""Leader election: whatever clocks, frozen processes and slow answers do, never two may write."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.cluster.lease import Candidate, Look, Tenure, Terms, Write

if TYPE_CHECKING:
    from collections.abc import Callable

WALL = datetime(2030, 1, 1, tzinfo=UTC)
TERMS = Terms(duration_s=15, every_s=3, margin_s=2, drift=0.01)


def a_candidate(name: str, terms: Terms = TERMS) -> Candidate:
    return Candidate("lease", "system", name, terms, Tenure())


def stored(lease: dict, version: int) -> dict:
    return lease | {"metadata": lease["metadata"] | {"resourceVersion": str(version), "uid": "1"}}


def a_leader(name: str = "a", at: float = 0.0) -> tuple[Candidate, dict]:
    leader = a_candidate(name)
    leader.saw(None, at)
    lease = stored(leader.next(at, WALL).lease, 1)
    leader.wrote(lease, at)
    return leader, lease


def test_the_first_creates_the_lease_and_may_write():
    leader, lease = a_leader()

    assert lease["spec"]["holderIdentity"] == "a"
    assert lease["spec"]["leaseDurationSeconds"] == 15
    assert lease["spec"]["leaseTransitions"] == 0
    assert leader.leads(12.8)
    assert not leader.leads(12.9)


def test_another_waits_for_the_whole_lease_from_when_it_saw_it():
    _, lease = a_leader()
    other = a_candidate("b")
    other.saw(lease, 100.0)

    assert other.next(100.0, WALL) == Look(3)
    assert isinstance(other.next(115.1, WALL), Look)
    taken = other.next(115.2, WALL).lease
    assert taken["spec"]["holderIdentity"] == "b"
    assert taken["spec"]["leaseTransitions"] == 1
    assert taken["metadata"]["resourceVersion"] == "1"


def test_a_renewal_seen_starts_the_wait_anew():
    leader, lease = a_leader()
    other = a_candidate("b")
    other.saw(lease, 0.0)
    other.saw(stored(leader.next(3.0, WALL).lease, 2), 14.0)

    assert isinstance(other.next(20.0, WALL), Look)


def test_a_released_lease_is_taken_at_once():
    leader, _ = a_leader()
    released = stored(leader.release(), 2)
    other = a_candidate("b")
    other.saw(released, 5.0)

    assert not leader.leads(0.0)
    assert isinstance(other.next(5.0, WALL), Write)


def test_a_deleted_lease_is_waited_for_by_who_knew_it_and_made_again_by_its_holder():
    leader, lease = a_leader()
    other = a_candidate("b")
    other.saw(lease, 1.0)
    for candidate in (leader, other):
        candidate.saw(None, 3.0)

    assert isinstance(other.next(4.0, WALL), Look)
    again = leader.next(4.0, WALL).lease
    assert "resourceVersion" not in again["metadata"]


def test_the_terms_of_a_longer_lease_are_kept_by_others():
    _, lease = a_leader()
    lease["spec"]["leaseDurationSeconds"] = 60
    other = a_candidate("b")
    other.saw(lease, 0.0)

    assert isinstance(other.next(59.0, WALL), Look)


@pytest.mark.parametrize("spec", [None, {}, {"holderIdentity": "x", "leaseDurationSeconds": "odd"}])
def test_a_lease_with_nonsense_in_it_is_taken_in_the_end(spec):
    other = a_candidate("b")
    other.saw({"metadata": {"name": "lease", "resourceVersion": "1"}, "spec": spec}, 0.0)

    assert isinstance(other.next(20.0, WALL), Write)


def test_terms_under_which_nobody_could_stay_leader_are_refused():
    with pytest.raises(ValueError, match="longer"):
        Terms(duration_s=4, every_s=3, margin_s=2)


# A world of candidates with clocks of their own, and a server that takes its time.


@dataclass
class Clock:
    offset: float
    rate: float

    def at(self, moment: float) -> float:
        return self.offset + moment * self.rate


@dataclass
class Server:
    lease: dict | None = None
    version: int = 0

    def write(self, lease: dict) -> dict | None:
        given = lease["metadata"].get("resourceVersion")
        if given != (None if self.lease is None else str(self.version)):
            return None
        self.version += 1
        self.lease = stored(lease, self.version)
        return self.lease


@dataclass
class World:
    """Candidates in true time; `delay` is how long an answer, or a frozen process, takes, `lost` whether an answer never comes."""

    candidates: list[tuple[Candidate, Clock]]
    delay: Callable[[], float]
    lost: Callable[[], bool]
    server: Server = field(default_factory=Server)
    now: float = 0.0
    led: set[str] = field(default_factory=set)

    def run(self, seconds: float) -> None:
        order = itertools.count()
        agenda: list = []

        def later(delay_s, what, index, given=None):
            heapq.heappush(agenda, (self.now + delay_s, next(order), what, index, given))

        for index in range(len(self.candidates)):
            later(0, "look", index)
        while agenda and agenda[0][0] < seconds:
            self.now, _, what, index, given = heapq.heappop(agenda)
            self.check()
            later(*self.step(what, index, given))
            self.check()

    def step(self, what: str, index: int, given: Any) -> tuple[float, str, int, Any]:
        """What one candidate does or is told now, and what comes after it."""
        candidate, clock = self.candidates[index]
        match what:
            case "look":
                return self.delay(), "saw", index, self.server.lease
            case "saw":
                candidate.saw(given, clock.at(self.now))
                return 0, "next", index, None
            case "next":
                step = candidate.next(clock.at(self.now), WALL)
                if isinstance(step, Look):
                    return step.after_s / clock.rate, "look", index, None
                return self.delay(), "arrive", index, (step.lease, clock.at(self.now))
            case "arrive":
                written = self.server.write(given[0])
                if written:
                    self.check_others_have_stopped(index)
                return self.delay(), "answer", index, (None if self.lost() else written, given[1])
        written, sent_at = given
        if written is not None:
            candidate.wrote(written, sent_at)
        return (0, "look", index, None) if written is None else (TERMS.every_s / clock.rate, "next", index, None)

    def check(self) -> None:
        leaders = [item.identity for item, clock in self.candidates if item.leads(clock.at(self.now))]
        assert len(leaders) <= 1, f"at {self.now}: {leaders}"
        self.led |= set(leaders)

    def check_others_have_stopped(self, index: int) -> None:
        """What another wrote last has had its time to arrive."""
        for other, clock in self.candidates[:index] + self.candidates[index + 1 :]:
            stopped = (other.tenure.until - clock.offset) / clock.rate
            assert stopped + 0.98 * TERMS.margin_s <= self.now, (
                f"{other.identity} wrote until {stopped}, now {self.now}"
            )


@settings(max_examples=200)
@given(
    st.lists(st.builds(Clock, st.floats(-1e6, 1e6), st.floats(0.995, 1.005)), min_size=2, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_never_two_may_write(clocks, seed, trouble):
    chance = random.Random(seed)

    def delay() -> float:
        return chance.uniform(0, 40) if chance.random() < trouble else chance.uniform(0, 0.5)

    candidates = [(a_candidate(f"c{number}"), clock) for number, clock in enumerate(clocks)]
    world = World(candidates, delay, lambda: chance.random() < trouble)

    world.run(600.0)

    assert world.led


def test_who_leads_stays_leader_where_nothing_fails():
    world = World([(a_candidate("a"), Clock(0, 1)), (a_candidate("b"), Clock(50, 1))], lambda: 0.1, lambda: False)

    world.run(120.0)

    assert world.led == {"a"}
