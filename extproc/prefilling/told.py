"""What became of prefill legs: of one request, for those who ask why, and of all, for the metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from extproc.scheduling.scheduler import Result

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds of a leg


class Try(NamedTuple):
    """One prefill leg, and how it ended: `ok`, or why not."""

    endpoint: str
    result: str
    seconds: float


@dataclass(slots=True)
class Told:
    """What became of the prefill leg of one request, for those who ask why."""

    leg: str  # gateway, proxy, none
    reason: str  # why there is a leg, or why not
    detail: str = ""
    connector: str = ""
    endpoint: str = ""
    group: str | None = None
    tries: list[Try] = field(default_factory=list)
    chosen: Result | None = None  # how the prefill endpoints fared

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        said: dict[str, Any] = {"leg": self.leg, "reason": self.reason}
        more = {"detail": self.detail, "connector": self.connector, "endpoint": self.endpoint}
        said |= {key: value for key, value in more.items() if value}
        if self.group is not None:
            said["group"] = self.group
        if self.tries:
            said["tries"] = [{**one._asdict(), "seconds": round(one.seconds, 4)} for one in self.tries]
        if self.chosen is not None and self.chosen.trace is not None:
            said["choice"] = self.chosen.trace.document()
        return said


@dataclass(slots=True)
class Counts:
    """What has become of requests to ModelServers with prefill and decode pods."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # by leg and reason
    legs: Counter[str] = field(default_factory=Counter)  # by result
    cells: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))  # legs by duration
    seconds: float = 0.0

    def leg(self, result: str, seconds: float) -> None:
        """Count a leg."""
        self.legs[result] += 1
        self.cells[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
