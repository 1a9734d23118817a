"""Resource quantities as Kubernetes writes them: `500m`, `8Gi`, `1e3`; and what a pod asks for. Pure."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FORM: Final = re.compile(r"([+-]?[0-9]+(?:\.[0-9]*)?|[+-]?\.[0-9]+)(?:[eE]([+-]?[0-9]+)|([a-zA-Z]*))")
_SUFFIXES: Final = {
    "": Fraction(1),
    **{unit: Fraction(1, 1000**power) for power, unit in enumerate(("m", "u", "n"), 1)},
    **{unit: Fraction(1000**power) for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{unit: Fraction(1024**power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}

Resources = dict[str, Fraction]


def parse(quantity: str | float) -> Fraction:
    """Read a quantity. Raises ValueError if it is none."""
    form = _FORM.fullmatch(str(quantity))
    if form is None or (form[3] or "") not in _SUFFIXES:
        raise ValueError(f"{quantity!r} is not a quantity, such as 500m, 2 or 8Gi")
    number = Fraction(form[1])
    return number * Fraction(10) ** int(form[2]) if form[2] else number * _SUFFIXES[form[3] or ""]


def written(resources: Mapping[str, Fraction]) -> dict[str, str]:
    """Write quantities: whole numbers as such, others in thousandths, rounded up."""
    return {
        name: str(amount.numerator) if amount.denominator == 1 else f"{-(-amount * 1000 // 1)}m"
        for name, amount in sorted(resources.items())
        if amount
    }


def of_pod(spec: Mapping[str, Any]) -> Resources:
    """Give what the scheduler reserves: containers and sidecars together, or the most that starting up takes, and overhead."""
    running: Resources = {}
    starting: Resources = {}
    for one in spec.get("initContainers", ()):
        if one.get("restartPolicy") == "Always":
            running = _plus(running, _requests(one))
            starting = _most(starting, running)
        else:
            starting = _most(starting, _plus(running, _requests(one)))
    for one in spec.get("containers", ()):
        running = _plus(running, _requests(one))
    return _plus(_most(running, starting), _read(spec.get("overhead", {})))


def total(parts: Iterable[tuple[Resources, int]]) -> Resources:
    """Sum resources, each so many times."""
    summed: Resources = {}
    for resources, times in parts:
        summed = _plus(summed, {name: amount * times for name, amount in resources.items()})
    return summed


def _requests(container: Mapping[str, Any]) -> Resources:
    """Give the container's requests; a resource that has only a limit requests that."""
    resources = container.get("resources", {})
    return _read(resources.get("limits", {})) | _read(resources.get("requests", {}))


def _read(amounts: Mapping[str, Any]) -> Resources:
    return {name: parse(amount) for name, amount in amounts.items()}


def _plus(one: Resources, other: Resources) -> Resources:
    return one | {name: one.get(name, Fraction(0)) + amount for name, amount in other.items()}


def _most(one: Resources, other: Resources) -> Resources:
    return one | {name: max(one.get(name, amount), amount) for name, amount in other.items()}
