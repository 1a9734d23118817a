"""Failures on purpose: which are in force, and whether this request is hit."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Mode = Literal["503", "500", "garbage", "hang", "reset", "die-mid-stream", "slow", "unhealthy", "refuse"]
MODES: tuple[str, ...] = get_args(Mode)
_STATES = ("slow", "unhealthy", "refuse")


class BadFault(Exception):
    """A failure that cannot be; the message says what to change."""


@dataclass(slots=True)
class Fault:
    """One failure in force. `count` is how many requests it still hits, None for all."""

    mode: str
    count: int | None = None
    probability: float = 1.0
    chunks: int = 1
    factor: float = 10.0
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def from_mapping(given: Any) -> Fault:
    """Give a failure as POST /sim/fail gives it."""
    if not isinstance(given, dict):
        raise BadFault('a failure is an object such as {"mode": "503"}')
    unknown = given.keys() - {"mode", "count", "probability", "chunks", "factor", "seconds"}
    if unknown:
        raise BadFault(f"unknown key {min(unknown)!r}: use mode, count, probability, chunks, factor, seconds")
    mode = str(given.get("mode"))
    if mode not in MODES:
        raise BadFault(f"mode {mode!r} is not one of {', '.join(MODES)}")
    try:
        fault = Fault(
            mode=mode,
            count=None if given.get("count") is None else int(given["count"]),
            probability=float(given.get("probability", 1.0)),
            chunks=int(given.get("chunks", 1)),
            factor=float(given.get("factor", 10.0)),
            seconds=None if given.get("seconds") is None else float(given["seconds"]),
        )
    except (TypeError, ValueError) as error:
        raise BadFault(f"count and chunks are whole numbers, the others numbers: {error}") from error
    if mode in _STATES and (fault.count is not None or fault.probability < 1):
        raise BadFault(f"{mode} is a state of the engine: it takes no count and no probability, only seconds")
    if not 0 <= fault.probability <= 1 or fault.factor <= 0 or fault.chunks < 0 or (fault.count or 0) < 0:
        raise BadFault("probability is 0 to 1, factor is positive, chunks and count are not negative")
    return fault


def from_flag(flag: str) -> Fault:
    """Give a failure as --fail gives it: MODE[:KEY=VALUE,...]."""
    mode, _, rest = flag.partition(":")
    return from_mapping({"mode": mode, **dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)})


class Faults:
    """The failures in force."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self.active: list[Fault] = []
        self._draw = draw

    def add(self, fault: Fault) -> None:
        """Put one in force."""
        self.active.append(fault)

    def clear(self) -> None:
        """End them all."""
        self.active.clear()

    def remove(self, fault: Fault) -> None:
        """End one."""
        if fault in self.active:
            self.active.remove(fault)

    def take(self, *modes: str) -> Fault | None:
        """Give the failure of these modes that hits this request, if any; counts it."""
        for fault in self.active:
            if fault.mode not in modes or (fault.probability < 1 and self._draw() >= fault.probability):
                continue
            if fault.count is not None:
                fault.count -= 1
                if fault.count <= 0:
                    self.active.remove(fault)
            return fault
        return None

    def in_force(self, mode: str) -> Fault | None:
        """Give a failure of this mode, without counting it."""
        return next((fault for fault in self.active if fault.mode == mode), None)
