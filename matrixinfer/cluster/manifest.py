"""Manifests as they come from outside: copied, cleaned and checked as far as every kind is alike. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from matrixinfer.api import names, validation
from matrixinfer.cluster.protocol import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixinfer.cluster.protocol import Kind, Manifest

_STRICT: Final = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS


def load(blob: bytes) -> Manifest:
    """Parse what was stored."""
    manifest: Manifest = orjson.loads(blob)
    return manifest


def incoming(kind: Kind, given: Manifest) -> Manifest:
    """Copy a caller's manifest of this kind, without nulls. Raises Invalid."""
    try:
        blob = orjson.dumps(given, option=_STRICT)
    except TypeError as error:
        raise Invalid(f"the object is not JSON: {error}") from None
    new = load(blob)
    if b"null" in blob:
        new = _without_nulls(new)
    for member, expected in (("apiVersion", kind.api_version), ("kind", kind.kind)):
        if new.setdefault(member, expected) != expected:
            raise Invalid(f"{member}: Invalid value: {new[member]!r}: must be {expected}")
    _check_address(kind, new.setdefault("metadata", {}))
    return new


def _check_address(kind: Kind, meta: Any) -> None:
    if not isinstance(meta, dict):
        raise Invalid("metadata: Invalid value: must be an object")
    for member in ("name", "generateName", "namespace", "uid", "resourceVersion"):
        if not isinstance(meta.get(member, ""), str):
            raise Invalid(f"metadata.{member}: Invalid value: {meta[member]!r}: must be a string")
    if not meta.get("namespace"):
        meta.pop("namespace", None)
    if kind.namespaced and "namespace" not in meta:
        raise Invalid(f"metadata.namespace: Required value: {kind.plural} live in a namespace")
    if not kind.namespaced and "namespace" in meta:
        raise Invalid(f"metadata.namespace: Forbidden: {kind.plural} have no namespace")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {member: _without_nulls(inner) for member, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def check(kind: Kind, new: Manifest, old: Manifest | None = None) -> None:
    """Raise Invalid with every problem of the object, or of the change from `old` to it."""
    problems = [*_finalizer_problems(new["metadata"].get("finalizers", []))]
    problems += _owner_problems(new["metadata"].get("ownerReferences", []))
    if validation.kind_of(new) == kind:
        found = validation.validate(new) if old is None else validation.validate_update(old, new)
        problems += [str(problem) for problem in found if problem.severity == "error"]
    else:
        problems += _problems_of_any_kind(new["metadata"])
    if problems:
        raise Invalid(f'{kind.kind} "{new["metadata"]["name"]}" is invalid: ' + "; ".join(problems))


def _problems_of_any_kind(meta: Manifest) -> Iterator[str]:
    for member, rule in (("name", names.dns_subdomain), ("namespace", names.dns_label)):
        if meta.get(member) and (problem := rule(meta[member])):
            yield f"metadata.{member}: {problem}"
    for member in ("labels", "annotations"):
        values = meta.get(member, {})
        if not isinstance(values, dict):
            yield f"metadata.{member}: must be a mapping"
            continue
        for key, value in values.items():
            if not isinstance(value, str):
                yield f"metadata.{member}.{key}: must be a string, not {value!r}: put it in quotes"
            elif problem := names.label_key(key) or (names.label_value(value) if member == "labels" else ""):
                yield f"metadata.{member}.{key}: {problem}"


def _finalizer_problems(finalizers: Any) -> Iterator[str]:
    if not isinstance(finalizers, list) or not all(isinstance(name, str) and name for name in finalizers):
        yield "metadata.finalizers: Invalid value: must be a list of names"


def _owner_problems(references: Any) -> Iterator[str]:
    if not isinstance(references, list) or not all(isinstance(reference, dict) for reference in references):
        yield "metadata.ownerReferences: Invalid value: must be a list of objects"
        return
    for number, reference in enumerate(references):
        for member in ("apiVersion", "kind", "name", "uid"):
            if not isinstance(reference.get(member), str) or not reference[member]:
                yield f"metadata.ownerReferences[{number}].{member}: Required value"
    if sum(reference.get("controller") is True for reference in references) > 1:
        yield "metadata.ownerReferences: Invalid value: only one reference can be the controller's"


def place_of(manifest: Manifest) -> tuple[str, str]:
    """Namespace and name; both may be empty."""
    meta = manifest["metadata"]
    return meta.get("namespace", ""), meta.get("name", "")


def desired(kind: Kind, manifest: Manifest) -> Manifest:
    """Give what `metadata.generation` counts: all but metadata and status."""
    passed = {"metadata", "status"} if kind.status else {"metadata"}
    return {member: value for member, value in manifest.items() if member not in passed}


def copy_member(source: Manifest, target: Manifest, member: str) -> None:
    """Make `target` have this member as `source` has it, or not at all."""
    if member in source:
        target[member] = source[member]
    else:
        target.pop(member, None)


def value_at(manifest: Manifest, path: str, default: Any) -> Any:
    """Return the value at a path of the scale subresource, such as `.spec.replicas`."""
    value: Any = manifest
    for member in path.removeprefix(".").split("."):
        value = value.get(member) if isinstance(value, dict) else None
    return default if value is None else value


def set_value_at(manifest: Manifest, path: str, value: Any) -> None:
    """Set the value at a path of the scale subresource, in place."""
    *parents, last = path.removeprefix(".").split(".")
    at = manifest
    for member in parents:
        at = at.setdefault(member, {})
    at[last] = value


def differs(wanted: Any, standing: Any) -> bool:
    """Tell whether something that is wanted stands otherwise; what others have added is no difference."""
    if isinstance(wanted, dict) and isinstance(standing, dict):
        return any(key not in standing or differs(part, standing[key]) for key, part in wanted.items())
    if isinstance(wanted, list) and isinstance(standing, list):
        return len(wanted) != len(standing) or any(map(differs, wanted, standing))
    return bool(wanted != standing)
