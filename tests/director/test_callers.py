"""What a caller may know of, and whose word counts for the model's name."""

import json

import pytest

from extproc import errors
from extproc.types import HttpRequest, Reply
from tests.director.stage import Stage, a_chat, a_route


def listed(stage, path="/v1/models", allowed=None):
    answer = stage.decide(HttpRequest("GET", path, {}, b"", allowed=allowed))
    assert isinstance(answer, Reply)
    return json.loads(answer.body)


def test_a_caller_is_shown_what_it_may_use():
    stage = Stage(route=a_route("demo", loraAdapters=["gold"]))

    assert [one["id"] for one in listed(stage)["data"]] == ["demo", "gold"]
    assert [one["id"] for one in listed(stage, allowed=frozenset({"gold"}))["data"]] == ["gold"]
    assert listed(stage, allowed=frozenset({""}))["data"] == []
    assert listed(stage, "/v1/models/gold", frozenset({"gold"}))["id"] == "gold"
    with pytest.raises(errors.UnknownModel):
        listed(stage, "/v1/models/demo", frozenset({"gold"}))


def test_a_name_that_the_gateway_reads_otherwise_is_refused():
    stage = Stage()

    stage.decide(a_chat("hi", headers={"x-matrixinfer-model": "demo"}))
    with pytest.raises(errors.BadRequest):
        stage.decide(a_chat("hi", headers={"x-matrixinfer-model": "other"}))
