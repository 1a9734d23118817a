"""What holds for every manifest."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.api import crds, kinds, networking
from matrixinfer.api.validation import kind_of, validate, validate_set, validate_update
from tests.api import strategies

MODELS = {"ModelServer": networking.ModelServer, "ModelRoute": networking.ModelRoute}
SCHEMAS = {crd.kind.kind: crds.structural(crd.model) for crd in crds.CRDS}


def defaulted(value, schema):
    """What the API server makes of a value: the schema's defaults in the places that are left out."""
    if isinstance(value, list):
        return [defaulted(item, schema["items"]) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(schema.get("additionalProperties"), dict):
        return {key: defaulted(item, schema["additionalProperties"]) for key, item in value.items()}
    parts = schema.get("properties", {})
    filled = {key: part["default"] for key, part in parts.items() if "default" in part} | value
    return {key: defaulted(item, parts.get(key, {})) for key, item in filled.items()}


def dropped_empty(value):
    """Without empty lists and maps, which mean the same as nothing."""
    if isinstance(value, dict):
        parts = {key: dropped_empty(item) for key, item in value.items()}
        return {key: part for key, part in parts.items() if part not in ([], {})}
    return [dropped_empty(item) for item in value] if isinstance(value, list) else value


@given(st.one_of(strategies.model_servers, strategies.model_routes))
@settings(max_examples=150)
def test_a_valid_object_has_no_problem_and_comes_back_with_the_defaults_of_the_schema(manifest):
    before = copy.deepcopy(manifest)

    parsed = MODELS[manifest["kind"]].model_validate(manifest)
    written = json.loads(json.dumps(parsed.spec.model_dump(by_alias=True, exclude_none=True)))
    schema = SCHEMAS[manifest["kind"]]["properties"]["spec"]

    assert validate(manifest) == []
    assert manifest == before
    assert dropped_empty(written) == dropped_empty(defaulted(manifest["spec"], schema))


@given(strategies.anything)
@settings(max_examples=200)
def test_nothing_that_a_file_can_hold_breaks_validation(manifest):
    for problem in validate(manifest):
        str(problem)
    validate_set([manifest, manifest])


@given(
    st.sampled_from(sorted(kinds.KINDS)),
    st.dictionaries(st.sampled_from(["metadata", "spec", "status", "data"]), strategies.anything),
)
@settings(max_examples=200)
def test_nothing_in_an_object_of_any_kind_breaks_validation(named, parts):
    manifest = {"apiVersion": named[0], "kind": named[1], **parts}

    assert validate_set([manifest]) is not None


@given(strategies.damaged(st.one_of(strategies.model_servers, strategies.model_routes)))
@settings(max_examples=300)
def test_an_object_is_refused_exactly_if_it_cannot_be_parsed(manifest):
    problems = validate(manifest)
    kind = kind_of(manifest)
    if kind is None:
        assert problems
        return

    try:
        MODELS[kind.kind].model_validate(manifest)
    except ValueError:
        assert problems
    else:
        assert all(problem.path.startswith("metadata") for problem in problems)
    for problem in problems:
        assert problem.message
        assert problem.loc or not problem.path
    assert len(set(problems)) == len(problems)


@given(strategies.model_routes, strategies.damaged(strategies.model_routes))
@settings(max_examples=100)
def test_a_change_has_all_the_problems_of_the_new_object(old, new):
    assert set(validate(new)) <= set(validate_update(old, new))


def test_numbers_too_long_to_print_are_problems_like_any_other():
    spec = {"inferenceEngine": 10**5000, "workloadPort": {"port": 10**5000}, 10**5000: 1}
    manifest = {"apiVersion": networking.API_VERSION, "kind": "ModelServer", "metadata": {"name": "x"}, "spec": spec}

    messages = {problem.path: str(problem) for problem in validate(manifest)}

    assert messages["spec.workloadPort.port"] == "spec.workloadPort.port: must be at most 65535, not a huge number"


@pytest.mark.parametrize("depth", [100, 5000])
def test_deep_nesting_is_a_problem_like_any_other(depth):
    deep: object = "x"
    for _ in range(depth):
        deep = {"a": [deep]}
    manifest = {"apiVersion": networking.API_VERSION, "kind": "ModelServer", "metadata": {"name": "x"}, "spec": deep}

    problems = validate(manifest)

    assert [problem.path for problem in problems if "unknown field" in problem.message] == ["spec.a"]
