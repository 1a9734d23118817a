"""When an endpoint is full: by own work at once, by the engine's word as long as it is fresh."""

import math

import pytest

from extproc.plugins.concurrency_detector import ConcurrencyDetector
from extproc.plugins.utilization_detector import UtilizationDetector
from tests.scheduling.builders import a_plugin, a_table, an_endpoint

NOW = 1000.0


def places(detector, *endpoints, now=NOW):
    table = a_table(*endpoints)
    return detector.places(table, table.rows(), now)


def seen(detector, table, now, **facts):
    """Let the engine in the first row tell its load, and ask the detector."""
    (row,) = table.rows()
    for name, value in facts.items():
        getattr(table, name)[row] = value
    table.scraped_at[row] = now
    return detector.places(table, [row], now)


def test_requests_in_flight_take_places():
    detector = a_plugin(ConcurrencyDetector, max_concurrency=4)

    assert places(detector, an_endpoint(), an_endpoint(inflight=3), an_endpoint(inflight=6)) == [4, 1, -2]


def test_headroom_adds_to_the_bound():
    assert places(a_plugin(ConcurrencyDetector, max_concurrency=10, headroom=0.5), an_endpoint()) == [15]


def test_prompt_tokens_in_flight_take_places():
    detector = a_plugin(ConcurrencyDetector, concurrency_mode="tokens", max_token_concurrency=1000)

    assert places(detector, an_endpoint(inflight=500), an_endpoint(tokens=999), an_endpoint(tokens=1000)) == [1, 1, 0]


def test_in_hybrid_mode_the_scarcer_decides():
    detector = a_plugin(ConcurrencyDetector, concurrency_mode="hybrid", max_concurrency=2, max_token_concurrency=1000)

    assert places(detector, an_endpoint(inflight=1), an_endpoint(inflight=2), an_endpoint(tokens=1000)) == [1, 0, 0]


def test_an_engine_that_has_shown_no_bound_has_vllms():
    assert places(a_plugin(UtilizationDetector), an_endpoint(scraped_at=NOW)) == [261]


def test_two_pages_with_a_queue_tell_how_many_requests_run_at_once():
    detector, table = a_plugin(UtilizationDetector), a_table(an_endpoint(inflight=12))
    common = {"waiting": 4.0, "running": 8.0, "inflight_scraped": 12}

    assert seen(detector, table, NOW, **common) == [256 + 5 - 12]
    assert seen(detector, table, NOW + 1, **common) == [8 + 5 - 12]
    table.inflight[table.rows()[0]] = 13  # known at once, without another page
    assert detector.places(table, table.rows(), NOW + 1.5) == [0]


def test_a_burst_that_waits_for_a_moment_tells_nothing():
    detector, table = a_plugin(UtilizationDetector), a_table(an_endpoint(inflight=10))

    seen(detector, table, NOW, waiting=10.0, running=0.0, inflight_scraped=10)
    assert seen(detector, table, NOW + 1, waiting=0.0, running=10.0, inflight_scraped=10) == [256 + 5 - 10]


def test_an_engine_that_runs_more_than_it_had_shown_has_grown():
    detector, table = a_plugin(UtilizationDetector), a_table(an_endpoint(inflight=4))
    for at in (NOW, NOW + 1):
        seen(detector, table, at, waiting=1.0, running=3.0, inflight_scraped=4)

    assert seen(detector, table, NOW + 2, waiting=0.0, running=4.0, inflight_scraped=4) == [256 + 5 - 4]


def test_work_of_others_takes_places():
    detector = a_plugin(UtilizationDetector)

    assert places(detector, an_endpoint(scraped_at=NOW, running=30, queue=0, inflight=10, scraped_inflight=8)) == [
        256 + 5 - 10 - 22
    ]


def test_a_cache_that_is_nearly_full_has_no_place():
    detector = a_plugin(UtilizationDetector)

    assert places(detector, an_endpoint(scraped_at=NOW, kv=0.8, running=3, inflight=3, scraped_inflight=3)) == [0]


def test_tokens_sent_since_the_page_fill_the_cache_at_once():
    detector = a_plugin(UtilizationDetector)
    endpoint = {"scraped_at": NOW, "kv": 0.5, "running": 3, "inflight": 4, "scraped_inflight": 3, "kv_tokens": 1000}

    assert places(detector, an_endpoint(**endpoint, tokens=299)) == [256 + 5 - 4]
    assert places(detector, an_endpoint(**endpoint, tokens=300)) == [0]


def test_an_idle_engine_has_a_place_whatever_it_says_of_its_cache():
    assert places(a_plugin(UtilizationDetector), an_endpoint(scraped_at=NOW, kv=1.0)) == [261]


@pytest.mark.parametrize("age", [5.1, math.inf])
def test_of_a_stale_page_only_own_work_counts(age):
    detector = a_plugin(UtilizationDetector)
    stale = an_endpoint(scraped_at=NOW - age, kv=1.0, queue=500, running=500, inflight=3)

    assert places(detector, stale) == [256 + 5 - 3]


def test_what_was_known_of_the_batch_outlives_the_page():
    detector, table = a_plugin(UtilizationDetector), a_table(an_endpoint(inflight=12))
    for at in (NOW, NOW + 1):
        seen(detector, table, at, waiting=4.0, running=8.0, inflight_scraped=12)

    assert detector.places(table, table.rows(), NOW + 100) == [8 + 5 - 12]


def test_another_engine_in_the_same_row_begins_anew():
    detector, table = a_plugin(UtilizationDetector), a_table(an_endpoint(inflight=12))
    for at in (NOW, NOW + 1):
        seen(detector, table, at, waiting=4.0, running=8.0, inflight_scraped=12)
    table.addresses[table.rows()[0]] = "10.9.9.9:8000"

    assert detector.places(table, table.rows(), NOW + 100) == [256 + 5 - 12]


def test_a_threshold_that_no_page_meets_is_refused():
    with pytest.raises(ValueError, match="must be at least 1s"):
        UtilizationDetector.Params(metrics_staleness_threshold="200ms")
