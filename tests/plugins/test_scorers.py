from __future__ import annotations

import pytest

from extproc.plugins.active_request_scorer import ActiveRequestScorer
from extproc.plugins.dynamo_cost_scorer import DynamoCostScorer
from extproc.plugins.kv_cache_utilization_scorer import KvCacheUtilizationScorer
from extproc.plugins.least_request_scorer import LeastRequestScorer
from extproc.plugins.lmetric_scorer import LmetricScorer
from extproc.plugins.load_aware_scorer import LoadAwareScorer
from extproc.plugins.no_hit_lru_scorer import NoHitLruScorer
from extproc.plugins.prefix_cache_scorer import PrefixCacheScorer
from extproc.plugins.queue_scorer import QueueScorer
from extproc.plugins.running_requests_size_scorer import RunningRequestsSizeScorer
from extproc.plugins.token_load_scorer import TokenLoadScorer
from tests.scheduling.builders import a_cycle, a_plugin, a_request, an_endpoint


def test_shortest_queue_scores_one_and_longest_zero():
    cycle = a_cycle(an_endpoint(queue=3), an_endpoint(queue=1), an_endpoint(queue=5))

    assert a_plugin(QueueScorer).score(cycle).tolist() == [0.5, 1.0, 0.0]


def test_equal_queues_score_one():
    cycle = a_cycle(an_endpoint(queue=3), an_endpoint(queue=3))

    assert a_plugin(QueueScorer).score(cycle).tolist() == [1.0, 1.0]


def test_smallest_batch_scores_one():
    cycle = a_cycle(an_endpoint(running=0), an_endpoint(running=4))

    assert a_plugin(RunningRequestsSizeScorer).score(cycle).tolist() == [1.0, 0.0]


def test_free_share_of_the_kv_cache_is_the_score():
    cycle = a_cycle(an_endpoint(kv=0.25), an_endpoint(), an_endpoint(kv=1.5))

    assert a_plugin(KvCacheUtilizationScorer).score(cycle).tolist() == [0.75, 1.0, 0.0]


def test_active_requests_score_by_the_busiest():
    cycle = a_cycle(an_endpoint(inflight=0), an_endpoint(inflight=1), an_endpoint(inflight=4))

    assert a_plugin(ActiveRequestScorer).score(cycle).tolist() == [1.0, 0.75, 0.0]
    assert a_plugin(ActiveRequestScorer, idle_threshold=1, max_busy_score=0.5).score(cycle).tolist() == [1.0, 1.0, 0.0]
    assert a_plugin(ActiveRequestScorer, idle_threshold=4).score(cycle).tolist() == [1.0, 1.0, 1.0]


def test_token_load_scores_against_its_threshold():
    cycle = a_cycle(an_endpoint(tokens=0), an_endpoint(tokens=250), an_endpoint(tokens=2000))

    assert a_plugin(TokenLoadScorer, queue_threshold_tokens=1000).score(cycle).tolist() == [1.0, 0.75, 0.0]


def test_load_aware_scores_half_without_a_queue():
    cycle = a_cycle(an_endpoint(queue=0), an_endpoint(queue=64), an_endpoint(queue=500))

    assert a_plugin(LoadAwareScorer).score(cycle).tolist() == [0.5, 0.25, 0.0]


def test_few_requests_count_little_and_many_by_their_share():
    few = a_cycle(an_endpoint(inflight=0), an_endpoint(inflight=2))
    many = a_cycle(an_endpoint(inflight=10), an_endpoint(inflight=40))

    assert a_plugin(LeastRequestScorer).score(few).tolist() == [1.0, 0.75]
    assert a_plugin(LeastRequestScorer).score(many).tolist() == [0.75, 0.0]


def test_the_share_of_the_prefix_is_the_score():
    cycle = a_cycle(an_endpoint(matched=5), an_endpoint(matched=2), an_endpoint(), blocks=10)

    assert a_plugin(PrefixCacheScorer).score(cycle).tolist() == [0.5, 0.2, 0.0]


def test_a_prefix_shorter_than_a_block_scores_nothing():
    cycle = a_cycle(an_endpoint(), an_endpoint())

    assert a_plugin(PrefixCacheScorer, min_continuation_score=0.5).score(cycle).tolist() == [0.0, 0.0]


def test_match_length_counts_squared_by_its_weight():
    request = a_request(prompt_tokens=100)
    cycle = a_cycle(an_endpoint(matched=50), an_endpoint(matched=5), blocks=100, request=request)

    scores = a_plugin(
        PrefixCacheScorer, match_length_weight=0.5, match_length_scale_tokens=100, min_trunk_tokens=0
    ).score(cycle)

    assert scores.tolist() == pytest.approx([0.375, 0.02625])


