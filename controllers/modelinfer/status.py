"""The status of a ModelInfer: counts, revisions, and conditions that say what holds and what to change. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from controllers.modelinfer.instances import Group
    from controllers.modelinfer.plan import Steps
    from controllers.modelinfer.shapes import Seen, Wanted
    from matrixinfer.cluster.protocol import Manifest

ACCEPTED: Final = "Accepted"  # the spec is valid and acted upon
AVAILABLE: Final = "Available"  # every group that is wanted is ready
PROGRESSING: Final = "Progressing"  # something is on its way
UPDATE_IN_PROGRESS: Final = "UpdateInProgress"  # groups of an older revision are being replaced
DEGRADED: Final = "Degraded"  # something will not come right by itself

REFUSED: Final = "Refused"  # reason of Degraded

_LONGEST: Final = 4096
_NAMED: Final = 3  # groups or pods that a message names
_PLAIN_WAITS: Final = ("ContainerCreating", "PodInitializing", "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One condition before it has a time."""

    type: str
    holds: bool
    reason: str
    message: str


def current_revision(before: str, wanted: Wanted, pods: Iterable[Seen], known: Iterable[str]) -> str:
    """Tell from which revision groups are updated: the one so far while pods have it or a partition may bring it back."""
    hashes = {role.name: role.hash for role in wanted.update.roles}
    older = Counter(
        pod.revision for pod in pods if not pod.leaving and pod.revision and pod.hash != hashes.get(pod.instance.role)
    )
    held = wanted.limits.partition > 0 or any(limits.partition > 0 for limits in wanted.role_limits.values())
    if before and (before == wanted.update.revision or before in older or (held and before in set(known))):
        return before
    return max(sorted(older), key=lambda name: older[name]) if older else wanted.update.revision


def counts(name: str, wanted: Wanted, steps: Steps) -> dict[str, Any]:
    """Give the numbers and revisions of the status."""
    live = [group for group in steps.groups.values() if group.live]
    updated = sum(_updated(wanted, group) for group in live)
    available = sum(group.ready for group in live)
    settled = updated == available == len(live) and not wanted.limits.partition
    first = wanted.update.roles[0].name
    selector = {
        workload.NAME_LABEL: name,
        workload.ENTRY_LABEL: "true",
        workload.ROLE_LABEL: first,
        workload.ROLE_ID_LABEL: workload.role_id(first, 0),
    }
    return {
        "replicas": len(live),
        "currentReplicas": updated if settled else len(live) - updated,
        "updatedReplicas": updated,
        "availableReplicas": available,
        "currentRevision": wanted.update.revision if settled and live else wanted.current.revision,
        "updateRevision": wanted.update.revision,
        "labelSelector": ",".join(f"{key}={value}" for key, value in selector.items()),
        "roles": [_role(wanted, role.name, live) for role in wanted.update.roles],
    }


def findings(
    name: str, wanted: Wanted, steps: Steps, pods: Mapping[str, Manifest], troubles: Sequence[tuple[str, str]]
) -> list[Finding]:
    """Give the conditions. `troubles` are reasons and messages of what cannot be done."""
    live = {ordinal: group for ordinal, group in steps.groups.items() if group.live}
    unready = [ordinal for ordinal in sorted(steps.targets) if ordinal not in live or not live[ordinal].ready]
    behind = [ordinal for ordinal, group in sorted(live.items()) if not _updated(wanted, group)]
    moving = bool(steps.create or steps.delete or unready or live.keys() != steps.targets.keys())
    ready = sum(group.ready for group in live.values())
    said = f"{ready} of {wanted.replicas} groups are ready"
    waits = "; ".join(_waits(pods[pod.name] for ordinal in unready if ordinal in live for pod in live[ordinal].pods))
    listed = _listed(name, unready)
    return [
        Finding(ACCEPTED, True, "Accepted", "The ModelInfer is valid."),
        Finding(AVAILABLE, True, "AllGroupsReady", f"{said}.")
        if not unready and ready >= wanted.replicas
        else Finding(
            AVAILABLE, False, "GroupsNotReady", f"{said}; not ready: {listed}" + (f": {waits}." if waits else ".")
        ),
        Finding(PROGRESSING, True, "GroupProgressing", f"On their way: {listed}." if unready else "Pods come and go.")
        if moving
        else Finding(PROGRESSING, False, "AllGroupsReady", "Nothing is to be done."),
        _update(name, wanted, behind),
        _degraded(pods, troubles),
    ]


def passing(manifest: Manifest, found: Iterable[Finding]) -> bool:
    """Tell whether these conditions are soon others: something is on its way, and nothing that a user has to act on is new."""
    before = {
        one["type"]: (one["status"], one["reason"]) for one in (manifest.get("status") or {}).get("conditions", ())
    }
    now = {one.type: ("True" if one.holds else "False", one.reason) for one in found}
    usual = {ACCEPTED: ("True", "Accepted"), DEGRADED: ("False", "AsExpected")}
    return now[PROGRESSING][0] == "True" and all(now[type_] == before.get(type_, usual[type_]) for type_ in usual)


