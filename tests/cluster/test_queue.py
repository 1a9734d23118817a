"""The work queue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from matrixinfer.cluster.backoff import Backoff
from matrixinfer.cluster.queue import WorkQueue


def test_a_key_added_twice_comes_once():
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")

    assert [queue.pop(0), queue.pop(0)] == ["a", None]


def test_a_key_added_while_worked_on_comes_again_afterwards():
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.pop(0)
    queue.add("a")

    assert queue.pop(0) is None
    queue.done("a")
    assert queue.pop(0) == "a"


def test_a_delayed_key_comes_when_it_is_due():
    queue: WorkQueue[str] = WorkQueue()
    queue.add_at("a", 5)

    assert queue.next_due() == 5
    assert queue.pop(4.9) is None
    assert queue.pop(5) == "a"
    assert queue.next_due() is None


def test_the_earliest_of_several_delays_counts():
    queue: WorkQueue[str] = WorkQueue()
    queue.add_at("a", 5)
    queue.add_at("a", 9)
    queue.add_at("a", 2)

    assert queue.pop(2) == "a"
    queue.done("a")
    assert queue.pop(100) is None


def test_failures_double_the_delay_and_success_forgets_them():
    queue: WorkQueue[str] = WorkQueue(Backoff(first_s=1, most_s=5))

    assert [queue.retry("a", 0, 0) for _ in range(4)] == [1, 2, 4, 5]
    queue.forget("a")
    assert queue.retry("a", 0, 0) == 1


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_bounded_and_never_nothing(failures, draw):
    backoff = Backoff(first_s=0.1, most_s=10)

    assert 0.05 <= backoff.delay_s(failures, draw) <= 10


class Queueing(RuleBasedStateMachine):
    """No key is given twice at a time, and none that is wanted gets lost."""

    keys = st.sampled_from("abc")

    def __init__(self):
        super().__init__()
        self.queue: WorkQueue[str] = WorkQueue()
        self.now = 0.0
        self.working: set[str] = set()
        self.wanted: set[str] = set()

    @rule(key=keys)
    def add(self, key):
        self.queue.add(key)
        self.wanted.add(key)

    @rule(key=keys, delay=st.integers(0, 5))
    def add_later(self, key, delay):
        self.queue.add_at(key, self.now + delay)
        self.wanted.add(key)

    @rule(key=keys)
    def fail(self, key):
        self.queue.retry(key, self.now, 0.5)
        self.wanted.add(key)

    @rule(seconds=st.integers(0, 3))
    def time_passes(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        key = self.queue.pop(self.now)
        if key is not None:
            assert key not in self.working
            assert key in self.wanted
            self.working.add(key)
            self.wanted.discard(key)

    @precondition(lambda self: self.working)
    @rule(data=st.data())
    def finish(self, data):
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.discard(key)
        self.queue.done(key)

    @invariant()
    def counts_what_is_wanted(self):
        assert len(self.queue) == len(self.wanted)

    def teardown(self):
        for key in list(self.working):
            self.queue.done(key)
        self.working.clear()
        self.now += 10_000
        while self.wanted:
            key = self.queue.pop(self.now)
            assert key in self.wanted
            self.wanted.discard(key)
            self.queue.done(key)
        assert self.queue.pop(self.now) is None


TestQueueing = Queueing.TestCase
