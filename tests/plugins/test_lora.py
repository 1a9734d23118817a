from __future__ import annotations

import pytest

from extproc.plugins.lora_affinity_filter import LoraAffinityFilter
from extproc.plugins.lora_affinity_scorer import LoraAffinityScorer
from extproc.scheduling.endpoints import Endpoint, Lora
from tests.scheduling.builders import a_cycle, a_plugin, a_request, an_endpoint


def lora(running="", waiting="", slots=2):
    return Lora(frozenset(running.split()), frozenset(waiting.split()), slots)


def asked(*endpoints, model="sql", **more):
    """A cycle for a request of an adapter."""
    return a_cycle(*endpoints, request=a_request(model=model), **more)


def loaded(**facts):
    """An endpoint that lists the adapters that the tests ask for."""
    return an_endpoint(models=["base"], adapters=["sql", "other", "third"], **facts)


def test_the_grades_are_at_work_free_slot_waiting_and_no_room():
    cycle = asked(
        loaded(lora=lora("sql")),
        loaded(lora=lora("other")),
        loaded(lora=lora("other third", "sql")),
        loaded(lora=lora("other third")),
    )

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [1.0, 0.8, 0.6, 0.0]


def test_an_adapter_that_works_and_waits_takes_one_slot():
    cycle = asked(loaded(lora=lora("other", "other")))

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [0.8]


def test_an_endpoint_that_would_answer_404_scores_nothing_however_free_it_is():
    cycle = asked(loaded(lora=lora("other third")), an_endpoint(models=["base"], lora=lora()))

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [0.0, 0.0]


def test_an_engine_that_tells_nothing_of_slots_has_room_for_what_it_lists():
    cycle = asked(loaded(), an_endpoint(models=["base"]))

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [0.8, 0.0]


def test_where_nobody_lists_the_adapter_slots_decide():
    full, free = an_endpoint(models=["base"], lora=lora("a b")), an_endpoint(models=["base"], lora=lora("a"))

    assert a_plugin(LoraAffinityScorer).score(asked(full, free, an_endpoint())).tolist() == [0.0, 0.8, 0.0]


def test_a_base_model_has_nothing_to_load():
    cycle = asked(loaded(lora=lora("sql other")), loaded(lora=lora()), an_endpoint(), model="base")

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [1.0, 1.0, 0.0]


def test_the_name_that_the_engine_knows_is_looked_up():
    cycle = asked(loaded(lora=lora("sql")), loaded(lora=lora()), model="alias", engine_model="sql")

    assert a_plugin(LoraAffinityScorer).score(cycle).tolist() == [1.0, 0.8]
    assert a_plugin(LoraAffinityFilter).keep(cycle).tolist() == [True, True]


def test_what_was_sent_since_the_last_scrape_is_at_work():
    scorer = a_plugin(LoraAffinityScorer)
    cycle = asked(loaded(lora=lora(), scraped_at=99.0), loaded(lora=lora(), scraped_at=99.0), now=100.0)
    scorer.observe(cycle, 1)

    assert scorer.score(cycle).tolist() == [0.8, 1.0]

    cycle.table.scraped_at[:] = 101.0

    assert scorer.score(cycle).tolist() == [0.8, 0.8]


def test_what_was_sent_since_the_last_scrape_takes_slots():
    scorer = a_plugin(LoraAffinityScorer)
    cycle = asked(loaded(lora=lora("third"), scraped_at=99.0), now=100.0)
    scorer.observe(asked(*[loaded(lora=lora("third"), scraped_at=99.0)], model="other", now=100.0), 0)

    assert scorer.score(cycle).tolist() == [0.0]


def test_what_was_sent_to_an_endpoint_that_left_does_not_count_for_the_next_in_its_row():
    scorer = a_plugin(LoraAffinityScorer)
    cycle = asked(loaded(lora=lora(), scraped_at=99.0), now=100.0)
    scorer.observe(cycle, 0)
    table = cycle.table
    table.remove(table.address(0))
    row = table.upsert(Endpoint("10.9.9.9:8000", "default/new", "vLLM"))
    table.adapters[row] = table.models[row] = frozenset({"sql"})
    table.lora[row] = lora()

    assert row == 0
    assert scorer.score(cycle).tolist() == [0.8]


def test_what_is_remembered_is_bounded():
    scorer = a_plugin(LoraAffinityScorer)
    cycle = asked(loaded(lora=lora()), now=100.0)
    for at in range(100):
        cycle.table.scraped_at[0] = at
        scorer.observe(cycle._replace(request=a_request(model=f"adapter-{at}"), now=at + 0.1), 0)

    assert len(scorer._adapters._sent) == 1
    assert len(scorer._adapters._sent[cycle.table.address(0)]) <= 2


@pytest.mark.parametrize("model", ["sql", "alias"])
def test_the_filter_keeps_who_lists_the_adapter(model):
    cycle = asked(loaded(), an_endpoint(models=["base"]), model=model, engine_model="sql")

    assert a_plugin(LoraAffinityFilter).keep(cycle).tolist() == [True, False]


def test_an_adapter_that_nobody_lists_leaves_all():
    cycle = asked(an_endpoint(models=["base"]), an_endpoint())

    assert a_plugin(LoraAffinityFilter).keep(cycle).tolist() == [True, True]


def test_the_filter_leaves_out_who_has_no_slot_if_asked_to():
    one = a_plugin(LoraAffinityFilter, require_slot=True)
    full, free = loaded(lora=lora("other third")), loaded(lora=lora("other"))

    assert one.keep(asked(full, free, an_endpoint(models=["base"]))).tolist() == [False, True, False]
    assert one.keep(asked(full, full)).tolist() == [True, True]
    assert one.keep(asked(an_endpoint(models=["base"]), full, model="base")).tolist() == [True, True]
