"""Arithmetic within one group: instances of roles are made, completed, replaced, recovered and removed. Pure.

An instance is created workers first and entry last, and a group with the first entry of its first role last of all. So an
entry that is there says that the instance has been whole, and a pod that is missing beside it was lost; without it the
instance is still being made, unless its pods are older than any making takes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from controllers.modelinfer.shapes import InstanceKey, Limits, Place, Removal, cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from controllers.modelinfer.shapes import RoleShape, Seen, Shape, Wanted

FORMING_S: Final = 60.0  # longer than a controller that is restarted takes to go on with what it was making
PAUSE_S: Final = (
    10.0  # a pod gets this long at least before it is replaced for failing: what never starts is not made in a hurry
)


@dataclass(slots=True)
class Instance:
    """The pods of one instance that there are."""

    key: InstanceKey
    pods: int  # that it is whole with
    live: list[Seen] = field(default_factory=list)
    leaving: list[Seen] = field(default_factory=list)
    ready: bool = False  # it is whole and every pod is ready

    @property
    def hash(self) -> str:
        """Hash of the template that it is made of."""
        return self.live[0].hash

    def lost(self, now: float) -> bool:
        """Tell whether a pod that it has had is gone or going."""
        if self.leaving:
            return True
        if len({pod.member for pod in self.live if pod.member < self.pods}) == self.pods:
            return False
        whole_once = any(pod.member == 0 for pod in self.live)
        return whole_once or min(pod.created for pod in self.live) <= now - FORMING_S


@dataclass(slots=True)
class Group:
    """One group as it is."""

    ordinal: int
    shape: Shape  # of its own revision
    outdated: bool
    instances: dict[InstanceKey, Instance]
    pods: list[Seen]
    live: bool = False  # it has a pod that was not told to stop
    ready: bool = False  # every role has the instances that it shall have, ready

    def __post_init__(self) -> None:
        """Find out how it is."""
        ready = Counter(one.key.role for one in self.instances.values() if one.ready)
        self.live = any(not pod.leaving for pod in self.pods)
        self.ready = self.live and all(ready[role.name] >= role.replicas for role in self.shape.roles)

    def of(self, role: str) -> list[Instance]:
        """Give the role's instances that have live pods, by index."""
        found = [one for one in self.instances.values() if one.key.role == role and one.live]
        return sorted(found, key=lambda one: one.key.index)

    def lost(self, wanted: Wanted, now: float) -> str:
        """Say which pod that the group has had is gone; "" if none is that it needs."""
        forming = self._forming(now)
        for role in self.shape.roles:
            there = self.of(role.name)
            torn = [one for one in there if one.lost(now)]
            if torn and len(there) - len(torn) < role.replicas:  # more than that are on their way out anyway
                return f"a pod of {role.name}-{torn[0].key.index} is gone"
            had = min(wanted.recorded.get(role.name, role.replicas), role.replicas)
            if len(there) < had and not forming:
                return f"an instance of {role.name} is gone"
        return ""

    def _forming(self, now: float) -> bool:
        """Tell whether the group may not have been whole yet."""
        first = next((role.name for role in self.shape.roles if role.replicas), "")
        last_made = InstanceKey(self.ordinal, first, 0)
        if any(pod.leaving or (pod.instance == last_made and pod.member == 0) for pod in self.pods):
            return False
        return min((pod.created for pod in self.pods), default=now) > now - FORMING_S


@dataclass(slots=True)
class Work:
    """What is to be done in a group."""

    create: list[Place] = field(default_factory=list)
    delete: list[Removal] = field(default_factory=list)
    kept: dict[InstanceKey, str] = field(default_factory=dict)  # instances that shall be, with their revisions
    look_at: float | None = None
    disrupts: bool = False  # the group is ready, and will not be

    def look(self, at: float) -> None:
        """Come back at this time."""
        self.look_at = at if self.look_at is None else min(self.look_at, at)


