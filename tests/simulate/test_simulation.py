"""Whole runs: the oracle, the figures, placing at work."""

import numpy as np
import pytest

from extproc import plugins
from extproc.scheduling import config
from matrixinfer.cli.simulate import generate, oracle, simulation, summary
from matrixinfer.cli.simulate.cluster import Cluster, Group, Slo, StepAt
from matrixinfer.cli.simulate.trace import Ask, build

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}


def a_trace(spec):
    name, kind = generate.kind(spec)
    return generate.made(name, kind)


def settings(*types):
    return config.load({**HEAD, "plugins": [{"type": one} for one in types]} if types else HEAD, plugins.BUILTIN)


def engines(count=4, **shape):
    return Cluster(engines=(Group(count=count, **shape),))


def asks(*chains, gap=1.0):
    return build("asks", [Ask(at * gap, 16 * len(one), 4, one) for at, one in enumerate(chains)], block_tokens=16)


def test_the_oracle_finds_what_came_before_and_never_the_last_token():
    trace = asks([1, 2], [1, 2, 3], [1, 2, 3], [9])

    assert oracle.hits(trace, engines()).tolist() == [0, 32, 47, 0]


def test_the_oracle_forgets_what_was_not_used_for_longest():
    cluster = engines(count=1, kv_blocks=5)  # four blocks
    trace = asks([1, 2], [3, 4], [5], [1, 2])

    assert oracle.hits(trace, cluster).tolist() == [0, 0, 0, 16]  # the end of the oldest chain went first


def test_engines_that_are_twice_as_fast_serve_twice_as_much():
    trace = a_trace("generate:shared-prefix?requests=200")
    found = oracle.hits(trace, engines())

    assert oracle.rate(trace, engines(speed=2.0), found) == pytest.approx(2 * oracle.rate(trace, engines(), found))


def test_a_run_repeats_exactly():
    trace = a_trace("generate:shared-prefix?requests=400&rate=30")

    one, other = (simulation.run(trace, engines(), settings(), seed=3) for _ in range(2))

    assert one.ttft_s.tolist() == other.ttft_s.tolist()
    assert one.place.tolist() == other.place.tolist()


@pytest.mark.parametrize("exact", [False, True])
def test_every_request_is_served_once_and_no_cache_finds_more_than_was_there(exact):
    trace = a_trace("generate:multi-turn?requests=600&rate=30")
    cluster = engines(kv_blocks=1500)

    record = simulation.run(trace, cluster, settings(), exact=exact)

    assert (record.ttft_s > 0).all()
    assert (record.cached < trace.prompt).all()
    assert (record.cached >= 0).all()
    assert record.computed.sum() >= (trace.prompt - record.cached).sum()
    assert (record.busy_s <= record.ended_s).all()


def test_the_default_finds_more_than_chance_and_answers_sooner():
    trace = a_trace("generate:multi-turn?requests=1500&rate=20")
    runs = [simulation.run(trace, engines(), one) for one in (settings(), settings("random-picker"))]

    default, at_random = (
        summary.summary(
            run, trace, configuration="", load=0, slo=Slo(), found=oracle.hits(trace, engines()), warm_up=0.1
        )
        for run in runs
    )

    assert default.hit_rate > 1.3 * at_random.hit_rate
    assert default.hit_rate > 0.9 * default.oracle_hit_rate
    assert default.ttft_p50 < at_random.ttft_p50
    assert default.ttft_p99 < at_random.ttft_p99
    assert default.balance < 1.25


def test_adapters_go_to_engines_that_have_them_and_share_a_batch_within_its_slots():
    trace = a_trace("generate:shared-prefix?requests=300&adapters=3")
    names = [trace.models[model] for model in trace.model]
    cluster = Cluster(
        engines=(
            Group(count=1, loras=("adapter-0", "adapter-1", "adapter-2"), max_loras=1),
            Group(count=1),
        )
    )

    record = simulation.run(trace, cluster, settings())

    assert (record.place == 0).all()
    assert len(set(names)) == 3
    assert (record.ttft_s > 0).all()


def test_a_request_that_every_filter_leaves_out_counts_as_refused():
    trace = asks([1], [1], [1], gap=0.0)
    document = {
        **HEAD,
        "plugins": [
            {
                "type": "utilization-filter",
                "parameters": {"conditions": [{"metric": "active-requests", "maxValue": 0}]},
            }
        ],
    }

    record = simulation.run(trace, engines(count=2), config.load(document, plugins.BUILTIN))
    row = summary.summary(
        record, trace, configuration="", load=0, slo=Slo(), found=np.zeros(3, dtype=np.int64), warm_up=0
    )

    assert row.refused == 1
    assert row.goodput_share == pytest.approx(2 / 3)


def test_steps_between_measured_batches_lie_on_a_line():
    group = Group(itl_ms=(StepAt(1, 10.0), StepAt(11, 20.0)))

    assert [round(1000 * group.decode_s(batch), 6) for batch in (1, 6, 11, 22)] == [10.0, 15.0, 20.0, 40.0]


def test_attention_makes_the_end_of_a_prompt_dearer():
    group = Group(prefill_tokens_per_second=1000.0, prefill_ns_per_token_pair=1000.0)

    assert group.prefill_s(0, 1000) == pytest.approx(1.5)
    assert group.prefill_s(1000, 2000) == pytest.approx(2.5)
