"""What a user is told about a field: pydantic's findings, in words that say what to change."""

from __future__ import annotations

from datetime import date
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api.validation.shape import Loc, alias_of, field_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

_LONGEST_SHOWN: Final = 60
_TYPE: Final = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_parsing": "must be an integer",
    "int_from_float": "must be an integer",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
}
_BOUND: Final[dict[str, Callable[[Any, dict[str, Any]], str]]] = {
    "literal_error": lambda value, bound: f"must be {bound['expected']}, not {shown(value)}",
    "greater_than_equal": lambda value, bound: f"must be at least {bound['ge']}, not {shown(value)}",
    "less_than_equal": lambda value, bound: f"must be at most {bound['le']}, not {shown(value)}",
    "too_short": lambda _, bound: _least(
        bound, f"must hold at least {bound['min_length']}, not {bound['actual_length']}"
    ),
    "too_long": lambda _, bound: f"may hold at most {bound['max_length']}, not {bound['actual_length']}",
    "string_too_short": lambda _, bound: _least(bound, f"must have at least {bound['min_length']} characters"),
    "string_too_long": lambda value, bound: f"may have at most {bound['max_length']} characters, not {len(value)}",
    "string_pattern_mismatch": lambda value, bound: f"{shown(value)} is not of the form {bound['pattern']}",
    "string_unicode": lambda _, __: "is not valid Unicode",
}


def message(model: type[BaseModel], error: ErrorDetails) -> tuple[Loc, str]:
    """Give the field's location, and the words for what is wrong with it."""
    loc, value, kind = error["loc"], error["input"], error["type"]
    if loc[-1:] == ("[key]",) and kind != "extra_forbidden":
        return _printable(loc[:-1]), f"the key {error['msg']}"
    if kind == "missing":
        text = "is required" + _described(model, loc)
    elif kind == "extra_forbidden":
        text = _unknown(model, loc)
    elif kind in _TYPE:
        text = f"{_TYPE[kind]}, not {shown(value)}" + _quoting(kind, value)
    elif kind in _BOUND:
        text = _BOUND[kind](value, error.get("ctx", {}))
        if kind in {"string_pattern_mismatch", "too_short"}:
            text += _described(model, loc)
    else:
        text = f"{shown(value)} {error['msg']}" if isinstance(value, str | int | float) else error["msg"]
    return _printable(loc), text


def shown(value: object) -> str:
    """Give a value as a message shows it: short, and safe for whatever a manifest can hold."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case int() if value.bit_length() > 100:  # noqa: PLR2004 - longer ones are no help to read
            text = "a huge number"
        case int() | float():
            text = f"the number {value}"
        case str():
            text = repr(value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "...")
        case dict():
            text = "a mapping"
        case list():
            text = "a list"
        case _:
            text = f"a {type(value).__name__}"
    return text


def _least(bound: dict[str, Any], text: str) -> str:
    return "must not be empty" if bound["min_length"] == 1 else text


def _quoting(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, int | float | date):
        return ": put it in quotes"
    if kind in {"int_type", "bool_type"} and isinstance(value, str):
        return ": write it without quotes"
    return ""


def _described(model: type[BaseModel], loc: Loc) -> str:
    holder, part = field_at(model, loc)
    if holder is not None:
        for name, field in holder.model_fields.items():
            if alias_of(holder, name) == part and field.description:
                return f" ({field.description.rstrip('.')})"
    return ""


def _unknown(model: type[BaseModel], loc: Loc) -> str:
    holder, part = field_at(model, loc)
    known = [alias_of(holder, name) for name in holder.model_fields] if holder is not None else []
    similar = get_close_matches(part[:100], known, n=1)
    if similar:
        return f"unknown field; did you mean {similar[0]}?"
    return f"unknown field; known here are {', '.join(known)}"


def _printable(loc: Loc) -> Loc:
    return tuple(part if isinstance(part, int) else part[:100] for part in loc)
