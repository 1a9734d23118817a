"""What a user is told. Each `golden/*.yaml` has a `.txt` beside it that holds every problem of its documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from matrixinfer.api import networking
from matrixinfer.api.validation import validate, validate_set, validate_update

GOLDEN = Path(__file__).parent / "golden"


def a_route(**spec):
    spec = {"modelName": "demo", "rules": [{"targetModels": [{"modelServerName": "demo"}]}]} | spec
    return {"apiVersion": networking.API_VERSION, "kind": "ModelRoute", "metadata": {"name": "demo"}, "spec": spec}


def told(path):
    manifests = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    return "".join(f"{found.index} {found.problem.severity} {found}\n" for found in validate_set(manifests))


@pytest.mark.parametrize("case", sorted(GOLDEN.glob("*.yaml")), ids=lambda case: case.stem)
def test_every_problem_is_told(case):
    assert told(case) == case.with_suffix(".txt").read_text(encoding="utf-8")


def test_the_location_in_parts_names_the_same_place_as_the_path():
    [problem] = validate(a_route(rules=[{"targetModels": [{"modelServerName": "demo", "weight": 101}]}]))

    assert problem.path == "spec.rules[0].targetModels[0].weight"
    assert problem.loc == ("spec", "rules", 0, "targetModels", 0, "weight")


def test_a_null_is_a_field_left_out():
    assert validate(a_route(rateLimit=None, loraAdapters=None)) == []


@pytest.mark.parametrize("value", ["1", "1.5", "true", "2026-01-01", "2026-01-01T00:00:00Z"])
def test_what_yaml_takes_for_something_else_wants_quotes(value):
    manifest = a_route() | {"metadata": yaml.safe_load(f"{{name: demo, labels: {{version: {value}}}}}")}

    [problem] = validate(manifest)

    assert problem.path == "metadata.labels[version]"
    assert problem.message.endswith("put it in quotes")


def test_the_model_name_cannot_be_changed():
    [problem] = validate_update(a_route(), a_route(modelName="other"))

    assert str(problem) == ("spec.modelName: modelName is immutable: delete the object and create it anew to change it")


def test_the_model_name_cannot_be_added_to_a_route_for_adapters():
    adapters_only = a_route(modelName=None, loraAdapters=["sql"])

    assert [problem.path for problem in validate_update(adapters_only, a_route(loraAdapters=["sql"]))] == [
        "spec.modelName"
    ]
    assert validate_update(adapters_only, a_route(modelName="", loraAdapters=["sql"])) == []


def test_a_change_of_other_fields_is_free():
    assert validate_update(a_route(), a_route(rateLimit={"inputTokensPerUnit": 5})) == []


def test_a_status_with_fields_of_a_newer_version_is_passed_over():
    newer = a_route() | {"status": {"observedGeneration": 3, "conditions": [], "laterField": 1}}

    assert validate(newer) == []


def test_routes_of_different_gateways_do_not_meet():
    one, other = a_route(parentRefs=[{"name": "a"}]), a_route(parentRefs=[{"name": "b"}])
    other["metadata"] = {"name": "other"}

    assert not [found for found in validate_set([one, other]) if found.problem.path == "spec.modelName"]


def test_of_two_routes_the_older_one_decides():
    old, new = a_route(), a_route()
    old["metadata"] = {"name": "z", "creationTimestamp": "2026-01-01T00:00:00Z"}
    new["metadata"] = {"name": "a", "creationTimestamp": "2026-02-01T00:00:00Z"}

    shadowed = [found.subject for found in validate_set([new, old]) if found.problem.path == "spec.modelName"]

    assert shadowed == ["ModelRoute default/a"]