def failed(wanted: Wanted, pod: Seen, now: float, work: Work) -> bool:
    """Tell whether the pod has failed for as long as it may; otherwise note when it will have."""
    if pod.failed_at is None or pod.leaving:
        return False
    since = min(pod.failed_at, now)  # nodes have clocks of their own: without grace, a later one holds nothing up
    due = max(since + wanted.grace_s, pod.created + PAUSE_S)
    if due > now:
        work.look(due)
        return False
    return True


def new_group(wanted: Wanted, shape: Shape, ordinal: int, *, room: bool) -> Work:
    """Make a group from nothing; while pods of its names are still going there is no room, and it waits."""
    work = Work()
    for role in reversed(shape.roles):
        for index in reversed(range(role.replicas)):
            key = InstanceKey(ordinal, role.name, index)
            revision = _revision_for(wanted, shape, role, protected=index < _partition(wanted, role))
            work.kept[key] = revision
            if room:
                work.create += _members(key, _pods_at(wanted, revision, role), revision)
    return work


def within(wanted: Wanted, group: Group, now: float, *, may_disrupt: bool) -> Work:
    """Bring a group that is there nearer to its shape."""
    work = Work()
    for one in group.instances.values():
        if one.live or one.leaving:
            work.kept[one.key] = (one.live or one.leaving)[0].revision
    named = {role.name for role in group.shape.roles}
    for one in group.instances.values():
        if one.key.role not in named:
            _remove(work, one, "Update", f"the role {one.key.role} is no longer there")
    for role in reversed(group.shape.roles):
        _role(wanted, group, role, now=now, may_disrupt=may_disrupt, work=work)
    return work


def _role(  # noqa: PLR0913 - one role's part of `within`
    wanted: Wanted, group: Group, role: RoleShape, *, now: float, may_disrupt: bool, work: Work
) -> None:
    limits = wanted.role_limits.get(role.name, Limits()) if wanted.by_role else Limits()
    standing = [one for one in group.of(role.name) if not _recovered(wanted, one, now, work)]
    protected = {one.key for one in standing[: limits.partition]} if wanted.by_role else set()
    outdated = [one for one in standing if wanted.by_role and one.hash != role.hash and one.key not in protected]
    count = role.replicas + min(limits.surge, len(outdated))
    for one in _removable(role, standing, len(standing) - count, protected):
        _remove(work, one, "ScaleDown", f"{role.name} has {role.replicas} replicas")
        standing.remove(one)
    held = {one.key.index for one in standing}
    missing = lowest_free(held, count - len(standing))
    first = sorted((*held, *missing))[: limits.partition] if wanted.by_role else ()
    for index in reversed(missing):
        _make(wanted, group, role, index=index, protected=index in first, work=work)
    left = _update(role, limits, standing, outdated, may_disrupt=may_disrupt, work=work)
    for one in left:
        _complete(wanted, group, role, one, work)


def _recovered(wanted: Wanted, one: Instance, now: float, work: Work) -> bool:
    """Delete what has failed, or stands beside what is gone; true if nothing of the instance shall stay."""
    broken = [pod for pod in one.live if failed(wanted, pod, now, work)]
    if wanted.recovery == "None":
        for pod in broken:
            if pod.ended:
                work.delete.append(Removal(pod, "Recovery", f"pod {pod.name} has ended"))
        return False
    if broken:
        _remove(work, one, "Recovery", f"pod {broken[0].name} has failed")
        return True
    if one.lost(now):
        _remove(work, one, "Recovery", f"a pod of {one.key.role}-{one.key.index} is gone")
        return True
    return False


def _removable(
    role: RoleShape, standing: Iterable[Instance], excess: int, protected: set[InstanceKey]
) -> list[Instance]:
    """Give those that go first: unprotected, not ready, cheap, of an old template, of a high index."""
    if excess <= 0:
        return []
    order = sorted(
        standing,
        key=lambda one: (one.key in protected, one.ready, cost(one.live), one.hash == role.hash, -one.key.index),
    )
    return order[:excess]


