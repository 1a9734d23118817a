"""Traces: read from files, made by generators, at other loads."""

import json
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cli.simulate import generate, mooncake
from matrixinfer.cli.simulate.cluster import Cluster, Group
from matrixinfer.cli.simulate.problems import BadInput
from matrixinfer.cli.simulate.trace import Ask, build
from matrixinfer.cli.simulate.traces import Source

LINE = {"timestamp": 0, "input_length": 1024, "output_length": 10, "hash_ids": [1, 2]}
FOUR = Cluster(engines=(Group(count=4),))


def a_trace(spec):
    name, kind = generate.kind(spec)
    return generate.made(name, kind)


def lines(tmp_path, *items):
    file = tmp_path / "trace.jsonl"
    file.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in items))
    return file


def test_equal_beginnings_have_equal_hashes(tmp_path):
    other = {**LINE, "timestamp": 500, "hash_ids": [1, 3]}

    trace = mooncake.read(lines(tmp_path, LINE, other))

    assert trace.block_tokens == 512
    assert trace.at.tolist() == [0.0, 0.5]
    assert trace.chain(0)[0] == trace.chain(1)[0]
    assert trace.chain(0)[1] != trace.chain(1)[1]


def test_an_id_means_all_that_is_before_it_too(tmp_path):
    trace = mooncake.read(lines(tmp_path, LINE, {**LINE, "hash_ids": [9, 2]}))

    assert trace.chain(0)[1] != trace.chain(1)[1]


def test_an_adapter_has_blocks_of_its_own(tmp_path):
    trace = mooncake.read(lines(tmp_path, LINE, {**LINE, "model": "sql"}))

    assert not set(trace.chain(0)) & set(trace.chain(1))


def test_the_next_turn_goes_on_from_the_blocks_of_the_answer(tmp_path):
    first = {**LINE, "output_length": 600, "output_hash_ids": [7]}
    second = {**LINE, "timestamp": 9, "input_length": 1700, "hash_ids": [1, 2, 7, 8]}

    trace = mooncake.read(lines(tmp_path, first, second))

    assert trace.chain(0) + trace.answer(0) == trace.chain(1)[:3]


def test_the_first_line_may_name_the_size_of_blocks(tmp_path):
    trace = mooncake.read(lines(tmp_path, {"block_tokens": 16}, {**LINE, "input_length": 32}))

    assert trace.block_tokens == 16


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not a request"),
        ({**LINE, "input_length": -5}, "input_length must be at least 1, and is -5"),
        ({**LINE, "output_length": -1}, "output_length must be at least 0, and is -1"),
        ({**LINE, "timestamp": -1}, "timestamp must not be negative"),
        ({**LINE, "hash_ids": [1, 2, 3]}, "3 hash_ids are more than 1024 tokens have blocks of 512: 2"),
        ({**LINE, "hash_ids": [-1]}, "hash ids must be whole numbers"),
        ({"timestamp": 1}, "not a request"),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path, bad, said):
    with pytest.raises(BadInput, match=r"trace\.jsonl:2: ") as raised:
        mooncake.read(lines(tmp_path, LINE, bad))

    assert said in str(raised.value)


def test_a_trace_that_is_not_sorted_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"trace\.jsonl:2: timestamp 3 is before the 9"):
        mooncake.read(lines(tmp_path, {**LINE, "timestamp": 9}, {**LINE, "timestamp": 3}))


def test_an_empty_file_and_one_that_is_not_there_are_told(tmp_path):
    with pytest.raises(BadInput, match="has no request"):
        mooncake.read(lines(tmp_path))
    with pytest.raises(BadInput, match="cannot be read"):
        mooncake.read(tmp_path / "none.jsonl")


