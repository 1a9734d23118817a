"""One ModelInfer's reconcile: read the world, do the arithmetic, say what to write. Pure.

Nothing is remembered between two calls but readings of what is still the same, and nothing is written that stands already. What a
ModelInfer owns names it as its owner, so that the API server's garbage collector deletes it after its owner; no finalizer is needed.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from controllers.modelinfer import children, drift, events, observe, podgroups, revisions, status
from controllers.modelinfer.gangs import Gang, Served
from controllers.modelinfer.plan import plan
from controllers.modelinfer.readings import Readings
from controllers.modelinfer.shapes import Limits, Wanted
from matrixinfer.api import kinds, validation, workload
from matrixinfer.cluster.loop import Controller, itself, owner
from matrixinfer.cluster.manifest import differs
from matrixinfer.cluster.plan import Apply, ApplyStatus, Delete, Plan, Together
from matrixinfer.cluster.protocol import Key

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from controllers.modelinfer.plan import Steps
    from controllers.modelinfer.podgroups import PodGroups
    from controllers.modelinfer.readings import Reading
    from controllers.modelinfer.revisions import Revision
    from controllers.modelinfer.shapes import InstanceKey, Place, Seen
    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.plan import Action
    from matrixinfer.cluster.protocol import Manifest

    class World(Protocol):
        """What is read of the cluster."""

        def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
            """Return the object if it stands."""
            ...

        def owned(self, kind: Kind, uid: str) -> list[Manifest]:
            """Return the objects that name this owner."""
            ...


NAME: Final = "matrixinfer-modelinfer"  # the manager of what is applied, and who events are from
_OWNER: Final = owner(kinds.MODEL_INFER)
_AT_ONCE: Final = 64  # pods, of whole groups: where quota ends, few groups are incomplete
_LOOK_AGAIN_S: Final = 15.0  # at names that belong to others: nobody tells when they are free


def controller(served: Served = Served.NOTHING) -> Controller:
    """Give the controller for a cluster that serves this for gangs."""
    children_kinds = [kinds.POD, kinds.SERVICE, kinds.CONTROLLER_REVISION]
    if served.kind is not None:
        children_kinds.append(served.kind)
    watches = {kinds.MODEL_INFER: itself(kinds.MODEL_INFER)}
    watches |= dict.fromkeys(children_kinds, _touches)
    reconciler = Reconciler(served)
    return Controller(NAME, reconciler.reconcile, watches, reconciler.refused)


def _touches(manifest: Manifest, world: Any) -> Iterable[Key]:
    """Say whose a child is, by its owner and by its label: one that was taken from its owner has a name that is needed."""
    keys = list(_OWNER(manifest, world))
    meta = manifest["metadata"]
    name = meta.get("labels", {}).get(workload.NAME_LABEL)
    return keys or ([Key(kinds.MODEL_INFER.kind, meta.get("namespace", ""), name)] if name else [])


@dataclass(frozen=True, slots=True)
class _Case:
    """All that one reconcile is about."""

    manifest: Manifest
    infer: workload.ModelInfer
    gang: Gang
    pods: Mapping[str, Manifest]
    seen: tuple[Seen, ...]
    known: Mapping[str, Revision]  # as stored
    update: Revision
    wanted: Wanted
    steps: Steps

    @property
    def name(self) -> str:
        return self.infer.metadata.name

    @property
    def namespace(self) -> str:
        return self.infer.metadata.namespace

    def revision(self, name: str) -> Revision | None:
        """Give what pods of a revision are made of; None if that is not known any more."""
        return self.update if name == self.update.name else self.known.get(name)


class Reconciler:
    """`reconcile` of the ModelInfer controller; no state but readings of what has not changed since."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._readings = Readings()

    def reconcile(self, key: Key, world: World, now: float) -> Plan:
        """Give what brings the ModelInfer's world nearer to its spec."""
        return self._story(key, world, now)

    def refused(self, key: Key, world: World, error: Exception, now: float) -> Plan:
        """Give the status that says what the API server has refused."""
        plan = self._story(key, world, now, refusal=f"The API server refuses what is to be made: {error}")
        return Plan(tuple(action for action in plan.actions if isinstance(action, ApplyStatus)))

    def _story(self, key: Key, world: World, now: float, refusal: str = "") -> Plan:
        manifest = world.get(kinds.MODEL_INFER, key.name, key.namespace)
        if manifest is None or "deletionTimestamp" in manifest["metadata"]:
            return Plan()
        try:
            reading = self._readings.infer(manifest)
        except ValidationError:
            found = status.rejected(validation.validate(manifest))
            return Plan(tuple(_status(manifest, {}, found, now)))
        case = self._case(manifest, reading, world, now)
        taken = _taken(case, world)
        first = [*_revision(case)]
        gangs = _pod_groups(case, world)
        around = [*gangs.writes, *_services(case, world, taken)]
        pods = list(_pods(case, taken, gangs))
        rest = [*_together(_removals(case)), *_together(around), *pods, *_history(case)]
        if not refusal and (first or pods or any(isinstance(action, Apply) for action in around)):
            refusal = status.refusal(manifest)  # it stands until what was refused is no longer to be made
        fields = status.counts(case.name, case.wanted, case.steps)
        troubles = _troubles(case, taken, refusal)
        found = status.findings(case.name, case.wanted, case.steps, case.pods, troubles)
        told = tuple(events.told(manifest, case.wanted, case.steps, fields))
        labels = drift.labels(manifest, case.seen, case.pods)
        # What is told by comparing with the status before is told again until that is written.
        patient = status.passing(manifest, found) and not any(one.reason == events.RUNNING for one in told)
        actions = (*first, *_status(manifest, fields, found, now, patient=patient), *rest, *told, *labels)
        again = case.steps.look_at
        if taken:
            again = now + _LOOK_AGAIN_S if again is None else min(again, now + _LOOK_AGAIN_S)
        return Plan(actions, None if again is None else max(again - now, 0.0))

    def _case(self, manifest: Manifest, reading: Reading, world: World, now: float) -> _Case:
        uid, infer = manifest["metadata"]["uid"], reading.infer
        pods = {pod["metadata"]["name"]: pod for pod in world.owned(kinds.POD, uid)}
        seen = tuple(one for pod in pods.values() if (one := observe.seen(infer.metadata.name, pod)) is not None)
        known = self._readings.revisions(world.owned(kinds.CONTROLLER_REVISION, uid))
        wanted = _wanted(manifest, reading, known, seen)
        return _Case(
            manifest=manifest,
            infer=infer,
            gang=Gang.of(infer.spec, self._served),
            pods=pods,
            seen=seen,
            known=known,
            update=reading.update,
            wanted=wanted,
            steps=plan(wanted, seen, now),
        )


