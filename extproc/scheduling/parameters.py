"""Parameters of plugins: plain values become a frozen `Params`, and every mistake is told with its path.

A field's type says what is wanted: a bool, a number, a string, one word of a `Literal`, `dict[str, str]`, another
dataclass, or `tuple[X, ...]` for a list of any of them. A field without a default is required; its range and its name in
YAML, where that is not the field's own in camel case, are given by `framework.parameter`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Collection

Report = Callable[[str, str], None]  # path, what is wrong there

_SHOWN: Final = 60


def read(kind: type[Any], value: object, path: str, report: Report, *, owner: str) -> Any:
    """Make a `kind`, which is a dataclass, of a mapping; None if that cannot be. `owner` is whose parameters they are."""
    if not isinstance(value, Mapping):
        report(path, f"must be a mapping, not {named(value)}")
        return None
    hints = get_type_hints(kind)
    known = {wire_name(one): one for one in fields(kind)}
    values: dict[str, object] = {}
    sound = True

    def fault(where: str, what: str) -> None:
        nonlocal sound
        sound = False
        report(where, what)

    for key, given in value.items():
        one = known.get(str(key))
        if one is None:
            fault(f"{path}.{key}", _stranger(kind, str(key), known, owner))
        else:
            values[one.name] = _value(hints[one.name], given, f"{path}.{key}", fault, one.metadata)
    for key, one in known.items():
        if one.name not in values and one.default is MISSING and one.default_factory is MISSING:
            fault(f"{path}.{key}", "is required")
    if not sound:
        return None
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        fault(path, str(error))
        return None


def _stranger(kind: type[Any], key: str, known: Collection[str], owner: str) -> str:
    """Say what is wrong with a parameter that is not there: `LACKS` of the Params may name it, with the reason."""
    lacks: Mapping[str, str] = getattr(kind, "LACKS", {})
    if key in lacks:
        return f"is not supported: {lacks[key]}"
    return f"unknown parameter{near(key, known) if known else f'; {owner} takes none'}"


def unreadable(kind: type[Any]) -> str:
    """Name the first field of a dataclass whose type `read` does not know, and why; "" if it knows all."""
    try:
        hints = get_type_hints(kind)
    except (NameError, TypeError, AttributeError) as error:
        return f"{kind.__name__}: its types cannot be told: {error}"
    for one in fields(kind):
        hint = hints[one.name]
        if get_origin(hint) is tuple and get_args(hint)[1:] == (...,):
            hint = get_args(hint)[0]
        if is_dataclass(hint) and isinstance(hint, type):
            if within := unreadable(hint):
                return f"{one.name}.{within}"
        elif hint not in (bool, int, float, str, dict[str, str]) and get_origin(hint) is not Literal:
            return f"{one.name}: {hint} is none of bool, int, float, str, Literal, dict[str, str], a dataclass, tuple[X, ...]"
    return ""


def wire_name(one: Field[Any]) -> str:
    """Return what YAML calls a field."""
    if name := one.metadata.get("name"):
        return str(name)
    first, *rest = one.name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def fault(value: object, kind: object, minimum: float | None, maximum: float | None) -> str:
    """Say what `value` would have to be, "" if it is that."""
    if kind is bool:
        return "" if isinstance(value, bool) else "true or false"
    if kind is str:
        return "" if isinstance(value, str) else "a string"
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return "" if isinstance(value, str) and value in words else " or ".join(word or '""' for word in words)
    word = "a whole number" if kind is int else "a number"
    bounds = [f"at least {minimum:g}"] if minimum is not None else []
    bounds += [f"at most {maximum:g}"] if maximum is not None else []
    wanted = " ".join([word, *([" and ".join(bounds)] if bounds else [])])
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return wanted
    if not math.isfinite(value) or (minimum is not None and value < minimum):
        return wanted
    return wanted if maximum is not None and value > maximum else ""


def named(value: object) -> str:
    """Show a value that a user wrote, shortened."""
    shown = "nothing" if value is None else repr(value)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def near(name: object, known: Collection[str]) -> str:
    """Name what was probably meant, or all that there is."""
    found = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if found:
        return f"; did you mean {' or '.join(found)}? We have: {', '.join(known)}"
    return f"; we have: {', '.join(known)}" if known else ""


def _value(kind: Any, given: object, path: str, report: Report, limits: Mapping[str, Any]) -> object:
    if is_dataclass(kind) and isinstance(kind, type):
        return read(kind, given, path, report, owner=path)
    if get_origin(kind) is tuple:
        return _items(get_args(kind)[0], given, path, report, limits)
    if get_origin(kind) is dict:
        return _pairs(given, path, report)
    wanted = fault(given, kind, limits.get("minimum"), limits.get("maximum"))
    if wanted:
        report(path, f"must be {wanted}, not {named(given)}")
    return given


def _items(kind: Any, given: object, path: str, report: Report, limits: Mapping[str, Any]) -> tuple[object, ...]:
    if not isinstance(given, list):
        report(path, f"must be a list, not {named(given)}")
        return ()
    return tuple(_value(kind, one, f"{path}[{at}]", report, limits) for at, one in enumerate(given))


def _pairs(given: object, path: str, report: Report) -> dict[str, str]:
    if not isinstance(given, Mapping):
        report(path, f"must be a mapping, not {named(given)}")
        return {}
    pairs: dict[str, str] = {}
    for key, one in given.items():
        if isinstance(key, str) and isinstance(one, str):
            pairs[key] = one
        else:
            report(f"{path}.{key}", f"must be a string, not {named(key if isinstance(one, str) else one)}; quote it")
    return pairs
