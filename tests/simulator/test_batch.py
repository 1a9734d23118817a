import math
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulator import batch, kvcache

SECOND = batch.Latency(base_s=1.0, per_sequence_s=0.0, prefill_tokens_per_s=math.inf)


def a_batch(
    *, blocks: int = 100, size: int = 4, seqs: int = 8, budget: int = 1000, latency: batch.Latency = SECOND
) -> batch.Batch:
    return batch.Batch(kvcache.Blocks(blocks, size), batch.Limits(seqs, budget), latency)


def a_sequence(tokens: int = 6, *, answer: int = 3, start: int = 0, **kwargs: Any) -> batch.Sequence:
    return batch.Sequence(
        tokens=array("I", range(start, start + tokens)), max_tokens=answer, draw=lambda i: 1000 + i, **kwargs
    )


def run(state: batch.Batch, now: float = 0.0) -> float:
    """Step until nothing is left; the time it is then."""
    while (duration := state.start(now)) is not None:
        now += duration
        state.complete(now)
    return now


def test_a_step_takes_its_floor_its_sequences_and_its_prompt_tokens():
    latency = batch.Latency(base_s=0.010, per_sequence_s=0.001, prefill_tokens_per_s=1000, speed=2)

    assert latency.step(3, 0) == pytest.approx(0.0065)
    assert latency.step(1, 500) == pytest.approx(0.2555)
    assert batch.Latency(1, 1, 1, speed=0).step(5, 5) == 0


def test_the_first_token_comes_with_the_step_that_ends_the_prompt():
    state = a_batch(latency=batch.Latency(0.01, 0, prefill_tokens_per_s=100))
    sequence = a_sequence(100, answer=3)
    state.add(sequence, 0.0)

    end = run(state)

    assert sequence.first_token == pytest.approx(1.01)
    assert end == pytest.approx(1.03)
    assert sequence.finish == "length"
    assert list(sequence.output) == [1000, 1001, 1002]


def test_only_uncached_tokens_take_time():
    state = a_batch(latency=batch.Latency(0, 0, prefill_tokens_per_s=1))
    state.add(a_sequence(40, answer=1), 0.0)
    end = run(state)
    again = a_sequence(40, answer=1)
    state.add(again, end)

    assert end == 40
    assert run(state, end) == end + 4
    assert again.cached_tokens == 36


def test_long_prompts_are_computed_in_pieces_beside_running_answers():
    state = a_batch(budget=10)
    short, long = a_sequence(4, answer=9), a_sequence(24, answer=1, start=100)
    state.add(short, 0.0)
    state.add(long, 0.0)

    run(state)

    assert short.first_token == 1.0
    assert long.first_token == 3.0
    assert short.last_token == 9.0


def test_the_queue_is_served_in_order_of_arrival():
    state = a_batch(seqs=2)
    sequences = [a_sequence(answer=n, start=100 * n) for n in (1, 2, 3, 4)]
    for sequence in sequences:
        state.add(sequence, 0.0)

    run(state)

    assert [sequence.admitted for sequence in sequences] == [0.0, 0.0, 1.0, 2.0]


def test_no_one_overtakes_a_prompt_that_waits_for_memory():
    state = a_batch(blocks=11, size=4)
    big, bigger, small = a_sequence(24, answer=2), a_sequence(28, start=100), a_sequence(4, answer=1, start=200)
    for sequence in (big, bigger, small):
        state.add(sequence, 0.0)

    state.start(0.0)

    assert state.running == [big]
    assert list(state.waiting) == [bigger, small]


def test_an_aborted_sequence_frees_its_memory_at_once():
    state = a_batch()
    running, waiting = a_sequence(40), a_sequence(answer=1, start=500)
    state.add(running, 0.0)
    state.start(0.0)
    state.add(waiting, 0.5)

    state.abort(running)
    state.abort(waiting)

    assert state.blocks.free == state.blocks.total
    assert state.complete(1.0) == []
    assert (running.finish, waiting.finish) == ("abort", "abort")
    assert state.start(1.0) is None


def test_the_newest_gives_way_when_memory_runs_out_and_loses_no_token():
    state = a_batch(blocks=8, size=2)
    old, new = a_sequence(4, answer=8), a_sequence(4, answer=8, start=100)
    state.add(old, 0.0)
    state.add(new, 0.0)

    run(state)

    assert (old.preemptions, new.preemptions > 0) == (0, True)
    assert state.counters.preemptions == new.preemptions
    assert list(old.output) == list(new.output) == [1000 + i for i in range(8)]
    assert state.blocks.free == state.blocks.total


def test_an_answer_that_ends_itself_stops():
    state = a_batch()
    sequence = a_sequence(answer=50, ends=lambda s: s.output_tokens == 2)
    state.add(sequence, 0.0)

    run(state)

    assert (sequence.finish, sequence.output_tokens) == ("stop", 2)


def test_a_prompt_that_is_only_pooled_gives_no_token():
    state = a_batch()
    sequence = a_sequence(answer=0)
    state.add(sequence, 0.0)

    run(state)

    assert (sequence.finish, sequence.output_tokens, sequence.first_token) == ("stop", 0, 1.0)


def test_a_conversation_finds_its_own_answer_in_the_cache():
    state = a_batch(size=4)
    first = a_sequence(9, answer=8)
    state.add(first, 0.0)
    run(state)
    second = batch.Sequence(tokens=first.tokens + array("I", [1, 2, 3]), max_tokens=1, draw=lambda _: 0)
    state.add(second, 50.0)
    run(state, 50.0)

    assert second.cached_tokens == 16


ASKED = st.tuples(
    st.integers(1, 30),  # tokens
    st.integers(1, 12),  # answer
    st.integers(0, 3),  # first token: equal ones share a prefix
    st.integers(0, 8),  # step of arrival
    st.integers(1, 30),  # steps until the client leaves
)


@given(st.lists(ASKED, max_size=10), st.integers(1, 4), st.integers(1, 40))
def test_every_sequence_ends_once_with_its_tokens_and_all_memory_returns(
    asked: list[tuple[int, int, int, int, int]], seqs: int, budget: int
):
    state = a_batch(blocks=14, size=4, seqs=seqs, budget=budget)
    plan = [(a_sequence(tokens, answer=n, start=s), come, come + stay) for tokens, n, s, come, stay in asked]
    finished: list[batch.Sequence] = []
    step = 0
    while step < 10 or state.waiting or state.running:
        for sequence, come, leave in plan:
            if come == step:
                state.add(sequence, float(step))
            if leave == step:
                state.abort(sequence)
        state.start(float(step))
        assert len(state.running) <= seqs
        assert state.step_tokens <= budget
        finished += [sequence for sequence in state.complete(step + 0.5) if sequence.finish is not None]
        step += 1

    ended = {id(sequence) for sequence in finished}
    assert len(ended) == len(finished)
    for sequence, _, _ in plan:
        assert (sequence.finish == "length") == (id(sequence) in ended)
        assert (sequence.output_tokens == sequence.max_tokens) == (sequence.finish == "length")
        assert sequence.finish in ("length", "abort")
    assert state.blocks.free == state.blocks.total
