"""Arithmetic over groups: how many there shall be, which are made, rolled, recovered and removed now. Pure.

Everything follows from what is observed: the same world gives the same steps, whoever asks and whatever happened before.
No step takes a group that is available below the floor (`replicas - maxUnavailable`), and there are never more live groups
than `replicas + maxSurge`, except those that a smaller `replicas` is about to remove.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controllers.modelinfer import instances
from controllers.modelinfer.instances import Group, Work
from controllers.modelinfer.shapes import Removal, RoleShape, Shape, cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from controllers.modelinfer.shapes import InstanceKey, Place, Seen, Wanted


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be done now."""

    create: tuple[Place, ...]
    delete: tuple[Removal, ...]
    kept: Mapping[InstanceKey, str]  # instances that shall be or still are, with their revisions
    groups: Mapping[int, Group]  # what there is
    targets: Mapping[int, Shape]  # groups that shall be
    record: Mapping[str, int]  # instances of each role that all groups of the newest revision have had
    look_at: float | None  # when to look again though nothing has changed


@dataclass(slots=True)
class _Sum:
    create: list[Place] = field(default_factory=list)
    delete: list[Removal] = field(default_factory=list)
    kept: dict[InstanceKey, str] = field(default_factory=dict)
    look_at: float | None = None

    def add(self, work: Work) -> None:
        self.create += work.create
        self.delete += work.delete
        self.kept |= work.kept
        if work.look_at is not None:
            self.look_at = work.look_at if self.look_at is None else min(self.look_at, work.look_at)


def plan(wanted: Wanted, pods: Sequence[Seen], now: float) -> Steps:
    """Give the next steps from what there is to what is wanted."""
    groups = observed(wanted, pods)
    live = sorted(ordinal for ordinal, group in groups.items() if group.live)
    spared = set(live[: wanted.limits.partition])
    outdated = [ordinal for ordinal in live if groups[ordinal].outdated and ordinal not in spared]
    count = wanted.replicas + min(wanted.limits.surge, len(outdated))

    total = _Sum()
    for ordinal in _removable([groups[ordinal] for ordinal in live], len(live) - count, spared):
        _empty(total, groups[ordinal], "ScaleDown", f"{wanted.replicas} groups are wanted")
        live.remove(ordinal)
    added = instances.lowest_free(live, count - len(live))
    targets = sorted((*live, *added))
    protected = set(targets[: wanted.limits.partition])
    shapes = {ordinal: groups[ordinal].shape for ordinal in live}
    for ordinal in added:
        shapes[ordinal] = wanted.current if ordinal in protected and not wanted.by_role else wanted.update
        there = groups.get(ordinal)
        total.add(instances.new_group(wanted, shapes[ordinal], ordinal, room=there is None))

    for ordinal in _updated(wanted, [groups[ordinal] for ordinal in live], protected):
        _empty(total, groups[ordinal], "Update", "the template has changed")
        live.remove(ordinal)
    available = sum(groups[ordinal].ready for ordinal in live)
    for ordinal in reversed(live):
        available -= _within(wanted, groups[ordinal], available, now=now, total=total)
    for group in groups.values():
        for one in group.instances.values():
            total.kept.setdefault(one.key, (one.live or one.leaving)[0].revision)
    return Steps(
        create=tuple(total.create),
        delete=tuple(total.delete),
        kept=total.kept,
        groups=groups,
        targets=shapes,
        record=_record(wanted, [group for group in groups.values() if group.live]),
        look_at=total.look_at,
    )


def observed(wanted: Wanted, pods: Iterable[Seen]) -> dict[int, Group]:
    """Sort the pods into groups, and tell each group's revision."""
    sizes = {
        (role.name, role.hash): role.pods
        for shape in (*wanted.shapes.values(), wanted.current, wanted.update)
        for role in shape.roles
    }
    hashes = {role.name: role.hash for role in wanted.update.roles}
    by_group: defaultdict[int, list[Seen]] = defaultdict(list)
    for pod in pods:
        by_group[pod.instance.group].append(pod)
    groups = {}
    for ordinal, unsorted in sorted(by_group.items()):
        members = sorted(unsorted, key=lambda pod: (pod.instance.role, pod.instance.index, pod.member))
        revision = wanted.update.revision if wanted.by_role else _revision(wanted, members, hashes)
        groups[ordinal] = Group(
            ordinal=ordinal,
            shape=wanted.shapes.get(revision) or _as_seen(wanted, revision, members),
            outdated=revision != wanted.update.revision,
            instances=instances.gather(members, sizes),
            pods=members,
        )
    return groups