def test_a_short_trunk_scores_nothing_and_a_long_one_its_share():
    scorer = a_plugin(PrefixCacheScorer, min_trunk_share=0.5)

    assert scorer.score(a_cycle(an_endpoint(matched=4), an_endpoint(), blocks=10, trunk=4)).tolist() == [0.0, 0.0]
    assert scorer.score(a_cycle(an_endpoint(matched=6), an_endpoint(), blocks=10, trunk=6)).tolist() == [0.6, 0.0]


def test_a_continued_conversation_counts_however_short_its_match():
    scorer = a_plugin(PrefixCacheScorer, min_trunk_share=0.5, min_continuation_score=0.5)

    cycle = a_cycle(an_endpoint(matched=2), an_endpoint(matched=1), an_endpoint(), blocks=10, trunk=1)

    assert scorer.score(cycle).tolist() == [0.5, 0.0, 0.0]


def test_cold_requests_go_to_who_had_none_for_longest():
    scorer = a_plugin(NoHitLruScorer)
    cycle = a_cycle(an_endpoint(), an_endpoint(), an_endpoint())
    scorer.observe(cycle, 1)

    assert scorer.score(cycle).tolist() == [1.0, 0.0, 1.0]

    scorer.observe(cycle, 0)

    assert scorer.score(cycle).tolist() == [0.0, 0.5, 1.0]


def test_a_hit_leaves_the_choice_to_the_prefix():
    scorer = a_plugin(NoHitLruScorer)
    hit = a_cycle(an_endpoint(matched=1), an_endpoint(), blocks=4)
    scorer.observe(hit, 0)

    assert scorer.score(hit).tolist() == [0.5, 0.5]
    assert scorer.score(a_cycle(an_endpoint(), an_endpoint())).tolist() == [0.0, 1.0]


def test_a_prefix_that_all_hold_speaks_for_nobody():
    scorer = a_plugin(NoHitLruScorer)
    cycle = a_cycle(an_endpoint(matched=3), an_endpoint(matched=3), blocks=4)
    scorer.observe(cycle, 1)

    assert scorer.score(cycle).tolist() == [1.0, 0.0]


def test_a_match_of_a_few_tokens_scores_nothing_unless_it_is_the_whole_prompt():
    scorer = a_plugin(PrefixCacheScorer)
    request = a_request(prompt_tokens=100)

    assert scorer.score(a_cycle(an_endpoint(matched=6), blocks=10, trunk=6, request=request)).tolist() == [0.0]
    assert scorer.score(a_cycle(an_endpoint(matched=7), blocks=10, trunk=7, request=request)).tolist() == [0.7]
    small = a_request(prompt_tokens=20)
    assert scorer.score(a_cycle(an_endpoint(matched=3), blocks=3, trunk=1, request=small)).tolist() == [1.0]


def test_a_short_trunk_is_as_good_as_cold():
    scorer = a_plugin(NoHitLruScorer, min_trunk_share=0.5)
    cycle = a_cycle(an_endpoint(matched=2), an_endpoint(), blocks=10, trunk=2)
    scorer.observe(cycle, 0)

    assert scorer.score(cycle).tolist() == [0.0, 1.0]


def test_lmetric_multiplies_what_is_missing_by_the_batch_it_joins():
    cycle = a_cycle(an_endpoint(matched=6, inflight=3), an_endpoint(inflight=1), an_endpoint(inflight=7), blocks=10)

    assert a_plugin(LmetricScorer).score(cycle).tolist() == [1.0, 0.8, 0.2]  # costs 4 * 4, 10 * 2, 10 * 8


def test_lmetric_tells_a_busy_holder_of_everything_from_an_idle_one():
    cycle = a_cycle(an_endpoint(matched=10, inflight=4), an_endpoint(matched=10), blocks=10)

    assert a_plugin(LmetricScorer).score(cycle).tolist() == [0.2, 1.0]


def test_lmetric_looks_at_the_batch_alone_where_the_prompt_has_no_block():
    assert a_plugin(LmetricScorer).score(a_cycle(an_endpoint(inflight=1), an_endpoint())).tolist() == [0.5, 1.0]


def test_dynamo_cost_adds_what_is_missing_to_what_is_there():
    request = a_request(prompt_tokens=1000)
    cycle = a_cycle(
        an_endpoint(matched=8, tokens=600), an_endpoint(tokens=0), an_endpoint(tokens=200), blocks=10, request=request
    )

    assert a_plugin(DynamoCostScorer).score(cycle).tolist() == [1.0, 0.5, 0.0]  # costs 800, 1000, 1200
    assert a_plugin(DynamoCostScorer, overlap_score_weight=0).score(cycle).tolist() == pytest.approx([0, 1, 2 / 3])
    assert a_plugin(DynamoCostScorer).score(a_cycle(an_endpoint(), an_endpoint())).tolist() == [1.0, 1.0]


def test_the_only_candidate_is_the_least_recently_used():
    assert a_plugin(NoHitLruScorer).score(a_cycle(an_endpoint())).tolist() == [1.0]
