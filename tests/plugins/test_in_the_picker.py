"""Plugins in the whole story of a request: decided, sent, settled, learned."""

from __future__ import annotations

from collections import Counter

import pytest

from extproc.scheduling.endpoints import Lora
from tests.director.stage import ADDRESSES, Stage, a_chat, an_outcome, words
from tests.scheduling.builders import HEAD


def a_stage(*types, **more):
    return Stage(document={**HEAD, "plugins": [{"type": one} for one in types]}, **more)


def answered(decision, *, slow):
    """The end of a stream at an endpoint that takes four times as long if it is slow."""
    seconds = 4.0 if decision.endpoints[0] == slow else 1.0
    return an_outcome(decision)._replace(duration_s=seconds, first_token_s=seconds / 10)


def test_an_endpoint_that_answers_slowly_gets_less():
    stage = a_stage("least-latency-scorer")
    slow = ADDRESSES[1]
    counts = Counter()
    for seed in range(60):
        begun = [stage.decide(a_chat(words(10 * seed + at, 50), stream=True)) for at in range(6)]
        stage.clock.now += 1.0
        for decision in begun:
            counts[decision.endpoints[0]] += 1
            stage.director.settle(answered(decision, slow=slow))

    others = [counts[address] for address in ADDRESSES if address != slow]
    assert counts[slow] < 0.5 * min(others)
    assert max(others) < 1.25 * min(others)


def test_an_endpoint_that_was_slow_is_found_out_to_be_fast_again():
    stage = a_stage("least-latency-scorer")
    slow = ADDRESSES[1]
    counts = Counter()
    for at in range(400):
        begun = [stage.decide(a_chat(words(10 * at + one, 50), stream=True)) for one in range(6)]
        stage.clock.now += 1.0
        for decision in begun:
            if at >= 300:
                counts[decision.endpoints[0]] += 1
            stage.director.settle(answered(decision, slow=slow if at < 60 else None))

    assert counts[slow] > 0.6 * sum(counts.values()) / len(ADDRESSES)


def test_the_adapter_is_looked_up_by_the_name_that_goes_to_the_engine():
    stage = a_stage("lora-affinity-scorer", model="sql")
    for row in stage.table.rows():
        stage.table.models[row] = frozenset({"base", "sql"})
        stage.table.adapters[row] = frozenset({"sql"})
        stage.table.lora[row] = Lora(frozenset({"other"}), frozenset(), 1)
    stage.table.lora[2] = Lora(frozenset({"sql"}), frozenset(), 1)

    assert stage.decide(a_chat("hi")).endpoints[0] == ADDRESSES[2]


@pytest.mark.parametrize("stream", [True, False])
def test_settled_requests_leave_their_times_in_the_table(stream):
    stage = a_stage("least-latency-scorer", addresses=ADDRESSES[:1])

    stage.director.settle(an_outcome(stage.decide(a_chat("hi", stream=stream))))

    table = stage.table
    assert (table.ttft_samples[0], table.tpot_samples[0]) == (1.0 if stream else 0.0, 1.0)
    assert table.tpot_s[0] == pytest.approx(0.225 if stream else 0.2)
