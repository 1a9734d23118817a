"""What users of a ModelInfer are told as it happens: one Event for each role and thing done, however many pods it is about. Pure.

What takes the place of what an update has taken away follows from that, and is not told beside it: two Events for each step of a rollout
would be twice the writes and no more news. A status that has been written since begins a new tale.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import workload
from matrixinfer.cluster.plan import Emit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from controllers.modelinfer.plan import Steps
    from controllers.modelinfer.shapes import InstanceKey, Wanted
    from matrixinfer.cluster.protocol import Manifest

RUNNING: Final = "RoleRunning"
_NAMED: Final = 5  # instances that a message names
_WHY: Final = {"Update": "for the update", "ScaleDown": "to scale down", "Recovery": "to recover"}


def told(manifest: Manifest, wanted: Wanted, steps: Steps, counts: Mapping[str, Any]) -> Iterator[Emit]:
    """Give the Events about these steps, and about roles of which every instance has become ready."""
    name = manifest["metadata"]["name"]
    planned = [removal for removal in steps.delete if removal.reason != "Recovery"]
    for role, keys in _by_role(removal.pod.instance for removal in planned).items():
        reasons = {removal.reason for removal in planned if removal.pod.instance.role == role}
        why = ", ".join(sorted(_WHY[reason] for reason in reasons))
        yield Emit(manifest, "RoleDeleting", f"Deleting {why}: {_listed(name, role, keys)}")
    for removal in {removal.message: removal for removal in steps.delete if removal.reason == "Recovery"}.values():
        key = removal.pod.instance
        where = f"{workload.role_id(key.role, key.index)} of {workload.group_name(name, key.group)}"
        what = "the group" if wanted.recovery == "InferGroupRecreate" else where
        yield Emit(manifest, "Recovering", f"{_capital(removal.message)}: {what} is made anew", "Warning")
    there = {role["name"]: role["replicas"] for role in counts["roles"]}
    status = manifest.get("status") or {}
    updating = status.get("currentRevision", "") not in ("", wanted.update.revision)
    for role, keys in _by_role(place.instance for place in steps.create).items():
        if not updating or there.get(role, 0) + len(keys) > _all_of(wanted, role):
            yield Emit(manifest, "RoleCreating", f"Creating {_listed(name, role, keys)}")
    before = {role["name"]: role for role in status.get("roles", ())}
    for role in counts["roles"]:
        if _whole(wanted, role) and not _whole(wanted, before.get(role["name"], {})):
            yield Emit(manifest, RUNNING, f"Role {role['name']}: all {role['readyReplicas']} instances are ready")


def _all_of(wanted: Wanted, role: str) -> int:
    shape = wanted.update.role(role)
    return 0 if shape is None else shape.replicas * wanted.replicas


def _whole(wanted: Wanted, role: Mapping[str, Any]) -> bool:
    name = role.get("name", "")
    return wanted.update.role(name) is not None and role["readyReplicas"] >= max(_all_of(wanted, name), 1)


def _by_role(keys: Iterable[InstanceKey]) -> dict[str, list[InstanceKey]]:
    found: defaultdict[str, dict[InstanceKey, None]] = defaultdict(dict)
    for key in keys:
        found[key.role][key] = None
    return {role: sorted(listed) for role, listed in found.items()}


def _listed(name: str, role: str, keys: list[InstanceKey]) -> str:
    some = ", ".join(
        f"{workload.role_id(role, key.index)} of {workload.group_name(name, key.group)}" for key in keys[:_NAMED]
    )
    return some + (f" and {len(keys) - _NAMED} more of role {role}" if len(keys) > _NAMED else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
