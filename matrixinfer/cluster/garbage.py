"""Owner garbage collection: which objects follow their owners, in which order. Pure.

`Family` knows who owns whom and says one thing to do at a time; the cluster does it and tells what became of it. The rules
are those of Kubernetes' garbage collector: an object goes when none of its owners is left; one whose owners are partly left
loses the references to the others; an owner deleted in the foreground waits for the dependents that block it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from matrixinfer.cluster.protocol import Manifest

FINALIZERS: Final = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
PROPAGATIONS: Final = ("Background", *FINALIZERS)


class Member(Protocol):
    """What the family needs to know of an object."""

    @property
    def meta(self) -> Manifest:
        """The object's metadata."""
        ...

    @property
    def uid(self) -> str:
        """The object's uid."""
        ...


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Delete:
    """The object has no owner left."""

    uid: str
    propagation: str


@dataclass(frozen=True, slots=True)
class Release:
    """References to `owners` are to go from the object."""

    uid: str
    owners: frozenset[str]


@dataclass(frozen=True, slots=True)
class Finish:
    """The object's dependents are dealt with: the finalizer is to go."""

    uid: str
    finalizer: str


class Family(Generic[M]):
    """All objects, who owns whom, and what has to be looked at again."""

    def __init__(self) -> None:
        self._members: dict[str, M] = {}
        self._dependents: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self._dirty: dict[str, None] = {}

    def member(self, uid: str) -> M | None:
        """Return the object with this uid, if it stands."""
        return self._members.get(uid)

    def dependents(self, member: M) -> list[M]:
        """Return the objects that name this one as an owner."""
        return [self._members[uid] for uid in self._dependents.get(member.uid, ())]

    def put(self, member: M) -> None:
        """Take note of an object that was written."""
        self._forget_owners(member.uid)
        self._members[member.uid] = member
        for reference in member.meta.get("ownerReferences", ()):
            self._dependents[reference["uid"]][member.uid] = None
            self._dirty[member.uid] = None
        if "deletionTimestamp" in member.meta:
            self._dirty[member.uid] = None

    def drop(self, member: M) -> None:
        """Take note of an object that is gone."""
        self._forget_owners(member.uid)
        self._members.pop(member.uid, None)
        self._dirty.update(self._dependents.pop(member.uid, {}))

    def _forget_owners(self, uid: str) -> None:
        old = self._members.get(uid)
        for reference in old.meta.get("ownerReferences", ()) if old else ():
            dependents = self._dependents[reference["uid"]]
            dependents.pop(uid, None)
            if not dependents:
                del self._dependents[reference["uid"]]
            if reference["uid"] in self._members:
                self._dirty[reference["uid"]] = None

    def next(self) -> Delete | Release | Finish | None:
        """Return the next thing to do, if any."""
        while self._dirty:
            uid = next(iter(self._dirty))
            del self._dirty[uid]
            member = self._members.get(uid)
            task = self._task(member) if member else None
            if task is not None:
                self._dirty[uid] = None  # until there is nothing more to do for it
                return task
        return None

    def _task(self, member: M) -> Delete | Release | Finish | None:
        if "deletionTimestamp" not in member.meta:
            return self._as_dependent(member)
        finalizers = member.meta.get("finalizers", ())
        if FINALIZERS["Orphan"] in finalizers:
            for uid in self._dependents.get(member.uid, ()):
                return Release(uid, frozenset({member.uid}))
            return Finish(member.uid, FINALIZERS["Orphan"])
        if FINALIZERS["Foreground"] in finalizers:
            blocking = [dependent for dependent in self.dependents(member) if _blocks(dependent, member)]
            if not blocking:
                return Finish(member.uid, FINALIZERS["Foreground"])
            for dependent in blocking:
                if "deletionTimestamp" not in dependent.meta and (task := self._as_dependent(dependent)):
                    return task
        return None

    def _as_dependent(self, member: M) -> Delete | Release | None:
        references = member.meta.get("ownerReferences", ())
        if not references:
            return None
        gone = {reference["uid"] for reference in references if not self._stands(reference["uid"], member)}
        waiting = {reference["uid"] for reference in references if self._waits(reference["uid"])} - gone
        if len(gone | waiting) < len({reference["uid"] for reference in references}):
            return Release(member.uid, frozenset(gone | waiting)) if gone or waiting else None
        if waiting and self._dependents.get(member.uid):
            return Delete(member.uid, "Foreground")
        own = (name for name, finalizer in FINALIZERS.items() if finalizer in member.meta.get("finalizers", ()))
        return Delete(member.uid, next(own, "Background"))

    def _stands(self, uid: str, dependent: M) -> bool:
        owner = self._members.get(uid)
        return owner is not None and owner.meta.get("namespace", "") in ("", dependent.meta.get("namespace", ""))

    def _waits(self, uid: str) -> bool:
        owner = self._members.get(uid)
        return (
            owner is not None
            and "deletionTimestamp" in owner.meta
            and FINALIZERS["Foreground"] in owner.meta.get("finalizers", ())
        )


def _blocks(dependent: Member, owner: Member) -> bool:
    return any(
        reference["uid"] == owner.uid and reference.get("blockOwnerDeletion") is True
        for reference in dependent.meta.get("ownerReferences", ())
    )


def without(meta: Manifest, task: Release | Finish) -> Manifest:
    """Metadata after the task; lists that it empties go."""
    if isinstance(task, Finish):
        member = "finalizers"
        left = [finalizer for finalizer in meta["finalizers"] if finalizer != task.finalizer]
    else:
        member = "ownerReferences"
        left = [reference for reference in meta["ownerReferences"] if reference["uid"] not in task.owners]
    rest = {name: value for name, value in meta.items() if name != member}
    return rest | {member: left} if left else rest
