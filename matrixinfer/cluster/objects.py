"""The objects of a memory cluster and what one write makes of them. No waiting, no watchers: steps on values.

What is stored is never changed, only replaced. Field ownership is `ownership.py`'s business, deletion of dependents
`garbage.py`'s.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import orjson

from matrixinfer.api import kinds
from matrixinfer.cluster import garbage, ownership
from matrixinfer.cluster import manifest as manifests
from matrixinfer.cluster.protocol import AlreadyExists, Conflict, EventType, Invalid, Key, NotFound

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from matrixinfer.cluster.protocol import Kind, Manifest

_SUFFIX_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no digits that look like letters: as Kubernetes
_SYSTEM_METADATA: Final = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
_DEFAULT_POD_GRACE_S: Final = 30


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it stands. The manifest is shared and must not be changed."""

    kind: Kind
    manifest: Manifest
    blob: bytes
    claims: ownership.Claims

    @property
    def meta(self) -> Manifest:
        """The object's metadata."""
        meta: Manifest = self.manifest["metadata"]
        return meta

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.meta["uid"])

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.meta.get("namespace", ""), self.meta["name"]


class Objects:
    """Every object, by kind and place; `written` is told of each change, in order."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        chance: random.Random,
        manager: str,
        written: Callable[[EventType, Stored], None],
    ) -> None:
        self.revision = int(clock().timestamp() * 1_000_000)
        self._clock = clock
        self._chance = chance
        self._manager = manager
        self._written = written
        self._shelves: defaultdict[tuple[str, str], dict[tuple[str, str], Stored]] = defaultdict(dict)
        self._family = garbage.Family[Stored]()

    def of(self, kind: Kind) -> list[Stored]:
        """Return all objects of the kind, by namespace and name."""
        return [stored for _, stored in sorted(self._shelf(kind).items(), key=lambda entry: entry[0])]

    def find(self, kind: Kind, namespace: str, name: str) -> Stored:
        """Return the object. Raises NotFound."""
        stored = self.look(kind, namespace, name)
        if stored is None:
            raise NotFound(f'{plural(kind)} "{name}" not found' + (f" in namespace {namespace}" if namespace else ""))
        return stored

    def look(self, kind: Kind, namespace: str, name: str) -> Stored | None:
        """Return the object if it stands."""
        return self._shelf(kind).get((namespace, name))

    def _shelf(self, kind: Kind) -> dict[tuple[str, str], Stored]:
        return self._shelves[kind.group, kind.plural]

    def create(self, kind: Kind, new: Manifest, writer: ownership.Writer) -> Stored:
        """Store a new object. Raises AlreadyExists, Invalid."""
        meta = new["metadata"]
        shelf = self._shelf(kind)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = self._generate_name(shelf, meta.get("namespace", ""), meta["generateName"])
        if not meta.get("name"):
            raise Invalid("metadata.name: Required value: set name or generateName")
        if manifests.place_of(new) in shelf:
            raise AlreadyExists(f'{plural(kind)} "{meta["name"]}" already exists')
        for name in (*_SYSTEM_METADATA, "managedFields", "selfLink"):
            meta.pop(name, None)
        meta["uid"] = str(uuid.UUID(int=self._chance.getrandbits(128), version=4))
        meta["creationTimestamp"] = writer.time
        meta["generation"] = 1
        manifests.check(kind, new)
        fields = ownership.flatten(new, _whole_items(kind))
        if kind == kinds.POD:
            new["status"] = {"phase": "Pending"}
        if writer.operation == "Apply":
            claims = ownership.after_apply((), writer, applied=fields, kept=fields, forced=())
        else:
            claims = ownership.after_update((), {}, fields, writer)
        return self._store(kind, new, claims, None)

    def _generate_name(self, shelf: Mapping[tuple[str, str], Stored], namespace: str, prefix: str) -> str:
        for _ in range(100):
            name = prefix + "".join(self._chance.choices(_SUFFIX_LETTERS, k=5))
            if (namespace, name) not in shelf:
                return name
        raise AlreadyExists(f"no free name found for generateName {prefix!r}")

    def replace(self, old: Stored, new: Manifest, writer: ownership.Writer) -> Stored:
        """Put `new` in the place of `old`; what differs is the writer's from now on. Raises Invalid."""
        whole = _whole_items(old.kind)
        before, after = ownership.flatten(old.manifest, whole), ownership.flatten(new, whole)
        claims = ownership.after_update(old.claims, before, after, writer)
        return self._store_changed(old, new, claims)

    def merge(self, old: Stored, applied: Manifest, writer: ownership.Writer, *, force: bool) -> Stored:
        """Lay `applied` over `old` as server-side apply does. Raises Conflict, Invalid."""
        meta = applied["metadata"]
        check_preconditions(old, uid=meta.get("uid"), version=meta.get("resourceVersion"))
        whole = _whole_items(old.kind)
        live, fields = ownership.flatten(old.manifest, whole), ownership.flatten(applied, whole)
        contested = ownership.conflicts(old.claims, live, fields, writer)
        if contested and not force:
            raise ownership.conflict(contested)
        new = manifests.load(orjson.dumps(ownership.merge(old.manifest, applied, whole)))
        ownership.prune(new, old.claims, fields, writer)
        kept = ownership.flatten(new, whole)
        claims = ownership.after_apply(old.claims, writer, applied=fields, kept=kept, forced=contested)
        return self._store_changed(old, new, claims)

    def _store_changed(self, old: Stored, new: Manifest, claims: ownership.Claims) -> Stored:
        """Store what has changed, with the metadata that callers do not set; a write that changes nothing is none."""
        meta = {name: value for name, value in new["metadata"].items() if name not in _SYSTEM_METADATA}
        meta |= {name: old.meta[name] for name in _SYSTEM_METADATA if name in old.meta}
        meta["resourceVersion"] = old.meta["resourceVersion"]
        meta["managedFields"] = old.meta["managedFields"]
        if "generateName" in old.meta:
            meta["generateName"] = old.meta["generateName"]
        new = new | {"metadata": meta}
        if "deletionTimestamp" in meta and set(meta.get("finalizers", ())) - set(old.meta.get("finalizers", ())):
            raise Invalid("metadata.finalizers: Forbidden: none can be added while the object is being deleted")
        if ownership.canonical(new) == ownership.canonical(old.manifest) and claims == old.claims:
            return old
        manifests.check(old.kind, new, old.manifest)
        before, after = manifests.desired(old.kind, old.manifest), manifests.desired(old.kind, new)
        if ownership.canonical(before) != ownership.canonical(after):
            meta["generation"] += 1
        return self._store(old.kind, new, claims, old)

    def _store(self, kind: Kind, new: Manifest, claims: ownership.Claims, old: Stored | None) -> Stored:
        self.revision += 1
        meta = new["metadata"]
        meta["resourceVersion"] = str(self.revision)
        meta["managedFields"] = ownership.managed_fields(claims, kind.api_version)
        stored = Stored(kind, new, orjson.dumps(new), claims)
        if _may_go(meta):
            return self._remove(stored)
        self._shelf(kind)[stored.place] = stored
        self._family.put(stored)
        self._written(EventType.MODIFIED if old else EventType.ADDED, stored)
        return stored

    def _remove(self, stored: Stored) -> Stored:
        self._shelf(stored.kind).pop(stored.place, None)
        self._family.drop(stored)
        self._written(EventType.DELETED, stored)
        return stored

    def delete(self, stored: Stored, propagation: str, grace_s: int | None) -> None:
        """Mark for deletion, and remove if nothing holds the object back."""
        grace = _grace_s(stored, grace_s)
        meta = dict(stored.meta)
        before = meta.get("deletionGracePeriodSeconds")
        finalizers = [name for name in meta.pop("finalizers", ()) if name not in garbage.FINALIZERS.values()]
        if propagation in garbage.FINALIZERS and self._family.dependents(stored):
            finalizers.append(garbage.FINALIZERS[propagation])
        if finalizers:
            meta["finalizers"] = finalizers
        first = "deletionTimestamp" not in meta
        if first:
            meta["generation"] += 1
        if first or (before is not None and grace < before):
            meta["deletionTimestamp"] = _rfc3339(self._clock() + timedelta(seconds=grace))
            meta["deletionGracePeriodSeconds"] = grace
        if meta == stored.meta:
            return
        new = stored.manifest | {"metadata": meta}
        whole = _whole_items(stored.kind)
        before, after = ownership.flatten(stored.manifest, whole), ownership.flatten(new, whole)
        claims = ownership.after_update(stored.claims, before, after, self.writer("Update"))
        self._store(stored.kind, new, claims, stored)

    def collect(self) -> None:
        """Do what the garbage collector does until nothing is left to do."""
        while (task := self._family.next()) is not None:
            stored = self._family.member(task.uid)
            if stored is None:
                continue
            if isinstance(task, garbage.Delete):
                self.delete(stored, task.propagation, None)
            else:
                new = stored.manifest | {"metadata": garbage.without(stored.meta, task)}
                self.replace(stored, new, self.writer("Update", manager="garbage-collector"))

    def writer(self, operation: str, subresource: str = "", *, manager: str = "") -> ownership.Writer:
        """Name who writes now: the cluster's own manager unless another is given."""
        return ownership.Writer(manager or self._manager, operation, subresource, _rfc3339(self._clock()))


