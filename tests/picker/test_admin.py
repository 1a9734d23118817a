"""The admin pages."""

import pytest

from extproc.adapters.admin import _adapters, _learned
from extproc.scheduling import latency
from extproc.scheduling.endpoints import Lora
from tests.picker.running import a_picker, a_route, eventually, put, ticket
from tests.scheduling.builders import a_table, an_endpoint

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hello " * 200}]}


async def test_every_page_shows_what_it_says():
    async with a_picker() as picker:
        answers = [await picker.ask(CHAT, x_request_id=f"r-{number}") for number in range(3)]
        await put(
            picker.cluster, {**a_route("other"), "spec": {**a_route("other")["spec"], "parentRefs": [{"name": "g"}]}}
        )
        pages = await picker.page("/")
        listed = (await picker.page("/decisions?limit=2"))["decisions"]
        none = (await picker.page("/decisions?model=other"))["decisions"]
        one = await picker.page(f"/decisions/{ticket(answers[0])}")
        routes = await eventually(lambda: _with_skipped(picker))
        endpoints = (await picker.page("/endpoints"))["endpoints"]
        config = await picker.page("/config")

        assert "/decisions/{id}" in pages["pages"]
        assert [each["request_id"] for each in listed] == ["r-2", "r-1"]
        assert none == []
        assert one["request_id"] == "r-0"
        assert one["end"] == {"end": "open"}
        assert {each["endpoint"] for each in one["candidates"]} == {each["address"] for each in endpoints}
        assert sum(each["inflight"] for each in endpoints) == 3
        assert max(each["blocks_known"] for each in endpoints) > 0
        assert {(each["adapters"], each["learned"]) for each in endpoints} == {(None, None)}
        assert routes["models"] == ["demo"]
        assert "parentRefs" in routes["skipped"]["ns/other"]
        assert routes["servers"]["ns/engines"]["ready"] == 2
        assert config["file"] is None
        assert config["profile"]["plugins"]


async def test_a_refused_request_is_explained_by_its_id():
    async with a_picker() as picker:
        await picker.ask({**CHAT, "model": "other"}, x_request_id="r-9")

        status, shown = await picker.get("/decisions/r-9")
        assert status == 404
        assert "refused with 404 (unknown-model)" in shown["error"]
        assert (shown["end"], shown["status"], shown["reason"], shown["model"]) == (
            "refused",
            404,
            "unknown-model",
            "other",
        )
        assert (await picker.page("/decisions"))["refusals"][0]["request_id"] == "r-9"


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/decisions/nobody", 404, "no recent decision"),
        ("/decisions?limit=many", 400, "limit must be a number"),
    ],
)
async def test_a_wrong_question_is_told_why(path, status, says):
    async with a_picker() as picker:
        found, document = await picker.get(path)

        assert found == status
        assert says in document["error"]


async def test_the_metrics_port_shows_no_more_than_metrics_and_health():
    async with a_picker() as picker:
        assert (await picker.get("/healthz", what="metrics"))[0] == 200
        assert (await picker.get("/decisions", what="metrics"))[0] == 404


async def _with_skipped(picker):
    routes = await picker.page("/routes")
    return routes if routes["skipped"] else None


def test_what_is_learned_of_an_endpoint_is_shown():
    table = a_table(an_endpoint(lora=Lora(frozenset({"b", "a"}), frozenset({"c"}), 4)), an_endpoint())
    latency.record(table, 0, latency.Sample(0.25, 100.0, 0.01, 3), 100.0)

    assert _learned(table, 0, 101.5) == {"ttft_s": 0.25, "tpot_s": 0.01, "inflight": 3.0, "s_ago": 1.5}
    assert _learned(table, 1, 101.5) is None
    assert _adapters(table.lora[0]) == {"running": ["a", "b"], "waiting": ["c"], "slots": 4}
