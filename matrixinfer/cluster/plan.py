"""What a reconcile wants done: values that the loop performs in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matrixinfer.cluster.protocol import Kind, Manifest


@dataclass(frozen=True, slots=True)
class Apply:
    """Make the object have these fields, as the loop's manager or another; fields it named before and not now go."""

    kind: Kind
    manifest: Manifest
    force: bool = True  # a controller is the authority on what it applies
    manager: str = ""  # "": the loop's; another one owns what it names apart from what the loop's has applied
    new: bool = False  # nothing of this name stands: to create it costs the server half; Conflict if something does
    own: bool = False  # it is this process's own, and written whether it leads or not: a Lease


@dataclass(frozen=True, slots=True)
class ApplyStatus:
    """Make the object's status have these fields; the status of others stands beside."""

    kind: Kind
    manifest: Manifest
    force: bool = True
    patient: bool = False  # it is soon another: it may wait a moment, and be left out for the next


@dataclass(frozen=True, slots=True)
class SetStatus:
    """Replace the whole status; Conflict if the manifest's resourceVersion is not the latest."""

    kind: Kind
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the object, if it is still the one with this uid; already gone is well."""

    kind: Kind
    name: str
    namespace: str = ""
    uid: str | None = None
    propagation: Literal["Background", "Foreground", "Orphan"] = "Background"
    grace_period_s: int | None = None


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the users of an object that something happened; the same thing again is counted, not repeated."""

    about: Manifest
    reason: str  # CamelCase, for programs
    message: str
    type: Literal["Normal", "Warning"] = "Normal"
    action: str = "Reconcile"


@dataclass(frozen=True, slots=True)
class Publish:
    """Hand a value to this process, such as what the gateway is to serve."""

    value: Any


@dataclass(frozen=True, slots=True)
class Together:
    """Do these at once, in any order; what follows waits for all of them, and is not done if one of them fails."""

    actions: tuple[Apply | ApplyStatus | Delete, ...]


Action = Apply | ApplyStatus | SetStatus | Delete | Emit | Publish | Together


@dataclass(frozen=True, slots=True)
class Plan:
    """Actions in order, and when to look again though nothing has changed."""

    actions: tuple[Action, ...] = ()
    requeue_after_s: float | None = None
