"""Builders of what a ModelInfer owns: its pods and the headless Services by which workers find their entry. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from controllers.modelinfer import plugins
from matrixinfer.api import kinds, workload

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controllers.modelinfer.gangs import Gang
    from controllers.modelinfer.revisions import Revision
    from controllers.modelinfer.shapes import InstanceKey, Place
    from matrixinfer.cluster.protocol import Manifest

ENTRY_ADDRESS: Final = "ENTRY_ADDRESS"
WORKER_INDEX: Final = "WORKER_INDEX"
GROUP_SIZE: Final = "GROUP_SIZE"


def pod(owner: Manifest, place: Place, revision: Revision, gang: Gang) -> Manifest:
    """Build a pod. What the template says comes first, then plugins, and what clients and controllers rely on last."""
    meta, spec = owner["metadata"], revision.spec
    key, role = place.instance, revision.role(place.instance.role)
    template = role["workerTemplate"] if place.member else role["entryTemplate"]
    around = template.get("metadata", {})
    made: Manifest = {
        "apiVersion": kinds.POD.api_version,
        "kind": kinds.POD.kind,
        "metadata": {
            "labels": dict(around.get("labels", {})),
            "annotations": dict(around.get("annotations", {})),
        },
        "spec": _one_alias_per_address(template["spec"]),
    }
    seat = plugins.Seat(meta["name"], key.group, key.role, place.member)
    made = plugins.applied(spec["plugins"], made, seat)
    annotations = made["metadata"]["annotations"] | gang.annotations(meta["name"], key)
    named = {
        "name": workload.pod_name(meta["name"], key.group, key.role, key.index, place.member),
        "namespace": meta.get("namespace", ""),
        "labels": made["metadata"]["labels"] | pod_labels(owner, place, revision),
        "ownerReferences": [owned_by(owner)],
    }
    if annotations:
        named["annotations"] = annotations
    made["metadata"] = named
    made["spec"] = plugins.with_env(made["spec"], _env(owner, place, 1 + role["workerReplicas"]), first=True)
    made["spec"] |= gang.pod_fields(meta["name"], key, spec["schedulerName"])
    _spread(made["spec"], spec["topologySpreadConstraints"], meta["name"])
    return made


def service(owner: Manifest, key: InstanceKey) -> Manifest:
    """Build the headless Service of an instance: its name is the entry pod's, and leads there before that is ready."""
    meta = owner["metadata"]
    labels = _instance_labels(owner, key)
    selector = {name: labels[name] for name in (workload.GROUP_LABEL, workload.ROLE_LABEL, workload.ROLE_ID_LABEL)}
    return {
        "apiVersion": kinds.SERVICE.api_version,
        "kind": kinds.SERVICE.kind,
        "metadata": {
            "name": workload.pod_name(meta["name"], key.group, key.role, key.index, 0),
            "namespace": meta.get("namespace", ""),
            "labels": labels,
            "ownerReferences": [owned_by(owner)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector | {workload.ENTRY_LABEL: "true"},
        },
    }


def has_service(revision: Revision, role: str) -> bool:
    """Tell whether instances of the role have a Service."""
    return revision.shape.role(role) is not None and "workerTemplate" in revision.role(role)


def owned_by(owner: Manifest) -> Manifest:
    """Build the reference by which the API server deletes what belongs to a ModelInfer after it."""
    return {
        "apiVersion": kinds.MODEL_INFER.api_version,
        "kind": kinds.MODEL_INFER.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def pod_labels(owner: Manifest, place: Place, revision: Revision) -> dict[str, str]:
    """Give the labels that are the controller's."""
    role = revision.shape.role(place.instance.role)
    labels = _instance_labels(owner, place.instance) | {workload.REVISION_LABEL: revision.name}
    if role is not None:
        labels[workload.ROLE_HASH_LABEL] = role.hash
    if place.member == 0:
        labels[workload.ENTRY_LABEL] = "true"
    return labels


def _instance_labels(owner: Manifest, key: InstanceKey) -> dict[str, str]:
    name = owner["metadata"]["name"]
    return {
        workload.NAME_LABEL: name,
        workload.GROUP_LABEL: workload.group_name(name, key.group),
        workload.ROLE_LABEL: key.role,
        workload.ROLE_ID_LABEL: workload.role_id(key.role, key.index),
    }


def _env(owner: Manifest, place: Place, size: int) -> list[dict[str, str]]:
    meta, key = owner["metadata"], place.instance
    entry = workload.pod_name(meta["name"], key.group, key.role, key.index, 0)
    return [
        {"name": GROUP_SIZE, "value": str(size)},
        {"name": ENTRY_ADDRESS, "value": f"{entry}.{meta.get('namespace', '')}"},
        {"name": WORKER_INDEX, "value": str(place.member)},
    ]


def _spread(spec: dict[str, Any], constraints: Iterable[Mapping[str, Any]], name: str) -> None:
    """Add the ModelInfer's constraints to those of the pod, which win where both are about the same."""
    own = spec.get("topologySpreadConstraints", [])
    told = {(one.get("topologyKey"), one.get("whenUnsatisfiable")) for one in own}
    selector: dict[str, Any] = {"labelSelector": {"matchLabels": {workload.NAME_LABEL: name}}}
    added = [selector | dict(one) for one in constraints if (one["topologyKey"], one["whenUnsatisfiable"]) not in told]
    if added:
        spec["topologySpreadConstraints"] = [*own, *added]


def _one_alias_per_address(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Gather the names of each address: the API server keys the list by it, and takes no address twice in an apply."""
    made = dict(spec)
    if "hostAliases" in made:
        names: dict[str, list[str]] = {}
        for alias in made["hostAliases"]:
            names.setdefault(alias["ip"], []).extend(alias.get("hostnames", ()))
        made["hostAliases"] = [{"ip": ip, "hostnames": hosts} for ip, hosts in names.items()]
    return made
