"""The values that the arithmetic is about: how groups shall look, and what pods there are. No manifests, no clocks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Recovery = Literal["InferGroupRecreate", "RoleRecreate", "None"]


@dataclass(frozen=True, slots=True)
class RoleShape:
    """A role of a group at some revision."""

    name: str
    replicas: int  # instances in a group
    pods: int  # of each instance: its entry and its workers
    hash: str  # of all that its pods are made of


@dataclass(frozen=True, slots=True)
class Shape:
    """A group at some revision."""

    revision: str
    roles: tuple[RoleShape, ...]

    def role(self, name: str) -> RoleShape | None:
        """Give the role of this name."""
        return next((role for role in self.roles if role.name == name), None)


@dataclass(frozen=True, slots=True, order=True)
class InstanceKey:
    """Names an instance of a role."""

    group: int
    role: str
    index: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A pod as it was observed."""

    name: str
    uid: str
    instance: InstanceKey
    member: int  # 0: the entry
    revision: str
    hash: str
    ready: bool
    leaving: bool  # it has been told to stop
    ended: bool  # no container of it will start again
    failed_at: float | None  # since when it has failed; None while it has not
    created: float
    cost: int  # of deleting it, as its annotation says


@dataclass(frozen=True, slots=True)
class Limits:
    """What a rollout may do at once, in numbers."""

    unavailable: int = 1
    surge: int = 0
    partition: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a ModelInfer asks for, in numbers."""

    replicas: int
    update: Shape  # what the spec says
    current: Shape  # what protected groups and instances stay at
    limits: Limits = Limits()
    role_limits: Mapping[str, Limits] = field(default_factory=dict)
    by_role: bool = False
    recovery: Recovery = "RoleRecreate"
    grace_s: float = 0.0
    shapes: Mapping[str, Shape] = field(default_factory=dict)  # of every revision that is known
    recorded: Mapping[str, int] = field(
        default_factory=dict
    )  # instances of each role that all groups are known to have had

    def at(self, current: Shape) -> Wanted:
        """Give the same with another current shape."""
        return replace(self, current=current)

    def shape(self, revision: str) -> Shape:
        """Give the shape of a revision; that of the spec if nothing is known of it."""
        return self.shapes.get(revision, self.update)


@dataclass(frozen=True, slots=True)
class Place:
    """A pod that shall be."""

    instance: InstanceKey
    member: int
    revision: str  # whose template it is made of


@dataclass(frozen=True, slots=True)
class Removal:
    """A pod that shall not be, and why."""

    pod: Seen
    reason: Literal["Update", "ScaleDown", "Recovery"]
    message: str


def cost(pods: Sequence[Seen]) -> int:
    """Sum what it costs to delete these pods."""
    return sum(pod.cost for pod in pods)
