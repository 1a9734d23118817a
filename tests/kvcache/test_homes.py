"""Prefixes that engines gave up come back to where they were."""

import dataclasses

import numpy as np
import pytest

from extproc import plugins
from extproc.kvcache.exact import homeless
from extproc.plugins.prefix_cache_scorer import PrefixCacheScorer
from extproc.scheduling import config
from extproc.types import Prefix
from matrixinfer.cli.simulate import generate, simulation
from matrixinfer.cli.simulate.cluster import Cluster, Group
from tests.director.stage import ADDRESSES, Stage, a_chat
from tests.kvcache.builders import Engine, an_index, prompt
from tests.scheduling.builders import a_cycle, a_plugin

PROMPT = range(400)


class Blocks:
    """Prompts whose token ids are known: all the same one."""

    def prefix(self, request, model):
        return Prefix(prompt(PROMPT), 4, len(PROMPT), exact=True)


@pytest.mark.parametrize(
    ("matched", "blocks", "expected"),
    [((0, 0), 4, True), ((0, 1), 4, True), ((0, 2), 4, False), ((4, 4), 4, False), ((), 4, True), ((0,), 0, False)],
)
def test_a_prefix_is_homeless_where_nobody_holds_half_of_it(matched, blocks, expected):
    assert homeless(np.array(matched, dtype=np.int64), blocks) is expected


def test_a_home_scores_its_share_and_a_hit_in_full():
    scorer = a_plugin(PrefixCacheScorer, home_weight=0.5, min_trunk_tokens=0)

    cycle = a_cycle({"matched": 4}, {"matched": 0}, {"matched": 0}, blocks=10, trunk=10, home=(4, 10, 6))

    assert scorer.score(cycle).tolist() == [0.4, 0.5, 0.3]
    assert scorer.score(cycle._replace(home=None)).tolist() == [0.4, 0.0, 0.0]
    assert a_plugin(PrefixCacheScorer, min_trunk_tokens=0).score(cycle).tolist() == [0.4, 0.0, 0.0]  # upstream's


def test_a_prompt_that_an_engine_gave_up_goes_there_again_and_is_not_predicted_as_cached():
    exact = an_index()
    stage = Stage(exact=exact)
    stage.director.use_scheduler(
        config.build(
            config.load(
                {
                    "apiVersion": "llm-d.ai/v1alpha1",
                    "kind": "EndpointPickerConfig",
                    "plugins": [{"type": "prefix-cache-scorer", "parameters": {"homeWeight": 0.5}}],
                },
                plugins.BUILTIN,
            )
        ),
        Blocks(),
    )
    engines = [Engine(exact, row) for row in range(len(ADDRESSES))]
    for number, engine in enumerate(engines):
        engine.publish(engine.stored(range(1000 * number + 1000, 1000 * number + 1008)))
    first = stage.decide(a_chat("hello"))
    home = ADDRESSES.index(first.endpoints[0])
    engines[home].publish(engines[home].stored(PROMPT))
    engines[home].publish(*(engines[home].removed(one) for one in engines[home].hashes(PROMPT)))
    stage.clock.now += 60

    again = stage.decide(a_chat("hello"))

    assert again.endpoints[0] == ADDRESSES[home]
    assert stage.director.recent[again.ticket].sent.predicted_cached_tokens == 0


def test_where_caches_are_too_small_for_all_prefixes_homes_find_more():
    found = []
    for weight in (0.0, 0.5):
        document = {
            **plugins.DEFAULT,
            "plugins": [
                {**one, "parameters": {**one["parameters"], "homeWeight": weight}}
                if one["type"] == "prefix-cache-scorer"
                else one
                for one in plugins.DEFAULT["plugins"]
            ],
        }
        name, kind = generate.kind("generate:long-context?requests=300&rate=1.5")
        trace = generate.made(name, dataclasses.replace(kind, document=12_000))
        record = simulation.run(
            trace,
            Cluster(engines=(Group(count=4, kv_blocks=6000),)),
            config.load(document, plugins.BUILTIN),
            exact=True,
        )
        found.append(record.cached.sum())

    assert found[1] > found[0]
