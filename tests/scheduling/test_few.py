"""Both forms of a plugin give the same answers: the one over arrays and the one over lists."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc import plugins
from extproc.scheduling import few
from extproc.scheduling.endpoints import COLUMNS
from extproc.scheduling.framework import Cycle
from tests.scheduling.builders import a_request, a_table, the_default_scheduler

BOTH = [one for one in plugins.BUILTIN.types if any(hasattr(one, f"{role}_few") for role in few._ROLES)]
PARAMS = {
    "prefix-cache-scorer": [
        {"match_length_weight": 0.7, "match_length_scale_tokens": 500},
        {"min_trunk_share": 0.5, "min_trunk_tokens": 512, "min_continuation_score": 0.5, "home_weight": 0.5},
    ],
    "no-hit-lru-scorer": [{"min_trunk_share": 0.5, "min_trunk_tokens": 512}],
}
AMOUNTS = st.one_of(st.integers(0, 5), st.integers(0, 100_000))


@st.composite
def cycles(draw):
    """A cycle over some rows of a table with anything in its columns."""
    size = draw(st.integers(1, 9))
    table = a_table(*({} for _ in range(size)))
    rows = np.array(sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))), dtype=np.intp)
    for name in COLUMNS:
        values = st.floats(0, 1) if name == "kv_usage" else AMOUNTS
        getattr(table, name)[:size] = draw(st.lists(values, min_size=size, max_size=size))
    blocks = draw(st.integers(0, 40))
    matched = draw(st.lists(st.integers(0, blocks), min_size=len(rows), max_size=len(rows)))
    homes = st.lists(st.integers(0, blocks), min_size=len(rows), max_size=len(rows))
    home = draw(st.none() | homes)
    return Cycle(
        request=a_request(prompt_tokens=draw(st.integers(0, 2_000))),
        table=table,
        rows=rows,
        matched=np.array(matched, dtype=np.int64),
        blocks=blocks,
        now=float(draw(st.integers(0, 10))),
        draw=random.Random(1),
        trunk=draw(st.integers(0, blocks)),
        home=None if home is None else np.array(home, dtype=np.int64),
    )


def _plugins(kind):
    return [kind(kind.Params(**params)) for params in ({}, *PARAMS.get(kind.TYPE, ()))]


@pytest.mark.parametrize("kind", BOTH, ids=lambda kind: kind.TYPE)
@settings(max_examples=60)
@given(cycle=cycles(), chosen=st.lists(st.integers(0, 8), max_size=6), seed=st.integers(0, 5))
def test_a_plugin_says_the_same_in_both_forms(kind, cycle, chosen, seed):
    for plugin in _plugins(kind):
        if hasattr(plugin, "observe"):
            for row in chosen:
                plugin.observe(cycle, row)
        if hasattr(plugin, "keep"):
            assert plugin.keep_few(few.few(cycle)) == plugin.keep(cycle).tolist()
        if hasattr(plugin, "score"):
            assert plugin.score_few(few.few(cycle)) == pytest.approx(plugin.score(cycle).tolist(), abs=1e-12)
        if hasattr(plugin, "order"):
            scores = [random.Random(seed + at).choice([0.25, 0.5, 1.0]) for at in range(len(cycle.rows))]
            listed = plugin.order_few(few.few(cycle._replace(draw=random.Random(seed))), scores)
            array = plugin.order(cycle._replace(draw=random.Random(seed)), np.array(scores))
            assert listed == array.tolist()


@settings(max_examples=100)
@given(cycle=cycles())
def test_the_default_profile_decides_the_same_in_both_forms(cycle):
    listed = the_default_scheduler().schedule(cycle._replace(draw=random.Random(3)), trace=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few, "MOST", 0)
        arrays = the_default_scheduler().schedule(cycle._replace(draw=random.Random(3)), trace=True)

    assert listed.rows == arrays.rows
    assert listed.addresses == arrays.addresses
    assert listed.trace.document() == arrays.trace.document()


def test_both_forms_of_a_cycle_have_the_same_fields():
    assert few.Few._fields == Cycle._fields


def test_the_default_profile_has_the_form_for_few():
    assert the_default_scheduler()._able
