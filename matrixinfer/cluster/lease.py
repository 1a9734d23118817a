"""Who may write: the arithmetic of leader election by a Lease. Pure: time is an argument.

No clocks are compared. A leader counts from the moment before it *sent* the renewal that was accepted; a follower counts from
the moment at which it first *saw* the record as it is now, which is later. So as long as both clocks run at the same speed
within `Terms.drift`, the leader has stopped before the follower may start, whatever either clock shows, however late answers
come, and whether or not the leader was frozen meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from matrixinfer.api import kinds
from matrixinfer.cluster.protocol import Unavailable

if TYPE_CHECKING:
    from matrixinfer.cluster.protocol import Manifest


class NotLeader(Unavailable):
    """This process may not write now: the work is the leader's, and comes back should it become the leader."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a lease holds. Writes end `margin_s` before another may start: time for what has been sent to arrive.

    A crashed leader is replaced after `duration_s` plus at most `every_s`; a slow API server costs the leadership after
    `duration_s` - `margin_s`. The defaults are those of Kubernetes' own controllers, with fewer renewals.
    """

    duration_s: int = 15
    every_s: float = 3.0
    margin_s: float = 2.0
    drift: float = 0.01

    def __post_init__(self) -> None:
        if self.every_s <= 0 or self.margin_s < 0 or not 0 <= self.drift < 1:
            raise ValueError(f"{self}: periods are positive, drift is below 1")
        if self.writes_s <= self.every_s:
            raise ValueError(
                f"a lease of {self.duration_s} s less a margin of {self.margin_s:g} s is over before it is renewed after "
                f"{self.every_s:g} s: make the lease longer or renew it sooner"
            )

    @property
    def writes_s(self) -> float:
        """For how long a leader may write after it sent a renewal."""
        return (self.duration_s - self.margin_s) * (1 - self.drift)


@dataclass(slots=True)
class Tenure:
    """For how long this process may write. The elector extends it, writers ask `remaining` right before each write."""

    until: float = float("-inf")

    def remaining(self, now: float) -> float:
        """Return the seconds left; none when it is not above zero."""
        return self.until - now


@dataclass(frozen=True, slots=True)
class Write:
    """Write this lease, with the version that it was read with as precondition, or create it if it has none."""

    lease: Manifest


@dataclass(frozen=True, slots=True)
class Look:
    """Read the lease after a while."""

    after_s: float


@dataclass(slots=True)
class Candidate:
    """One process's part in the election. `now` counts seconds by a clock that goes on while the process does not."""

    name: str
    namespace: str
    identity: str
    terms: Terms = field(default_factory=Terms)
    tenure: Tenure = field(default_factory=Tenure)
    _lease: Manifest | None = None  # as it was when it was last there
    _gone: bool = False
    _seen_at: float = float("-inf")

    def leads(self, now: float) -> bool:
        """Whether this process may write."""
        return self.tenure.remaining(now) > 0

    @property
    def holder(self) -> str:
        """Who held the lease when it was last seen."""
        return str(_spec(self._lease).get("holderIdentity") or "")

    def saw(self, lease: Manifest | None, now: float) -> None:
        """Take note of the lease as it stands; `now` is after it was read.

        A lease that somebody deletes does not end the holder's right to write, so those who knew it wait for its end.
        """
        self._gone = lease is None
        if lease is not None:
            if self._lease is None or _record(lease) != _record(self._lease):
                self._seen_at = now
            self._lease = lease

    def wrote(self, lease: Manifest, sent_at: float) -> None:
        """Take note that our write was accepted, that was sent at this time."""
        self._lease, self._seen_at, self._gone = lease, sent_at, False
        held = _spec(lease).get("holderIdentity") == self.identity
        self.tenure.until = sent_at + self.terms.writes_s if held else float("-inf")

    def next(self, now: float, wall: datetime) -> Write | Look:
        """Say what to do now. `wall` is only written down, for people to read."""
        if self.holder and self.holder != self.identity:
            left_s = self._seen_at + self._duration_s() - now
            if left_s > 0:
                return Look(min(self.terms.every_s, left_s))
        return Write(self._new(wall) if self._lease is None or self._gone else self._taken(self._lease, wall))

    def release(self) -> Manifest | None:
        """Return the lease to write so that another may start at once; nothing may be written from now on."""
        self.tenure.until = float("-inf")
        if self._lease is None or self._gone or self.holder != self.identity:
            return None
        return self._lease | {"spec": _spec(self._lease) | {"holderIdentity": "", "leaseDurationSeconds": 1}}

    def _duration_s(self) -> float:
        """How long whoever holds the lease may count on it: what is written there, but no less than our own terms."""
        written = _spec(self._lease).get("leaseDurationSeconds")
        return max(written if isinstance(written, int) else 0, self.terms.duration_s) * (1 + self.terms.drift)

    def _new(self, wall: datetime) -> Manifest:
        return {
            "apiVersion": kinds.LEASE.api_version,
            "kind": kinds.LEASE.kind,
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": self._term(wall) | {"acquireTime": _micro(wall), "leaseTransitions": 0},
        }

    def _taken(self, lease: Manifest, wall: datetime) -> Manifest:
        spec = _spec(lease)
        renewed = spec | self._term(wall)
        if spec.get("holderIdentity") != self.identity:
            transitions = spec.get("leaseTransitions")
            renewed["leaseTransitions"] = (transitions if isinstance(transitions, int) else 0) + 1
            renewed["acquireTime"] = _micro(wall)
        return lease | {"spec": renewed}

    def _term(self, wall: datetime) -> dict[str, Any]:
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self.terms.duration_s,
            "renewTime": _micro(wall),
        }


def _spec(lease: Manifest | None) -> dict[str, Any]:
    return (lease or {}).get("spec") or {}


def _record(lease: Manifest) -> tuple[Any, ...]:
    """Return what changes when the lease is written, also by one that creates it anew."""
    meta = lease["metadata"]
    return meta.get("uid"), meta.get("resourceVersion")


def _micro(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
