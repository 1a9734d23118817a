"""One object against its kind: fields, rules over several of them, metadata, and what a change may not touch."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ValidationError

from matrixinfer.api import core, dataplane, kinds, names, networking, objectives, workload
from matrixinfer.api.meta import FIELDS_ONLY, METADATA_FIELDS, Object, immutable
from matrixinfer.api.validation.messages import message
from matrixinfer.api.validation.shape import Loc, broken_rules, changed_immutables, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matrixinfer.api.kinds import Kind

Severity = Literal["error", "warning"]

# The typed view of each kind. Kinds that only pass through are seen by their metadata.
TYPES: Final[Mapping[Kind, type[BaseModel]]] = {
    kinds.POD: core.Pod,
    kinds.SERVICE: core.Service,
    kinds.MODEL_SERVER: networking.ModelServer,
    kinds.MODEL_ROUTE: networking.ModelRoute,
    kinds.ACCESS_POLICY: networking.AccessPolicy,
    kinds.EXTERNAL_MODEL_PROVIDER: networking.ExternalModelProvider,
    kinds.MODEL_INFER: workload.ModelInfer,
    kinds.INFERENCE_OBJECTIVE: objectives.InferenceObjective,
    kinds.OLD_INFERENCE_OBJECTIVE: objectives.InferenceObjective,
}
_ANNOTATIONS_LENGTH: Final = 256 * 1024
_OUR_DOMAIN: Final = ".matrixinfer.ai"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to change. `loc` is `path` in parts, for whoever looks for the line in the file."""

    path: str  # as Kubernetes writes it: `spec.rules[0].targetModels[1].weight`; "" for the whole object
    message: str
    severity: Severity = "error"
    loc: Loc = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


def validate(manifest: object) -> list[Problem]:
    """Check one manifest against its kind; an empty list means that it may be used."""
    if not isinstance(manifest, dict):
        return [Problem("", "must be a mapping with apiVersion, kind, metadata and spec")]
    kind, problems = _kind(manifest)
    if kind is None:
        return problems
    model = TYPES.get(kind, Object)
    found = dict.fromkeys((*_fields(model, manifest), *_metadata(kind, manifest), *_extras(kind, manifest)))
    return [Problem(path_of(model, loc), text, loc=loc) for loc, text in found]


def validate_update(old: Mapping[str, Any], new: object) -> list[Problem]:
    """Check `new` as a change of `old`, which is valid: all that `validate` says, and what may not change."""
    problems = validate(new)
    if not isinstance(new, dict) or (kind := kind_of(new)) is None:
        return problems
    model = TYPES.get(kind, Object)
    known = {problem.loc for problem in problems}
    return problems + [
        Problem(path_of(model, loc), immutable(str(loc[-1])), loc=loc)
        for loc in changed_immutables(model, old, new)
        if loc not in known
    ]


def kind_of(manifest: Mapping[str, Any]) -> Kind | None:
    """Give the kind of the manifest; None if it is not one of ours."""
    named = manifest.get("apiVersion"), manifest.get("kind")
    return kinds.KINDS.get(named) if all(isinstance(part, str) for part in named) else None  # type: ignore[arg-type]  # checked


def _kind(manifest: dict[str, Any]) -> tuple[Kind | None, list[Problem]]:
    kind = kind_of(manifest)
    if kind is not None:
        return kind, []
    problems = [
        Problem(field, "is required" if manifest.get(field) is None else "must be a string", loc=(field,))
        for field in ("apiVersion", "kind")
        if not isinstance(manifest.get(field), str) or not manifest.get(field)
    ]
    return None, problems or [_unknown_kind(manifest["apiVersion"], manifest["kind"])]


