"""A cluster in memory, with the semantics of an API server: for the local stack and for tests.

Every write happens in one step on the event loop, so there are no locks; callers get and give copies. What a write does is
`objects.py`'s business, what watchers see `history.py`'s. Kinds need no registration, and namespaces need no object; objects
of the kinds in `matrixinfer.api.kinds` are validated.
"""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from matrixinfer.api import kinds
from matrixinfer.cluster import garbage
from matrixinfer.cluster import manifest as manifests
from matrixinfer.cluster.history import Change, History
from matrixinfer.cluster.objects import Objects, check_preconditions, plural
from matrixinfer.cluster.protocol import Conflict, EventType, Expired, Invalid, NotFound, ObjectList, WatchEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from matrixinfer.cluster.objects import Stored
    from matrixinfer.cluster.protocol import Kind, Manifest


def _now() -> datetime:
    return datetime.now(UTC)


class MemoryCluster:
    """Implements `protocol.Cluster`.

    `manager` is whom fields belong to that were written by anything but apply. `kept` is how many changes of each kind a
    watcher may be behind. Resource versions begin at the time in microseconds, so that a watcher which resumes from an
    earlier life of the cluster is told Expired.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = _now,
        chance: random.Random | None = None,
        manager: str = "matrixinfer",
        kept: int = 4096,
        bookmark_every_s: float = 30.0,
    ) -> None:
        self._objects = Objects(
            clock=clock,
            chance=chance or random.Random(),  # noqa: S311 - names and uids, not secrets
            manager=manager,
            written=self._record,
        )
        self._kept = kept
        self._first_revision = self._objects.revision
        self._bookmark_every_s = bookmark_every_s
        self._histories: dict[tuple[str, str], History] = {}

    def _history(self, kind: Kind) -> History:
        name = kind.group, kind.plural
        if name not in self._histories:
            self._histories[name] = History(kept=self._kept, start=self._first_revision)
        return self._histories[name]

    def _record(self, event: EventType, stored: Stored) -> None:
        change = Change(self._objects.revision, event, stored.place[0], stored.blob)
        self._history(stored.kind).append(change)

    def _answer(self, stored: Stored) -> Manifest:
        self._objects.collect()
        return manifests.load(stored.blob)

    # Reading

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest:
        """Return the object. Raises NotFound."""
        return manifests.load(self._objects.find(kind, namespace, name).blob)

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None, name: str = ""
    ) -> ObjectList:
        """Return the objects of all namespaces (None) or one, whose labels include `labels`; `name`: of that name only."""
        wanted = (labels or {}).items()
        items = tuple(
            manifests.load(stored.blob)
            for stored in self._objects.of(kind)
            if namespace in (None, stored.place[0])
            and name in ("", stored.place[1])
            and wanted <= stored.meta.get("labels", {}).items()
        )
        return ObjectList(items, str(self._objects.revision))

    async def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True, name: str = ""
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change after resource version `since`; `name`: of that name only. Raises Expired if that is too old."""
        loop = asyncio.get_running_loop()
        history = self._history(kind)
        position = history.position(self._parse_revision(since))
        bookmark_at = loop.time() + self._bookmark_every_s
        while True:
            for after, change in history.read(position):
                position = after
                if namespace in (None, change.namespace):
                    event = WatchEvent(change.type, manifests.load(change.blob))
                    if name in ("", event.object["metadata"]["name"]):
                        yield event
            if loop.time() >= bookmark_at:
                bookmark_at = loop.time() + self._bookmark_every_s
                if bookmarks:
                    yield _bookmark(kind, self._objects.revision)
                    continue
            await history.grown(position, within_s=bookmark_at - loop.time())

    def _parse_revision(self, since: str) -> int:
        try:
            revision = int(since)
        except ValueError:
            raise Invalid(f"resourceVersion {since!r} is not one of this cluster: take it from a list") from None
        if revision > self._objects.revision:
            raise Expired(f"resource version {since} is not of this cluster's history: list again")
        return revision

    # Writing

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create; `metadata.generateName` is honoured. Raises AlreadyExists, Invalid."""
        new = manifests.incoming(kind, manifest)
        if new["metadata"].pop("resourceVersion", ""):
            raise Invalid("metadata.resourceVersion: Forbidden: must not be set on an object to be created")
        _drop_status(kind, new)
        return self._answer(self._objects.create(kind, new, self._objects.writer("Update")))

    async def update(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace all but status; a `resourceVersion` in it must match. Raises NotFound, Conflict, Invalid."""
        new = manifests.incoming(kind, manifest)
        old = self._objects.find(kind, *manifests.place_of(new))
        check_preconditions(old, uid=new["metadata"].get("uid"), version=new["metadata"].get("resourceVersion"))
        if kind.status:
            manifests.copy_member(old.manifest, new, "status")
        return self._answer(self._objects.replace(old, new, self._objects.writer("Update")))

    async def update_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace status alone. Raises NotFound, Conflict."""
        given = manifests.incoming(kind, manifest)
        _require_status(kind)
        old = self._objects.find(kind, *manifests.place_of(given))
        check_preconditions(old, uid=given["metadata"].get("uid"), version=given["metadata"].get("resourceVersion"))
        new = dict(old.manifest)
        manifests.copy_member(given, new, "status")
        return self._answer(self._objects.replace(old, new, self._objects.writer("Update", "status")))

    async def apply(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply: merge as `manager`, dropping fields it owned and no longer names. Raises Conflict."""
        applied = manifests.incoming(kind, manifest)
        _drop_status(kind, applied)
        writer = self._objects.writer("Apply", manager=manager)
        old = self._objects.look(kind, *manifests.place_of(applied))
        if old is None:
            version = applied["metadata"].pop("resourceVersion", "")
            if version or applied["metadata"].get("uid"):
                raise Conflict("metadata: the object that this apply is meant for (uid or resourceVersion) is gone")
            return self._answer(self._objects.create(kind, applied, writer))
        return self._answer(self._objects.merge(old, applied, writer, force=force))

    async def apply_status(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply of the status subresource. Raises NotFound, Conflict."""
        given = manifests.incoming(kind, manifest)
        _require_status(kind)
        old = self._objects.find(kind, *manifests.place_of(given))
        meta = {name: value for name, value in given["metadata"].items() if name in ("uid", "resourceVersion")}
        applied = {"metadata": meta, "status": given.get("status", {})}
        writer = self._objects.writer("Apply", "status", manager=manager)
        return self._answer(self._objects.merge(old, applied, writer, force=force))

    async def scale(self, kind: Kind, name: str, namespace: str, replicas: int) -> Manifest:
        """Set replicas through the scale subresource; returns the Scale. Raises NotFound, Invalid."""
        old = self._objects.find(kind, namespace, name)
        if kind.scale is None:
            raise NotFound(f"{plural(kind)} have no scale subresource")
        if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
            raise Invalid(f"spec.replicas: Invalid value: {replicas!r}: must be a whole number, 0 or more")
        spec, status, selector = kind.scale
        new = manifests.load(old.blob)
        manifests.set_value_at(new, spec, replicas)
        scaled = self._objects.replace(old, new, self._objects.writer("Update", "scale"))
        kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
        return {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {member: scaled.meta[member] for member in kept if member in scaled.meta},
            "spec": {"replicas": replicas},
            "status": {
                "replicas": manifests.value_at(scaled.manifest, status, 0),
                "selector": manifests.value_at(scaled.manifest, selector, ""),
            },
        }

    async def bind(self, pod: str, namespace: str, node: str) -> None:
        """Give a pod its node, as a scheduler does. Raises NotFound, Conflict if it has one or is being deleted."""
        old = self._objects.find(kinds.POD, namespace, pod)
        new = manifests.load(old.blob)
        if "deletionTimestamp" in old.meta:
            raise Conflict(f"pod {pod} is being deleted and gets no node")
        if bound := new["spec"].get("nodeName"):
            raise Conflict(f"pod {pod} is on node {bound} already")
        new["spec"]["nodeName"] = node
        self._objects.replace(old, new, self._objects.writer("Update", "binding"))
        self._objects.collect()

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
        """Delete, or mark for deletion while finalizers stand or a node still runs the Pod. Raises NotFound, Conflict."""
        if propagation not in garbage.PROPAGATIONS:
            raise Invalid(
                f"propagationPolicy: Unsupported value: {propagation!r}: write Background, Foreground or Orphan"
            )
        if grace_period_s is not None and grace_period_s < 0:
            raise Invalid(f"gracePeriodSeconds: Invalid value: {grace_period_s}: must be 0 or more")
        stored = self._objects.find(kind, namespace, name)
        check_preconditions(stored, uid=uid, version=resource_version)
        self._objects.delete(stored, propagation, grace_period_s)
        self._objects.collect()


def _bookmark(kind: Kind, revision: int) -> WatchEvent:
    meta = {"resourceVersion": str(revision)}
    return WatchEvent(EventType.BOOKMARK, {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta})


def _drop_status(kind: Kind, manifest: Manifest) -> None:
    if kind.status:
        manifest.pop("status", None)


def _require_status(kind: Kind) -> None:
    if not kind.status:
        raise NotFound(f"{plural(kind)} have no status subresource")