def _wanted(manifest: Manifest, reading: Reading, known: Mapping[str, Revision], seen: tuple[Seen, ...]) -> Wanted:
    spec, update = reading.infer.spec, reading.update
    shapes = {name: one.shape for name, one in known.items()} | {update.name: update.shape}
    rolling = spec.rollout_strategy.rolling_update_configuration or workload.RollingUpdate()
    recorded = known[update.name].shape.roles if update.name in known else ()
    wanted = Wanted(
        replicas=spec.replicas,
        update=update.shape,
        current=update.shape,
        limits=_limits(rolling.max_unavailable, rolling.max_surge, rolling.partition, spec.replicas),
        role_limits={
            role.name: _limits(role.max_unavailable, role.max_surge, role.partition, role.replicas)
            for role in spec.template.roles
        },
        by_role=spec.rollout_strategy.type == "RoleRollingUpdate",
        recovery=spec.recovery_policy,
        grace_s=float(spec.template.restart_grace_period_seconds),
        shapes=shapes,
        recorded={role.name: role.replicas for role in recorded},
    )
    before = (manifest.get("status") or {}).get("currentRevision", "")
    current = status.current_revision(before, wanted, seen, known)
    return wanted.at(shapes.get(current, update.shape))


def _limits(unavailable: int | str, surge: int | str, partition: int | str | None, replicas: int) -> Limits:
    """Resolve shares. One that comes to nothing would stop every rollout, so one may always be missing without surge."""
    extra = workload.resolve_up(surge, replicas)
    missing = workload.resolve_down(unavailable, replicas)
    return Limits(
        unavailable=missing if extra else max(missing, 1),
        surge=extra,
        partition=0 if partition is None else workload.resolve_up(partition, replicas),
    )


