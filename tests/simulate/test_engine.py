"""The engine in virtual time against the engine simulator's own batch, whose clock is an argument, too."""

import itertools
from array import array

import numpy as np
import pytest

from engine.simulator import batch, kvcache
from matrixinfer.cli.simulate import generate
from matrixinfer.cli.simulate.cluster import Group
from matrixinfer.cli.simulate.engine import NEVER, Engine, Request

BLOCK = 16


def generated(spec):
    name, kind = generate.kind(spec)
    return generate.made(name, kind)


def by_the_step(trace, group):
    """Serve the trace by engine.simulator's batch; TTFT, end and cached tokens of each request."""
    blocks = kvcache.Blocks(group.kv_blocks, group.block_size)
    limits = batch.Limits(group.max_num_seqs, group.max_num_batched_tokens)
    latency = batch.Latency(
        group.itl_ms_base / 1000, group.itl_ms_per_sequence / 1000, group.prefill_tokens_per_second, group.speed
    )
    engine = batch.Batch(blocks, limits, latency)
    fresh = itertools.count(1 << 20)
    ids = {}
    results = {}
    arrivals = [(float(at), number) for number, at in enumerate(trace.at)]
    ends, at_next = NEVER, 0
    while at_next < len(arrivals) or ends < NEVER:
        arrival = arrivals[at_next][0] if at_next < len(arrivals) else NEVER
        if arrival < ends:
            at_next, now = at_next + 1, arrival
            number = arrivals[at_next - 1][1]
            chain = trace.chain(number)
            tokens = [token for one in chain for token in ids.setdefault(one, [next(fresh) for _ in range(BLOCK)])]
            tokens += [next(fresh) for _ in range(int(trace.prompt[number]) - len(tokens))]
            sequence = batch.Sequence(array("I", tokens), int(trace.output[number]), lambda _at: next(fresh))
            sequence.owner = number
            engine.add(sequence, now)
            if ends < NEVER:
                continue
        else:
            now = ends
            for sequence in engine.complete(now):
                if sequence.finish:
                    results[sequence.owner] = (sequence.first_token - sequence.arrived, now, sequence.cached_tokens)
        took = engine.start(now)
        ends = NEVER if took is None else now + took
    return [results[number] for number in range(len(trace))], engine.counters.preemptions


def by_stretches(trace, group):
    engine = Engine(0, group, block_tokens=trace.block_tokens)
    results = {}

    def until(moment):
        while engine.wakes_at <= moment and engine.wakes_at < NEVER:
            now = engine.wakes_at
            for one in engine.wake(now):
                results[one.number] = (one.first_token - one.arrived, now, one.cached)

    for number, at in enumerate(trace.at.tolist()):
        until(at)
        engine.add(a_request(number, trace, at), at)
    until(NEVER)
    return [results[number] for number in range(len(trace))], engine.preemptions


def a_request(number, trace, at):
    return Request(
        number,
        chain=trace.chain(number),
        answer=[],
        prompt=int(trace.prompt[number]),
        output=int(trace.output[number]),
        adapter=0,
        arrived=at,
    )


@pytest.mark.parametrize("rate", [2, 8, 30])
@pytest.mark.parametrize(
    "kind", ["shared-prefix?groups=20&prefix=1000", "bursts?prefix=900", "long-context?document=9000"]
)
def test_times_and_hits_are_those_of_the_simulated_engine(kind, rate):
    """Blocks of answers, which only the one keeps, and the rounding of memory make the small rest."""
    trace = generated(f"generate:{kind}&requests=150&output=40&block=16").at_rate(rate)
    group = Group(kv_blocks=4096, max_num_seqs=32)

    stepped, _ = by_the_step(trace, group)
    stretched, _ = by_stretches(trace, group)

    for column, tolerance in ((0, 0.1), (1, 0.02)):
        ours = np.array([one[column] for one in stretched])
        theirs = np.array([one[column] for one in stepped])
        for share in (10, 50, 90):
            assert np.percentile(ours, share) == pytest.approx(np.percentile(theirs, share), rel=tolerance, abs=2e-3)
    hits = [sum(one[2] for one in results) / trace.prompt.sum() for results in (stretched, stepped)]
    assert hits[0] == pytest.approx(hits[1], abs=0.02)


def test_without_pressure_every_time_is_the_same():
    trace = generated("generate:shared-prefix?groups=5&prefix=320&question=64&requests=120&output=20&block=16").at_rate(
        12
    )
    group = Group(kv_blocks=20_000)

    stepped, _ = by_the_step(trace, group)
    stretched, _ = by_stretches(trace, group)

    assert stretched == [pytest.approx(one, abs=1e-6) for one in stepped]


def test_who_came_last_gives_way_when_memory_runs_out():
    trace = generated("generate:shared-prefix?groups=9&prefix=400&requests=40&output=300&block=16").at_rate(50)
    group = Group(kv_blocks=300)

    stepped, theirs = by_the_step(trace, group)
    stretched, ours = by_stretches(trace, group)

    assert ours > 0
    assert theirs > 0
    ends = [max(one[1] for one in results) for results in (stretched, stepped)]
    assert ends[0] == pytest.approx(ends[1], rel=0.1)