def rejected(problems: Iterable[object]) -> list[Finding]:
    """Give the conditions of a spec that cannot be acted upon."""
    why = "; ".join(map(str, problems))
    return [Finding(ACCEPTED, False, "Invalid", f"{why}. Until this is changed, everything stays as it is.")]


def refusal(manifest: Manifest) -> str:
    """Give what the status says was refused of the spec as it is; "" if nothing was."""
    for condition in (manifest.get("status") or {}).get("conditions", ()):
        same = condition.get("observedGeneration") == manifest["metadata"].get("generation")
        if condition["type"] == DEGRADED and condition["reason"] == REFUSED and same:
            return str(condition["message"])
    return ""


def written(manifest: Manifest, fields: Mapping[str, Any], found: Iterable[Finding], now: str) -> dict[str, Any] | None:
    """Give the status to write; None if it stands already. A condition's time moves with its status only."""
    generation = manifest["metadata"].get("generation", 0)
    old = manifest.get("status") or {}
    before = {condition["type"]: condition for condition in old.get("conditions", ())}
    conditions = []
    for finding in found:
        holds = "True" if finding.holds else "False"
        last = before.get(finding.type, {})
        since = last.get("lastTransitionTime") if last.get("status") == holds else None
        conditions.append(
            {
                "type": finding.type,
                "status": holds,
                "reason": finding.reason,
                "message": finding.message,
                "lastTransitionTime": since or now,
                "observedGeneration": generation,
            }
        )
    status = {"observedGeneration": generation, **fields, "conditions": conditions}
    return None if {key: old.get(key) for key in status} == status else status


def _updated(wanted: Wanted, group: Group) -> bool:
    hashes = {role.name: role.hash for role in wanted.update.roles}
    return not group.outdated and all(
        pod.hash == hashes.get(pod.instance.role) for pod in group.pods if not pod.leaving
    )


def _role(wanted: Wanted, name: str, live: Sequence[Group]) -> dict[str, Any]:
    role = wanted.update.role(name)
    found = [one for group in live for one in group.of(name)]
    return {
        "name": name,
        "replicas": len(found),
        "readyReplicas": sum(one.ready for one in found),
        "updatedReplicas": sum(role is not None and one.hash == role.hash for one in found),
    }


def _update(name: str, wanted: Wanted, behind: Sequence[int]) -> Finding:
    revision = wanted.update.revision
    partition = wanted.limits.partition
    held = any(limits.partition for limits in wanted.role_limits.values()) and wanted.by_role
    if len(behind) > partition and not held:
        message = f"Not at revision {revision} yet: {_listed(name, behind)}."
        return Finding(UPDATE_IN_PROGRESS, True, "GroupsUpdating", message)
    if behind:
        message = f"Kept at their revision by partition: {_listed(name, behind)}."
        return Finding(UPDATE_IN_PROGRESS, False, "Partitioned", message)
    return Finding(UPDATE_IN_PROGRESS, False, "UpToDate", f"All groups are at revision {revision}.")


def _degraded(pods: Mapping[str, Manifest], troubles: Sequence[tuple[str, str]]) -> Finding:
    if troubles:
        reasons = [reason for reason, _ in troubles]
        return Finding(DEGRADED, True, reasons[0], " ".join(message for _, message in troubles)[:_LONGEST])
    waits = _waits(pods.values())
    if waits:
        return Finding(DEGRADED, True, "PodsFailing", f"{'; '.join(waits)}.")
    return Finding(DEGRADED, False, "AsExpected", "Nothing is known to be wrong.")


def _waits(pods: Iterable[Manifest]) -> list[str]:
    """Say of some pods why they are not ready, where they say so themselves."""
    said: list[str] = []
    for pod in pods:
        why = next(_why(pod), "")
        if why and "deletionTimestamp" not in pod["metadata"]:
            said.append(f"pod {pod['metadata']['name']}: {why}")
            if len(said) == _NAMED:
                break
    return said


def _why(pod: Manifest) -> Iterator[str]:
    status = pod.get("status") or {}
    if status.get("phase") == "Failed":
        yield f"{status.get('reason') or 'Failed'}: {status.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            yield f"{condition.get('reason', '')}: {condition.get('message', '')}".rstrip(": ")
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", "") not in _PLAIN_WAITS:
            text = f"container {container['name']}: {waiting['reason']}: {waiting.get('message', '')}"
            yield text.rstrip(": ").rstrip(".")[:300]


def _listed(name: str, ordinals: Sequence[int]) -> str:
    said = ", ".join(workload.group_name(name, ordinal) for ordinal in ordinals[:_NAMED])
    return said + (f" and {len(ordinals) - _NAMED} more" if len(ordinals) > _NAMED else "")