def plural(kind: Kind) -> str:
    """Return how messages name a kind's objects."""
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def _whole_items(kind: Kind) -> frozenset[ownership.Names]:
    ours = kind.group in (kinds.NETWORKING_GROUP, kinds.WORKLOAD_GROUP)
    return ownership.OUR_WHOLE_ITEMS if ours else frozenset()


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_preconditions(stored: Stored, *, uid: str | None, version: str | None) -> None:
    """Raise Conflict if a caller means another object, or an earlier state of it."""
    if uid and uid != stored.uid:
        raise Conflict(
            f"metadata.uid: {uid} was asked for, but {Key(stored.kind.kind, *stored.place)} is another object now ({stored.uid})"
        )
    if version and version != stored.meta["resourceVersion"]:
        raise Conflict(
            f"{Key(stored.kind.kind, *stored.place)} has changed since resourceVersion {version} (it is {stored.meta['resourceVersion']}): "
            "read it again and repeat the change on what stands"
        )


def _may_go(meta: Manifest) -> bool:
    """Whether nothing holds the object back: it is to be deleted, no finalizer stands and no node has it."""
    return "deletionTimestamp" in meta and not meta.get("finalizers") and not meta.get("deletionGracePeriodSeconds")


def _grace_s(stored: Stored, wanted: int | None) -> int:
    """Only a Pod that a node runs is given time: the node deletes it at last."""
    if stored.kind != kinds.POD:
        return 0
    spec = stored.manifest.get("spec", {})
    over = stored.manifest.get("status", {}).get("phase") in ("Succeeded", "Failed")
    if not spec.get("nodeName") or over:
        return 0
    return wanted if wanted is not None else int(spec.get("terminationGracePeriodSeconds", _DEFAULT_POD_GRACE_S))
