"""What every filter, scorer and picker keeps to, whatever stands in the table."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc import plugins
from extproc.plugins.latency_scorer import TTFT_HEADERS
from extproc.scheduling.endpoints import Lora
from tests.scheduling.builders import a_cycle, a_request, an_endpoint, any_plugin

RANGE = "llm-d.ai/context-length-range"
ZONE = "topology.kubernetes.io/zone"
LABELS = [
    {},
    {"role": "decode"},
    {"role": "prefill", RANGE: "0-20000", ZONE: "z1"},
    {RANGE: "20000-30000", "llm-d.ai/role": "encode"},
    {RANGE: "long", "llm-d.ai/role": "prefill-decode"},
]
LORAS = [
    None,
    Lora(frozenset(), frozenset(), 1),
    Lora(frozenset({"x"}), frozenset({"demo"}), 1),
    Lora(frozenset({"demo"}), frozenset(), 0),
]
COUNTS = st.one_of(st.integers(0, 9), st.integers(0, 10**9))
TIMES = st.one_of(st.just(0.0), st.floats(0, 1e5))
LONG_AGO = [-np.inf, 0.0, 99.9, 100.0]
FACTS = {
    "queue": COUNTS,
    "running": COUNTS,
    "kv": st.floats(0, 2),
    "kv_tokens": COUNTS,
    "scraped_at": st.sampled_from(LONG_AGO),
    "inflight": COUNTS,
    "tokens": COUNTS,
    "scraped_inflight": COUNTS,
    "scraped_tokens": COUNTS,
    "avoid_until": st.sampled_from([0.0, 100.0, 200.0]),
    "matched": st.integers(0, 50),
    "ttft_samples": TIMES,
    "ttft": TIMES,
    "ttft_tokens": TIMES,
    "ttft_variance": TIMES,
    "ttft_covariance": st.floats(-1e5, 1e5),
    "tpot_samples": TIMES,
    "tpot": TIMES,
    "load": TIMES,
    "measured_at": st.sampled_from(LONG_AGO),
    "labels": st.sampled_from(LABELS),
    "models": st.sampled_from([(), ("demo",), ("other",)]),
    "adapters": st.sampled_from([(), ("demo",), ("x",)]),
    "lora": st.sampled_from(LORAS),
    "attributes": st.sampled_from([{}, {"depth": 0.0}, {"depth": -3.5}, {"depth": 1e9}, {"other": 1.0}]),
    "node": st.sampled_from(["", "n1", "n2"]),
}
# Any fact may be missing: an endpoint that was never scraped, or never measured, has none of these.
ENDPOINTS = st.lists(st.fixed_dictionaries({}, optional=FACTS), min_size=1, max_size=20)
CYCLES = st.builds(
    lambda endpoints, **more: a_cycle(
        *[an_endpoint(**{**facts, "matched": min(facts.get("matched", 0), more["blocks"])}) for facts in endpoints],
        blocks=more["blocks"],
        trunk=more["trunk"],
        request=a_request(prompt_tokens=more["tokens"], headers=more["headers"]),
    ),
    ENDPOINTS,
    blocks=st.integers(0, 50),
    trunk=st.integers(0, 50),
    tokens=st.integers(0, 10**7),
    headers=st.sampled_from(
        [{}, {"x-role": "decode", "x-session-id": "s", TTFT_HEADERS[0]: "100", TTFT_HEADERS[1]: "x"}]
    ),
)


def with_method(name):
    found = [one for one in plugins.BUILTIN.types if hasattr(one, name)]
    return pytest.mark.parametrize("plugin", found, ids=lambda one: one.TYPE)


@with_method("score")
@settings(max_examples=25)
@given(cycle=CYCLES, chosen=st.lists(st.integers(0, 19), max_size=5))
def test_scores_lie_between_zero_and_one_and_none_is_nan(plugin, cycle, chosen):
    one = any_plugin(plugin)
    for row in chosen:
        if hasattr(one, "observe") and row < len(cycle.rows):
            one.observe(cycle, row)

    with np.errstate(all="raise", under="ignore"):
        scores = one.score(cycle)

    assert scores.shape == (len(cycle.rows),)
    assert scores.min() >= 0  # false for NaN, too
    assert scores.max() <= 1


@with_method("score")
@settings(max_examples=12)
@given(cycle=CYCLES, seed=st.integers(0, 9))
def test_the_order_of_the_candidates_does_not_matter(plugin, cycle, seed):
    order = np.array(random.Random(seed).sample(range(len(cycle.rows)), len(cycle.rows)), dtype=np.intp)
    shuffled = cycle._replace(rows=cycle.rows[order], matched=cycle.matched[order])
    one = any_plugin(plugin)

    assert one.score(shuffled).tolist() == pytest.approx(one.score(cycle)[order].tolist())


@with_method("keep")
@settings(max_examples=12)
@given(cycle=CYCLES, seed=st.integers(0, 9))
def test_filters_mark_candidates_whatever_their_order(plugin, cycle, seed):
    order = np.array(random.Random(seed).sample(range(len(cycle.rows)), len(cycle.rows)), dtype=np.intp)
    shuffled = cycle._replace(rows=cycle.rows[order], matched=cycle.matched[order], draw=random.Random(1))
    one = any_plugin(plugin)
    keep = one.keep(cycle._replace(draw=random.Random(1)))

    assert keep.dtype == np.bool_
    assert one.keep(shuffled).tolist() == keep[order].tolist()


@with_method("order")
@settings(max_examples=12)
@given(cycle=CYCLES, seed=st.integers(0, 9))
def test_pickers_name_different_candidates(plugin, cycle, seed):
    scores = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], len(cycle.rows))

    order = any_plugin(plugin).order(cycle, scores).tolist()

    assert len(order) == min(len(cycle.rows), 4)
    assert len(set(order)) == len(order)
    assert set(order) <= set(range(len(cycle.rows)))