def _update(  # noqa: PLR0913 - one role's part of `within`
    role: RoleShape,
    limits: Limits,
    standing: Sequence[Instance],
    outdated: Sequence[Instance],
    *,
    may_disrupt: bool,
    work: Work,
) -> list[Instance]:
    """Delete instances of old templates as far as enough stay ready; give those that stay."""
    ready = sum(one.ready for one in standing)
    gone = set()
    for one in sorted((one for one in outdated if one in standing), key=lambda one: (one.ready, -one.key.index)):
        if one.ready:
            spare = ready > role.replicas
            if not spare and not (may_disrupt and ready > role.replicas - limits.unavailable):
                continue
            work.disrupts = work.disrupts or not spare
            ready -= 1
        _remove(work, one, "Update", f"{role.name} has a new template")
        gone.add(one.key)
    return [one for one in standing if one.key not in gone]


def _make(  # noqa: PLR0913 - what names an instance
    wanted: Wanted, group: Group, role: RoleShape, *, index: int, protected: bool, work: Work
) -> None:
    key = InstanceKey(group.ordinal, role.name, index)
    revision = _revision_for(wanted, group.shape, role, protected=protected)
    if key not in work.kept:
        work.kept[key] = revision
    if key not in group.instances:
        work.create += _members(key, _pods_at(wanted, revision, role), revision)


def _complete(wanted: Wanted, group: Group, role: RoleShape, one: Instance, work: Work) -> None:
    """Make the members that an instance lacks, and remove those that it should not have."""
    there = {pod.member for pod in (*one.live, *one.leaving)}
    revision = one.live[0].revision
    known = wanted.shape(revision).role(role.name)
    if known is None or known.hash != one.hash:  # nothing is known of its revision: what the group is made of will do
        revision = group.shape.revision
    work.create += [place for place in _members(one.key, one.pods, revision) if place.member not in there]
    for pod in one.live:
        if pod.member >= one.pods:
            work.delete.append(Removal(pod, "ScaleDown", f"{role.name}-{one.key.index} has {one.pods} pods"))


def _remove(work: Work, one: Instance, reason: str, message: str) -> None:
    work.delete += [Removal(pod, reason, message) for pod in one.live]  # type: ignore[arg-type]  # callers write one of them


def _members(key: InstanceKey, pods: int, revision: str) -> Iterator[Place]:
    return (Place(key, member, revision) for member in reversed(range(pods)))


def _revision_for(wanted: Wanted, shape: Shape, role: RoleShape, *, protected: bool) -> str:
    if protected and wanted.by_role and wanted.current.role(role.name) is not None:
        return wanted.current.revision
    return shape.revision


def _pods_at(wanted: Wanted, revision: str, role: RoleShape) -> int:
    known = wanted.shape(revision).role(role.name)
    return known.pods if known is not None else role.pods


def _partition(wanted: Wanted, role: RoleShape) -> int:
    return wanted.role_limits.get(role.name, Limits()).partition if wanted.by_role else 0


def lowest_free(held: Iterable[int], count: int) -> list[int]:
    """Give the lowest numbers that are not held."""
    taken = set(held)
    free = (index for index in itertools.count() if index not in taken)
    return list(itertools.islice(free, max(count, 0)))


def gather(pods: Sequence[Seen], sizes: Mapping[tuple[str, str], int]) -> dict[InstanceKey, Instance]:
    """Sort the pods of a group, in order, into instances; `sizes` says how many pods one of a role and hash has."""
    found: dict[InstanceKey, Instance] = {}
    for pod in pods:
        one = found.get(pod.instance)
        if one is None:
            size = sizes.get((pod.instance.role, pod.hash), 0)
            one = found[pod.instance] = Instance(pod.instance, size or _as_many_as_seen(pods, pod.instance))
        (one.leaving if pod.leaving else one.live).append(pod)
    for one in found.values():
        one.ready = len(one.live) == one.pods and not one.leaving and all(pod.ready for pod in one.live)
    return found


def _as_many_as_seen(pods: Iterable[Seen], key: InstanceKey) -> int:
    return max(pod.member for pod in pods if pod.instance == key) + 1
