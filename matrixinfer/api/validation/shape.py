"""Walks over a raw manifest along the types that describe it: paths, rules, what may not change.

A manifest with mistakes cannot become a typed object, yet the rules that its sound parts keep or break shall be known
in the same pass. So rules are run on the fields that they read, wherever those are sound.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from matrixinfer.api.meta import FIELDS_ONLY, Foreign, Owned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Loc = tuple[str | int, ...]
_PLAIN: Final = re.compile("[A-Za-z_][A-Za-z0-9_]*")


def path_of(model: type[BaseModel], loc: Loc) -> str:
    """Write a location as Kubernetes does: fields with dots, items and map keys in brackets."""
    text = ""
    inner: Any = model
    for part in loc:
        if isinstance(part, str) and _is_model(inner) and _PLAIN.fullmatch(part):
            text += f".{part}" if text else part
            inner = _field_type(inner, part)
        else:
            text += f"[{part}]"
            inner = _element(inner)
    return text


def broken_rules(model: type[BaseModel], raw: object, bad: Sequence[Loc], loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Give each rule of `model` and its parts that does not hold; locations in `bad` are known to be unsound."""
    if not isinstance(raw, dict) or not issubclass(model, Owned | Foreign):
        return
    unsound = {where[len(loc)] for where in bad if len(where) > len(loc) and where[: len(loc)] == loc}
    for rule in model.RULES:
        if loc in bad or unsound & {alias_of(model, name) for name in rule.reads}:
            continue
        if not rule.holds(model.model_construct(**{name: _value(model, name, raw) for name in rule.reads})):
            yield (*loc, rule.blames) if rule.blames else loc, rule.message
    for name, field in model.model_fields.items():
        alias = alias_of(model, name)
        for part, value, where in _parts(field.annotation, raw.get(alias), (*loc, alias)):
            yield from broken_rules(part, value, bad, where)


def changed_immutables(model: type[BaseModel], old: object, new: object, loc: Loc = ()) -> Iterator[Loc]:
    """Give each immutable field whose value differs."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return
    for name, field in model.model_fields.items():
        alias = alias_of(model, name)
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("x-immutable"):
            default = field.get_default(call_default_factory=True)
            before, after = (default if side.get(alias) is None else side[alias] for side in (old, new))
            if before != after:
                yield (*loc, alias)
        elif _is_model(inner := _bare(field.annotation)):
            yield from changed_immutables(inner, old.get(alias), new.get(alias), (*loc, alias))


def alias_of(model: type[BaseModel], name: str) -> str:
    """Give the wire name of a field."""
    return model.model_fields[name].alias or name


def field_at(model: type[BaseModel], loc: Loc) -> tuple[type[BaseModel] | None, str]:
    """Give the type that holds the last part of `loc`, and that part; None if no type of ours does."""
    inner: Any = model
    for part in loc[:-1]:
        inner = _field_type(inner, part) if _is_model(inner) else _element(inner)
    return (inner if _is_model(inner) else None), str(loc[-1]) if loc else ""


def _value(model: type[BaseModel], name: str, raw: Mapping[str, Any]) -> Any:
    value = raw.get(alias_of(model, name))
    if value is None:
        return model.model_fields[name].get_default(call_default_factory=True)
    return _adapter(model, name).validate_python(value, context=FIELDS_ONLY)


@lru_cache(maxsize=256)
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    annotation: Any = model.model_fields[name].annotation
    return TypeAdapter(annotation)


def _parts(annotation: Any, value: Any, loc: Loc) -> Iterator[tuple[type[BaseModel], Any, Loc]]:
    """Give each value in `value` that a model describes, with that model and its place."""
    inner = _bare(annotation)
    if _is_model(inner):
        yield inner, value, loc
    elif get_origin(inner) is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _parts(get_args(inner)[0], item, (*loc, index))
    elif get_origin(inner) is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(get_args(inner)[1], item, (*loc, key))


def _field_type(model: type[BaseModel], part: str | int) -> Any:
    for name, field in model.model_fields.items():
        if part in (field.alias, name):
            return _bare(field.annotation)
    return None


def _element(annotation: Any) -> Any:
    args = get_args(annotation)
    return _bare(args[1 if get_origin(annotation) is dict else 0]) if args else None


def _bare(annotation: Any) -> Any:
    """Strip `| None` and `Annotated`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        args = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _bare(args[0]) if len(args) == 1 else annotation
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