@given(st.binary(max_size=200))
def test_no_line_makes_it_fail_otherwise(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("trace") / "any.jsonl"
    file.write_bytes(text)

    with suppress(BadInput):
        mooncake.read(file)


@pytest.mark.parametrize("name", generate.KINDS)
def test_generators_repeat_and_keep_what_they_promise(name):
    trace, again = a_trace(f"generate:{name}?requests=300"), a_trace(f"generate:{name}?requests=300")
    other = a_trace(f"generate:{name}?requests=300&seed=2")

    assert len(trace) == 300
    assert (np.diff(trace.at) >= 0).all()
    assert (trace.prompt >= 1).all()
    assert (np.diff(trace.starts) == trace.prompt // trace.block_tokens).all()
    assert (trace.hashes == again.hashes).all()
    assert trace.prompt.tolist() != other.prompt.tolist()


@pytest.mark.parametrize("name", generate.KINDS)
def test_a_block_has_one_predecessor_only(name):
    trace = a_trace(f"generate:{name}?requests=300")
    before = {}

    for number in range(len(trace)):
        chain = [0, *trace.chain(number)]
        for parent, block in pairwise(chain):
            assert before.setdefault(block, parent) == parent


def share_seen_before(trace):
    seen, hits = set(), 0
    for number in range(len(trace)):
        chain = trace.chain(number)
        known = next((at for at, block in enumerate(chain) if block not in seen), len(chain))
        hits += min(known * trace.block_tokens, int(trace.prompt[number]) - 1)
        seen.update(chain, trace.answer(number))
    return hits / trace.prompt.sum()


def test_mooncake_has_the_published_shape():
    trace = a_trace("generate:mooncake")

    assert len(trace) == 12_031
    assert 3100 < trace.at[-1] < 4100
    assert trace.prompt.mean() == pytest.approx(12_035, rel=0.1)
    assert trace.prompt.max() > 100_000
    assert trace.output.mean() == pytest.approx(343, rel=0.1)
    assert share_seen_before(trace) == pytest.approx(0.40, abs=0.05)
    assert len({trace.chain(number)[0] for number in range(len(trace)) if trace.chain(number)}) == 1


def test_agents_have_the_published_shape():
    trace = a_trace("generate:agents")

    assert 3100 < trace.at[-1] < 4100
    assert trace.prompt.mean() == pytest.approx(8596, rel=0.1)
    assert trace.output.mean() == pytest.approx(182, rel=0.1)
    assert share_seen_before(trace) == pytest.approx(0.59, abs=0.05)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("generate:shared", "there is no generator 'shared'; we have: shared-prefix"),
        ("generate:bursts?sibling=3", "bursts has no parameter 'sibling'; it has: requests"),
        ("generate:bursts?rate=fast", "rate must be a number of at least 1e-06, not 'fast'"),
        ("generate:bursts?requests=0", "requests must be a whole number of at least 1, not '0'"),
        ("generate:tenants?adapters=yes", "adapters must be true or false, not 'yes'"),
        ("generate:mooncake?again=1", "again must be a number from 0 to below 1"),
    ],
)
def test_a_mistake_in_a_generator_is_told(spec, said):
    with pytest.raises(BadInput) as raised:
        Source(spec, FOUR, requests=None)

    assert said in str(raised.value)


def test_a_file_is_played_faster_and_a_generator_makes_its_own_pace(tmp_path):
    file = lines(tmp_path, *({**LINE, "timestamp": 1000 * at} for at in range(5)))

    assert Source(str(file), FOUR, requests=None).at_rate(10).at.tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    source = Source("generate:multi-turn?requests=400", FOUR, requests=None)
    assert source.at_rate(50).rate == pytest.approx(50)
    assert source.at_load(0.5).rate == pytest.approx(source.best(source.at_load(0.5)) / 2, rel=0.2)


def test_what_no_engine_can_hold_is_left_out_and_counted(tmp_path):
    file = lines(tmp_path, LINE, {**LINE, "input_length": 10_000_000})
    source = Source(str(file), FOUR, requests=None)

    assert len(source.own()) == 1
    assert source.left_out == 1
    with pytest.raises(BadInput, match="no request fits"):
        Source(str(file), Cluster(engines=(Group(kv_blocks=4),)), requests=None)


def test_choosing_requests_keeps_their_blocks():
    trace = build(
        "three", [Ask(at, 32, 1, [at * 10 + 1, at * 10 + 2], answer=[at]) for at in range(1, 4)], block_tokens=16
    )

    chosen = trace.chosen(np.array([0, 2]))

    assert [chosen.chain(number) for number in range(2)] == [[11, 12], [31, 32]]
    assert [chosen.answer(number) for number in range(2)] == [[1], [3]]