# Actions


def _revision(case: _Case) -> Iterator[Apply]:
    """Store the newest revision before a pod of it is made, with the highest number also if it is an old one again."""
    before = case.known.get(case.update.name)
    latest = max((one.number for one in case.known.values()), default=0)
    number = latest if before is not None and before.number == latest else latest + 1
    wanted = revisions.manifest(case.manifest, case.update, number=number, counts=case.steps.record)
    wanted["metadata"]["ownerReferences"] = [children.owned_by(case.manifest)]
    if before is not None:
        wanted["data"] = before.stored["data"] if before.stored else wanted["data"]
    if before is None or differs(wanted, before.stored):
        # Also if it is new: an apply writes data in the server's order of fields. Data that was created stands in ours, so that no apply
        # ever leaves it as it was, not even one that does not name it, and it cannot be changed.
        yield Apply(kinds.CONTROLLER_REVISION, wanted)


def _status(
    manifest: Manifest, fields: Mapping[str, Any], found: list[status.Finding], now: float, *, patient: bool = False
) -> Iterator[Action]:
    time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    new = status.written(manifest, fields, found, time)
    if new is not None:
        meta = {"name": manifest["metadata"]["name"], "namespace": manifest["metadata"].get("namespace", "")}
        kind = kinds.MODEL_INFER
        made = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, "status": new}
        yield ApplyStatus(kind, made, patient=patient)


def _removals(case: _Case) -> Iterator[Delete]:
    for removal in case.steps.delete:
        yield Delete(kinds.POD, removal.pod.name, case.namespace, uid=removal.pod.uid)


def _pods(case: _Case, taken: Mapping[str, str], gangs: PodGroups) -> Iterator[Action]:
    """Make pods some groups at a time; of those workers first, and last what says that a group has been whole."""
    first = case.wanted.update.roles[0].name
    for places in _some_groups(case.steps.create):
        waves: tuple[list[Apply], ...] = ([], [], [])
        for place in places:
            revision, group = case.revision(place.revision), place.instance.group
            if revision is not None and _pod_name(case, place) not in taken and group not in gangs.waiting:
                gang = case.gang.unused() if group in gangs.alone else case.gang
                last = place.instance.role == first and place.instance.index == 0
                wave = waves[0 if place.member else 2 if last else 1]
                wave.append(Apply(kinds.POD, children.pod(case.manifest, place, revision, gang), new=True))
        for wave in waves:
            yield from _together(wave)