def _unknown_kind(api_version: str, name: str) -> Problem:
    versions = [version for version, known in kinds.KINDS if known == name]
    if versions:
        return Problem(
            "apiVersion",
            f"{name} is not known as {api_version[:100]!r}: write {' or '.join(versions)}",
            loc=("apiVersion",),
        )
    served = [known for version, known in kinds.KINDS if version == api_version]
    if served and api_version.partition("/")[0].endswith(_OUR_DOMAIN):
        return Problem(
            "kind", f"{name[:100]!r} is unknown in {api_version}: write {' or '.join(served)}", loc=("kind",)
        )
    if api_version.partition("/")[0].endswith(_OUR_DOMAIN):
        known = sorted({version for version, _ in kinds.KINDS if version.partition("/")[0].endswith(_OUR_DOMAIN)})
        return Problem(
            "apiVersion", f"{api_version[:100]!r} is unknown: write {' or '.join(known)}", loc=("apiVersion",)
        )
    similar = get_close_matches(name[:100], [known for _, known in kinds.KINDS], n=1, cutoff=0.8)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    return Problem(
        "kind",
        f"{name[:100]} of {api_version[:100]} is not read by MatrixInfer and has no effect here{hint}",
        "warning",
        ("kind",),
    )


def _fields(model: type[BaseModel], manifest: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    bad: list[Loc] = []
    try:
        model.model_validate(manifest, context=FIELDS_ONLY)
    except ValidationError as error:
        found = error.errors(include_url=False)
        bad = [details["loc"] for details in found]
        for details in found:
            # A list is also called too short for its unsound items, which are said anyway.
            if details["type"] != "too_short" or not _inside(details["loc"], bad):
                yield message(model, details)
    yield from broken_rules(model, manifest, bad)


def _inside(loc: Loc, others: list[Loc]) -> bool:
    return any(len(other) > len(loc) and other[: len(loc)] == loc for other in others)


def _metadata(kind: Kind, manifest: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    metadata = manifest.get("metadata")
    if metadata is None:
        yield ("metadata",), "is required, with a name"
    if not isinstance(metadata, dict):
        return
    for field in metadata:
        if field not in METADATA_FIELDS:
            similar = get_close_matches(str(field)[:100], METADATA_FIELDS, n=1)
            yield ("metadata", str(field)[:100]), "unknown field" + (f"; did you mean {similar[0]}?" if similar else "")
    yield from _name(kind, metadata)
    yield from _namespace(kind, metadata)
    for field in ("labels", "annotations"):
        yield from _labels(field, metadata.get(field))


def _name(kind: Kind, metadata: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    name, prefix = metadata.get("name"), metadata.get("generateName")
    check = (
        names.dns_1035_label
        if kind == kinds.SERVICE
        else names.dns_label
        if kind == kinds.NAMESPACE
        else names.dns_subdomain
    )
    if isinstance(name, str) and name:
        if problem := check(name):
            yield ("metadata", "name"), problem
    elif name in (None, "") and not prefix:
        yield ("metadata", "name"), "is required"
    elif isinstance(prefix, str) and (problem := check(f"{prefix}x")):
        yield ("metadata", "generateName"), problem


def _namespace(kind: Kind, metadata: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    namespace = metadata.get("namespace")
    if isinstance(namespace, str) and namespace:
        if not kind.namespaced:
            yield ("metadata", "namespace"), f"{kind.kind} has no namespace: remove the field"
        elif problem := names.dns_label(namespace):
            yield ("metadata", "namespace"), problem


def _labels(field: str, labels: object) -> Iterator[tuple[Loc, str]]:
    if not isinstance(labels, dict):
        return
    size = 0
    for key, value in labels.items():
        if not isinstance(key, str) or not isinstance(value, str):
            continue  # said by the field's type
        size += len(key) + len(value)
        problem = names.label_key(key) or (names.label_value(value) if field == "labels" else "")
        if problem:
            yield ("metadata", field, key), problem
    if field == "annotations" and size > _ANNOTATIONS_LENGTH:
        yield ("metadata", field), f"hold {size} characters; at most {_ANNOTATIONS_LENGTH} are allowed"


def _extras(kind: Kind, manifest: dict[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Check what is ours inside other people's objects: the port annotation of pods."""
    metadata = manifest.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    if kind != kinds.POD or not isinstance(annotations, dict):
        return
    port = annotations.get(dataplane.PORT_ANNOTATION)
    if isinstance(port, str) and networking.port_number(port) is None:
        yield ("metadata", "annotations", dataplane.PORT_ANNOTATION), "must be a port number from 1 to 65535, in quotes"