def _revision(wanted: Wanted, pods: Sequence[Seen], hashes: Mapping[str, str]) -> str:
    """Give the revision that a group is of. A pod that would be made the same today is of the newest, whatever it says."""
    found: Counter[str] = Counter()
    for pod in [pod for pod in pods if not pod.leaving] or pods:
        same = pod.hash == hashes.get(pod.instance.role) and _same_roles(wanted.shape(pod.revision), wanted.update)
        found[wanted.update.revision if same else pod.revision] += 1
    older = found.keys() - {wanted.update.revision}
    return max(sorted(older), key=lambda revision: found[revision]) if older else wanted.update.revision


def _as_seen(wanted: Wanted, revision: str, pods: Sequence[Seen]) -> Shape:
    """Give the shape of a group of which only its pods are known: they are what it shall have."""
    if revision == wanted.update.revision:
        return wanted.update
    roles = []
    for name in sorted({pod.instance.role for pod in pods}):
        mine = [pod for pod in pods if pod.instance.role == name and not pod.leaving]
        if mine:
            size = max(pod.member for pod in mine) + 1
            roles.append(RoleShape(name, len({pod.instance.index for pod in mine}), size, mine[0].hash))
    return Shape(revision, tuple(roles))


def _same_roles(one: Shape, other: Shape) -> bool:
    return {role.name for role in one.roles} == {role.name for role in other.roles}


def _removable(live: Sequence[Group], excess: int, protected: set[int]) -> list[int]:
    """Give the groups that go first: unprotected, not ready, cheap, of an old revision, of a high ordinal."""
    if excess <= 0:
        return []
    order = sorted(
        live,
        key=lambda group: (
            group.ordinal in protected,
            group.ready,
            cost(_live(group)),
            not group.outdated,
            -group.ordinal,
        ),
    )
    return [group.ordinal for group in order[:excess]]


def _updated(wanted: Wanted, live: Sequence[Group], protected: set[int]) -> list[int]:
    """Give the groups of old revisions that go now: those that are not ready, and as many ready ones as may be missing."""
    old = [group for group in live if group.outdated and group.ordinal not in protected]
    spare = sum(group.ready for group in live) - (wanted.replicas - wanted.limits.unavailable)
    ready = [group.ordinal for group in reversed(old) if group.ready]
    return [group.ordinal for group in old if not group.ready] + ready[: max(spare, 0)]


def _within(wanted: Wanted, group: Group, available: int, *, now: float, total: _Sum) -> int:
    """Work inside a group; give 1 if that takes it from the available ones."""
    if wanted.recovery == "InferGroupRecreate" and (why := _broken(wanted, group, now, total)):
        _empty(total, group, "Recovery", why)
        return int(group.ready)
    room = available > wanted.replicas - wanted.limits.unavailable
    work = instances.within(wanted, group, now, may_disrupt=room or not group.ready)
    total.add(work)
    return int(work.disrupts and group.ready)


def _broken(wanted: Wanted, group: Group, now: float, total: _Sum) -> str:
    """Say why the whole group is to be made anew; "" if it is not."""
    waiting = Work()
    for pod in group.pods:
        if instances.failed(wanted, pod, now, waiting):
            return f"pod {pod.name} has failed"
    total.add(waiting)
    return group.lost(wanted, now)


def _empty(total: _Sum, group: Group, reason: str, message: str) -> None:
    total.delete += [Removal(pod, reason, message) for pod in _live(group)]  # type: ignore[arg-type]  # callers write one of them


def _live(group: Group) -> list[Seen]:
    return [pod for pod in group.pods if not pod.leaving]


def _record(wanted: Wanted, live: Sequence[Group]) -> dict[str, int]:
    """Count the instances that every group of the newest revision has had: what is missing below that was lost."""
    record = {}
    for role in wanted.update.roles:
        whole = all(len(group.of(role.name)) >= role.replicas for group in live if not group.outdated)
        known = wanted.recorded.get(role.name, role.replicas)
        record[role.name] = role.replicas if whole else min(role.replicas, known)
    return record
