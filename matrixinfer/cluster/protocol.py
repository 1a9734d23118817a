"""The Cluster: what controllers, the local node and the picker's feed need of an API server.

Objects are manifests: plain JSON values as Kubernetes writes them (`apiVersion`, `kind`, `metadata`, ...). Typed views
are made at the reader's edge with `matrixinfer.api`. Semantics are those of the Kubernetes API conventions; the suite
in `tests/cluster/conformance.py` says them in examples and runs against every implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from matrixinfer.api.kinds import Kind as Kind  # noqa: PLC0414, TC001 - readers of this module take Kind from it

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """Names one object of a kind. `namespace` is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class EventType(Enum):
    """Types of watch events, as on the wire."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change. A bookmark's object carries only `metadata.resourceVersion`."""

    type: EventType
    object: Manifest


@dataclass(frozen=True, slots=True)
class ObjectList:
    """Objects as of `resource_version`, from which a watch may start."""

    items: tuple[Manifest, ...]
    resource_version: str


class ClusterError(Exception):
    """Any refusal of the cluster; `reason` is the API's own word (`metav1.StatusReason`)."""

    status = 500
    reason = "InternalError"


class NotFound(ClusterError):
    """No such object or kind."""

    status = 404
    reason = "NotFound"


class AlreadyExists(ClusterError):
    """Create of a name that is taken."""

    status = 409
    reason = "AlreadyExists"


class Conflict(ClusterError):
    """The object has changed since it was read, or another manager owns a field: read again."""

    status = 409
    reason = "Conflict"


class Invalid(ClusterError):
    """The object breaks its schema or a rule; the message lists every problem with its field path."""

    status = 422
    reason = "Invalid"


class Forbidden(ClusterError):
    """Our account may not do this, or the namespace is going: the message says which right is missing."""

    status = 403
    reason = "Forbidden"


class Expired(ClusterError):
    """The resource version is too old to resume from: list again."""

    status = 410
    reason = "Expired"


class Unavailable(ClusterError):
    """The cluster cannot be reached now: try again later."""

    status = 503
    reason = "ServiceUnavailable"


class Cluster(Protocol):
    """An API server, or something that behaves like one."""

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest:
        """Return the object. Raises NotFound."""
        ...

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None, name: str = ""
    ) -> ObjectList:
        """Return the objects of all namespaces (None) or one, whose labels include `labels`; `name`: of that name only."""
        ...

    def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True, name: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change after resource version `since`; `name`: of that name only. Raises Expired if that is too old."""
        ...

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create; `metadata.generateName` is honoured. Raises AlreadyExists, Invalid."""
        ...

    async def update(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace all but status; a `resourceVersion` in it must match. Raises NotFound, Conflict, Invalid."""
        ...

    async def update_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace status alone. Raises NotFound, Conflict."""
        ...

    async def apply(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply: merge as `manager`, dropping fields it owned and no longer names. Raises Conflict."""
        ...

    async def apply_status(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply of the status subresource."""
        ...

    async def scale(self, kind: Kind, name: str, namespace: str, replicas: int) -> Manifest:
        """Set replicas through the scale subresource; returns the Scale. Raises NotFound, Invalid."""
        ...

    async def bind(self, pod: str, namespace: str, node: str) -> None:
        """Give a pod its node, as a scheduler does. Raises NotFound, Conflict if it has one or is being deleted."""
        ...

    async def delete(  # noqa: PLR0913 - the preconditions of the API
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
        grace_period_s: int | None = None,
    ) -> None:
        """Delete, or mark for deletion while finalizers stand. Raises NotFound, Conflict."""
        ...
