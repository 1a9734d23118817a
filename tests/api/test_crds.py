"""The CRDs are what `apiextensions.k8s.io/v1` accepts, and say what the types say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from matrixinfer.api import crds
from matrixinfer.api.meta import Duration

ROOT = Path(__file__).parents[2]
MANIFESTS = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / "crds").glob("*.yaml")}
SCHEMAS = {crd.kind.kind: (crd.model, crds.structural(crd.model)) for crd in crds.CRDS}
# What a structural schema may say, of all that OpenAPI knows.
ALLOWED = {
    "type", "format", "description", "default", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern",
    "minItems", "maxItems", "minProperties", "maxProperties", "required", "properties", "additionalProperties", "items",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type",
    "x-kubernetes-validations", "x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def nodes(schema, path=""):
    """Every schema in a schema, with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from nodes(part, f"{path}.{name}")
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            yield from nodes(schema[inner], f"{path}[]")


def all_nodes():
    for kind, (_, schema) in SCHEMAS.items():
        yield from ((kind + path, node) for path, node in nodes(schema))


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_crd_is_small_enough_for_kubectl_apply(name):
    assert (ROOT / "crds" / f"{name}.yaml").stat().st_size < 256 * 1024


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_crd_is_named_for_what_it_defines(name):
    crd = MANIFESTS[name]
    spec, [version] = crd["spec"], crd["spec"]["versions"]

    assert crd["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["names"]["categories"] == ["matrixinfer"]
    assert version["served"]
    assert version["storage"]
    assert version["subresources"]["status"] == {}
    assert version["additionalPrinterColumns"][-1]["jsonPath"] == ".metadata.creationTimestamp"


def test_columns_show_fields_that_exist():
    for crd in crds.CRDS:
        paths = {path for path, _ in nodes(crds.structural(crd.model))}
        for column in crd.columns:
            path = column.path.partition("[?")[0]
            assert path in paths | {".metadata.creationTimestamp"}, column


def test_every_part_of_a_schema_has_a_type_and_says_nothing_forbidden():
    for path, node in all_nodes():
        if node.get("x-kubernetes-int-or-string"):
            assert set(node) <= ALLOWED - {"type"}, path
            continue
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert set(node) <= ALLOWED, path
        assert ("items" in node) == (node["type"] == "array"), path
        assert not ("properties" in node and "additionalProperties" in node), path


def test_every_list_and_map_and_string_of_a_spec_is_bounded():
    bound = {"array": "maxItems", "string": "maxLength"}
    for path, node in all_nodes():
        if ".spec" in path:
            needed = "maxProperties" if "additionalProperties" in node else bound.get(node.get("type"))
            assert needed is None or needed in node or "enum" in node, path


def test_every_field_is_described():
    for path, node in all_nodes():
        assert node.get("description") or path.endswith(("[]", ".metadata")), path


def test_only_fields_that_exist_are_required():
    for path, node in all_nodes():
        assert set(node.get("required", [])) <= set(node.get("properties", {})), path
        required_with_default = [name for name in node.get("required", []) if "default" in node["properties"][name]]
        assert not required_with_default, path


def test_no_field_of_metadata_is_constrained_in_the_schema():
    for _, schema in SCHEMAS.values():
        assert schema["properties"]["metadata"] == {"type": "object"}


def test_the_model_name_is_immutable_for_the_api_server():
    _, schema = SCHEMAS["ModelRoute"]

    rules = schema["properties"]["spec"]["properties"]["modelName"]["x-kubernetes-validations"]

    assert [rule["rule"] for rule in rules] == ["self == oldSelf"]


def written(default):
    """A default as JSON has it."""
    if isinstance(default, Duration):
        return str(default)
    return list(default) if isinstance(default, tuple) else default


def test_defaults_of_schema_and_type_are_equal():
    compared = 0
    for model, schema in SCHEMAS.values():
        for part, node in pairs(model, schema):
            for name, field in part.model_fields.items():
                if name in {"api_version", "kind"} and part is model:
                    continue  # constants, which the API server checks by itself
                said = node["properties"][field.alias or name].get("default")
                default = field.get_default(call_default_factory=True)
                if said is None:
                    empty = default in (None, (), {}) or (isinstance(default, BaseModel) and default == type(default)())
                    assert empty or field.is_required(), (part, name)
                else:
                    assert said == written(default), (part, name)
                    compared += 1
    assert compared > 10


def test_a_kind_that_is_scaled_says_where_its_numbers_stand():
    [version] = MANIFESTS["workload.matrixinfer.ai_modelinfers"]["spec"]["versions"]

    assert version["subresources"]["scale"] == {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.labelSelector",
    }


def pairs(model, schema):
    """Each model of ours with the part of the schema that describes it, as far as the schema says more than that it is there."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    yield model, schema
    for name, field in model.model_fields.items():
        if name == "metadata":
            continue
        node = schema["properties"][field.alias or name]
        inner = [part for part in arguments(field.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        for part in inner:
            while "properties" not in node and not node.get("x-kubernetes-preserve-unknown-fields"):
                node = node.get("items") or node["additionalProperties"]
            yield from pairs(part, node)


def arguments(annotation):
    """The types in an annotation, at any depth."""
    inner = getattr(annotation, "__args__", ())
    return [annotation] if not inner else [found for part in inner for found in arguments(part)]