def _some_groups(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Cut where one group's pods end, at some number of pods."""
    some: list[Place] = []
    for _, group in itertools.groupby(places, key=lambda place: place.instance.group):
        some += group
        if len(some) >= _AT_ONCE:
            yield some
            some = []
    yield some


def _together(actions: Iterable[Apply | Delete]) -> Iterator[Action]:
    listed = tuple(actions)
    if len(listed) > 1:
        yield Together(listed)
    else:
        yield from listed


def _services(case: _Case, world: World, taken: Mapping[str, str]) -> Iterator[Apply | Delete]:
    standing = {one["metadata"]["name"]: one for one in world.owned(kinds.SERVICE, _uid(case))}
    for key, name in case.steps.kept.items():
        revision = case.revision(name)
        if revision is None or not children.has_service(revision, key.role):
            continue
        wanted = children.service(case.manifest, key)
        stands = standing.pop(wanted["metadata"]["name"], None)
        if wanted["metadata"]["name"] not in taken and (stands is None or differs(wanted, stands)):
            yield Apply(kinds.SERVICE, wanted, new=stands is None)
    for one in standing.values():
        if not _unknown(case, one):
            yield from _delete(kinds.SERVICE, one)


def _pod_groups(case: _Case, world: World) -> PodGroups:
    kind = case.gang.served.kind
    there = {ordinal: group.shape for ordinal, group in case.steps.groups.items()} | dict(case.steps.targets)
    return podgroups.decide(
        case.manifest,
        case.gang,
        {ordinal: case.revision(shape.revision) for ordinal, shape in sorted(there.items())},
        standing=() if kind is None else world.owned(kind, _uid(case)),
        inhabited={pod.instance.group for pod in case.seen},
    )


def _history(case: _Case) -> Iterator[Delete]:
    used = {pod.revision for pod in case.seen} | {case.update.name, case.wanted.current.revision}
    for one in revisions.unneeded(case.known, used, case.infer.spec.revision_history_limit):
        if one.stored is not None:
            yield from _delete(kinds.CONTROLLER_REVISION, one.stored)


def _delete(kind: Kind, one: Manifest) -> Iterator[Delete]:
    meta = one["metadata"]
    if "deletionTimestamp" not in meta:
        yield Delete(kind, meta["name"], meta.get("namespace", ""), uid=meta.get("uid"))


# Troubles


def _taken(case: _Case, world: World) -> dict[str, str]:
    """Give the names that are needed and belong to objects of others, with what to do about each."""
    found = {}
    for kind, needed in ((kinds.POD, _new_pods(case)), (kinds.SERVICE, _services_needed(case))):
        for name in needed:
            stands = world.get(kind, name, case.namespace)
            if stands is not None and not _ours(case, stands):
                found[name] = f"{kind.kind} {name} is not of this ModelInfer and has a name that it needs: delete it"
    return found


def _new_pods(case: _Case) -> list[str]:
    return [_pod_name(case, place) for place in case.steps.create]


def _services_needed(case: _Case) -> list[str]:
    return [
        _entry_name(case, key)
        for key, name in case.steps.kept.items()
        if (revision := case.revision(name)) is not None and children.has_service(revision, key.role)
    ]


def _troubles(case: _Case, taken: Mapping[str, str], refusal: str) -> list[tuple[str, str]]:
    troubles = [("NameTaken", f"{message}.") for message in list(taken.values())[:3]]
    if refusal:
        troubles.append((status.REFUSED, refusal))
    if case.gang.problem:
        troubles.append(("GangUnavailable", f"{case.gang.problem}."))
    lost = sorted({place.revision for place in case.steps.create if case.revision(place.revision) is None})
    if lost:
        message = f"pods of revision {lost[0]} are to be made, and its ControllerRevision is gone: set partition to 0."
        troubles.append(("RevisionLost", message))
    return troubles


def _ours(case: _Case, one: Manifest) -> bool:
    return any(reference.get("uid") == _uid(case) for reference in one["metadata"].get("ownerReferences", ()))


def _unknown(case: _Case, service: Manifest) -> bool:
    """Tell whether the Service is of an instance that stays, and of which it is not known what it shall have."""
    name = service["metadata"]["name"]
    return any(
        _entry_name(case, key) == name and case.revision(revision) is None for key, revision in case.steps.kept.items()
    )


def _pod_name(case: _Case, place: Place) -> str:
    key = place.instance
    return workload.pod_name(case.name, key.group, key.role, key.index, place.member)


def _entry_name(case: _Case, key: InstanceKey) -> str:
    return workload.pod_name(case.name, key.group, key.role, key.index, 0)


def _uid(case: _Case) -> str:
    return str(case.manifest["metadata"]["uid"])
