"""CustomResourceDefinitions from the types: structural schemas, as `apiextensions.k8s.io/v1` wants them.

Pydantic's JSON schema says the same with references, unions with null and titles; here they are resolved, so that what is
left is the subset that the API server accepts. Optional fields are simply not required: null is never a value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import kinds, networking, workload
from matrixinfer.api.meta import immutable

if TYPE_CHECKING:
    from matrixinfer.api.kinds import Kind
    from matrixinfer.api.meta import Owned

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`."""

    name: str
    type: str
    path: str
    description: str
    wide: bool = False  # shown with `-o wide` only


@dataclass(frozen=True, slots=True)
class Crd:
    """A kind of ours, with what `kubectl` wants to know of it."""

    kind: Kind
    model: type[Owned]
    short_names: tuple[str, ...]
    columns: tuple[Column, ...]


_READY: Final = Column(
    "Ready", "string", ".status.conditions[?(@.type=='Ready')].status", "Whether requests can be answered."
)
_REASON: Final = Column(
    "Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", "Why the status is what it is.", wide=True
)
_AGE: Final = Column("Age", "date", ".metadata.creationTimestamp", "Time since the object was created.")

CRDS: Final = (
    Crd(
        kinds.MODEL_SERVER,
        networking.ModelServer,
        ("ms",),
        (
            Column("Engine", "string", ".spec.inferenceEngine", "The inference engine."),
            Column("Port", "integer", ".spec.workloadPort.port", "The port that the engines listen on."),
            Column("Protocol", "string", ".spec.workloadPort.protocol", "The protocol that they speak.", wide=True),
            Column("Endpoints", "integer", ".status.endpoints", "Selected pods that have an address."),
            Column("Available", "integer", ".status.readyEndpoints", "Those of them that may get requests now."),
            _READY,
            _REASON,
            _AGE,
        ),
    ),
    Crd(
        kinds.MODEL_ROUTE,
        networking.ModelRoute,
        ("mr",),
        (
            Column("Model", "string", ".spec.modelName", "The model name in requests."),
            Column("Adapters", "string", ".spec.loraAdapters", "LoRA adapters in requests.", wide=True),
            Column(
                "Accepted", "string", ".status.conditions[?(@.type=='Accepted')].status", "Whether the route is in use."
            ),
            _READY,
            _REASON,
            _AGE,
        ),
    ),
    Crd(
        kinds.ACCESS_POLICY,
        networking.AccessPolicy,
        ("ap",),
        (
            Column(
                "Accepted",
                "string",
                ".status.conditions[?(@.type=='Accepted')].status",
                "Whether the policy is in use.",
            ),
            Column(
                "Programmed", "string", ".status.conditions[?(@.type=='Programmed')].status", "Whether Envoy has it."
            ),
            _AGE,
        ),
    ),
    Crd(
        kinds.EXTERNAL_MODEL_PROVIDER,
        networking.ExternalModelProvider,
        ("emp",),
        (
            Column("Type", "string", ".spec.providerType", "The API that it speaks."),
            Column("URL", "string", ".spec.baseURL", "Where it is."),
            Column("Model", "string", ".spec.model", "The model name that it gets.", wide=True),
            _READY,
            _REASON,
            _AGE,
        ),
    ),
    Crd(
        kinds.MODEL_INFER,
        workload.ModelInfer,
        ("mi",),
        (
            Column("Replicas", "integer", ".spec.replicas", "Groups that are wanted."),
            Column("Available", "integer", ".status.availableReplicas", "Groups of which every pod is ready."),
            Column("Updated", "integer", ".status.updatedReplicas", "Groups of the newest revision."),
            Column("Revision", "string", ".status.updateRevision", "The newest revision.", wide=True),
            Column(
                "Status",
                "string",
                ".status.conditions[?(@.type=='Available')].reason",
                "Whether all groups are ready, and if not, why.",
            ),
            _AGE,
        ),
    ),
)


def manifest(crd: Crd) -> dict[str, Any]:
    """Give the CustomResourceDefinition of a kind."""
    kind = crd.kind
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.kind.lower(),
                "shortNames": list(crd.short_names),
                "categories": ["matrixinfer"],
            },
            "versions": [
                {
                    "name": kind.version,
                    "served": True,
                    "storage": True,
                    "subresources": _subresources(kind),
                    "additionalPrinterColumns": [_column(column) for column in crd.columns],
                    "schema": {"openAPIV3Schema": structural(crd.model)},
                }
            ],
        },
    }


def _subresources(kind: Kind) -> dict[str, Any]:
    offered: dict[str, Any] = {"status": {}} if kind.status else {}
    if kind.scale is not None:
        spec, status, selector = kind.scale
        paths = {"specReplicasPath": spec, "statusReplicasPath": status, "labelSelectorPath": selector}
        offered["scale"] = paths
    return offered


def structural(model: type[Owned]) -> Schema:
    """Give the structural schema of a whole object."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    schema = _structure(raw, raw.get("$defs", {}))
    schema["properties"] |= {
        "apiVersion": {"type": "string", "description": "Version of the API that the object is written in."},
        "kind": {"type": "string", "description": "Kind of the object."},
        "metadata": {"type": "object"},
    }
    schema["required"] = [name for name in schema["required"] if name != "metadata"]
    return schema


# What a structural schema may say of a value, in the order in which it is written.
_KEPT: Final[tuple[str, ...]] = (
    "description",
    "type",
    "format",
    "default",
    "enum",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)


def _structure(node: Schema, definitions: dict[str, Schema], name: str = "") -> Schema:
    """Resolve a node to the structural subset, recursively; `name` is that of the field."""
    node = dict(_resolved(node, definitions))
    if node.get("default") in (None, []) or isinstance(node.get("default"), dict):
        node.pop("default", None)  # an object that is left out is read as one without fields
    if "const" in node:
        node["enum"] = [node["const"]]
    if node.get("x-immutable"):
        rule = {"rule": "self == oldSelf", "message": immutable(name)}
        node["x-kubernetes-validations"] = [*node.get("x-kubernetes-validations", []), rule]
    result: Schema = {key: node[key] for key in _KEPT if key in node}
    if "properties" in node:
        result["properties"] = {key: _structure(part, definitions, key) for key, part in node["properties"].items()}
    if isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _structure(node["additionalProperties"], definitions)
    if "items" in node:
        result["items"] = _structure(node["items"], definitions)
    return result


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Follow references and strip `| null`; what stands beside them wins."""
    while True:
        if "$ref" in node:
            beside = {key: value for key, value in node.items() if key != "$ref"}
            node = definitions[node["$ref"].rpartition("/")[2]] | beside
        elif "anyOf" in node:
            branches = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
            if len(branches) != 1:
                raise TypeError(f"a union cannot be said in a structural schema: {node['anyOf']}")
            node = branches[0] | {key: value for key, value in node.items() if key != "anyOf"}
        else:
            return node


def _column(column: Column) -> dict[str, Any]:
    said = {"name": column.name, "type": column.type, "jsonPath": column.path, "description": column.description}
    return said | ({"priority": 1} if column.wide else {})
