"""The reference page of an API group, from the same schemas as its CRDs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from matrixinfer.api import crds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matrixinfer.api.crds import Crd

_MARK = "This page is generated from `matrixinfer/api` by `make generate`."


def page(group: str, definitions: Sequence[Crd]) -> str:
    """Give the Markdown page for the kinds of a group."""
    return "\n".join(_lines(group, definitions)) + "\n"


def _lines(group: str, definitions: Sequence[Crd]) -> Iterator[str]:
    version = definitions[0].kind.version
    yield f"# {group}/{version}"
    yield ""
    yield f"{_MARK} Unknown fields are errors. Durations are written as in Go: `500ms`, `30s`, `1h30m`."
    for crd in definitions:
        schema = crds.structural(crd.model)
        yield ""
        yield f"## {crd.kind.kind}"
        yield ""
        yield schema["description"]
        yield ""
        yield f"`kubectl get {crd.kind.plural}`, short {', '.join(f'`{name}`' for name in crd.short_names)}; category `matrixinfer`."
        for part in ("spec", "status"):
            yield from _table(f"{crd.kind.kind}.{part}", part, schema["properties"][part])
        yield from _rules(schema)


def _table(title: str, prefix: str, schema: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"### {title}"
    yield ""
    yield "| Field | Type | Default | Allowed | Meaning |"
    yield "|---|---|---|---|---|"
    yield from _rows(prefix, schema)


def _rows(prefix: str, schema: dict[str, Any]) -> Iterator[str]:
    required = schema.get("required", [])
    for name, part in schema.get("properties", {}).items():
        path = f"{prefix}.{name}"
        default = f"`{json.dumps(part['default'])}`" if "default" in part else "required" if name in required else ""
        cells = (f"`{path}`", _type(part), default, "; ".join(_bounds(part)), part.get("description", ""))
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
        if "items" in part:
            yield from _rows(f"{path}[]", part["items"])
        elif isinstance(part.get("additionalProperties"), dict):
            yield from _rows(f"{path}[key]", part["additionalProperties"])
        else:
            yield from _rows(path, part)


def _type(schema: dict[str, Any]) -> str:
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map to {_type(schema['additionalProperties'])}"
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    return str(schema["type"])


def _bounds(schema: dict[str, Any]) -> Iterator[str]:
    if "enum" in schema:
        yield ", ".join(f"`{value}`" for value in schema["enum"])
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
    ):
        if low in schema or high in schema:
            bounds = [str(schema[low])] if low in schema else []
            yield (
                (" to ".join([*bounds, str(schema[high])]) if bounds else f"up to {schema[high]}") + unit
                if (high in schema)
                else f"at least {schema[low]}{unit}"
            )
    if schema.get("x-kubernetes-list-type") == "set":
        yield "none twice"
    if "pattern" in schema:
        yield f"`{schema['pattern']}`"


def _rules(schema: dict[str, Any]) -> Iterator[str]:
    rules = list(_rules_in("", schema))
    if rules:
        yield ""
        yield "Rules:"
        yield ""
        yield from (f"- `{path}`: {message}" for path, message in rules)


def _rules_in(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield path + rule.get("fieldPath", ""), rule["message"]
    for name, part in schema.get("properties", {}).items():
        yield from _rules_in(f"{path}.{name}" if path else name, part)
    if "items" in schema:
        yield from _rules_in(f"{path}[]", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _rules_in(f"{path}[key]", schema["additionalProperties"])
