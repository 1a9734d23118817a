"""A LeaderWorkerSet (`leaderworkerset.x-k8s.io/v1`) as a ModelInfer. Pure: a manifest in, another out.

One group is one replica, with one role of one instance: the leader is its entry pod, the other pods its workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import kinds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixinfer.api.meta import Manifest

ROLE: Final = "default"
_PLUGIN: Final = "lws-standard-labels"
_EXCLUSIVE: Final = "leaderworkerset.sigs.k8s.io/exclusive-topology"
_RECREATES: Final = ("RecreateGroupOnPodRestart", "RecreateGroupAfterStart")
_ROLLING: Final = ("maxUnavailable", "maxSurge", "partition")
# What LeaderWorkerSet tells its pods, by what ModelInfer tells them.
_ENV: Final = {
    "LWS_LEADER_ADDRESS": "$(ENTRY_ADDRESS)",
    "LWS_GROUP_SIZE": "$(GROUP_SIZE)",
    "LWS_WORKER_INDEX": "$(WORKER_INDEX)",
}


def model_infer(lws: Manifest) -> Manifest:
    """Build the ModelInfer that runs it."""
    meta, spec = lws["metadata"], lws["spec"]
    template = spec.get("leaderWorkerTemplate") or {}
    worker = template.get("workerTemplate") or {}
    role: Manifest = {
        "name": ROLE,
        "replicas": 1,
        "entryTemplate": _told(template.get("leaderTemplate") or worker),
        "workerReplicas": size(lws) - 1,
    }
    if size(lws) > 1:
        role["workerTemplate"] = _told(worker)
    made: Manifest = {
        "replicas": spec.get("replicas", 1),
        "plugins": [{"name": _PLUGIN}],
        "template": {"roles": [role]},
        "recoveryPolicy": "InferGroupRecreate" if _restarts(lws) in _RECREATES else "None",
    }
    rolling = (spec.get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or {}
    if rolling:
        given = {name: rolling[name] for name in _ROLLING if name in rolling}
        made["rolloutStrategy"] = {"type": "InferGroupRollingUpdate", "rollingUpdateConfiguration": given}
    named = {"name": meta["name"], "namespace": meta.get("namespace", ""), "ownerReferences": [_owned_by(lws)]}
    if meta.get("labels"):
        named["labels"] = dict(meta["labels"])
    return {
        "apiVersion": kinds.MODEL_INFER.api_version,
        "kind": kinds.MODEL_INFER.kind,
        "metadata": named,
        "spec": made,
    }


def size(lws: Manifest) -> int:
    """Give the pods of a group."""
    return int((lws["spec"].get("leaderWorkerTemplate") or {}).get("size") or 1)


def unheeded(lws: Manifest) -> list[str]:
    """Name the fields that are set and have no effect here."""
    spec = lws["spec"]
    template, network = spec.get("leaderWorkerTemplate") or {}, spec.get("networkConfig") or {}
    found = []
    if spec.get("startupPolicy") == "LeaderReady":
        found.append("spec.startupPolicy LeaderReady: leaders and workers are made together")
    if network.get("subdomainPolicy") == "UniquePerReplica":
        found.append("spec.networkConfig.subdomainPolicy: every leader has a Service of its own")
    if template.get("subGroupPolicy"):
        found.append("spec.leaderWorkerTemplate.subGroupPolicy")
    if template.get("volumeClaimTemplates"):
        found.append("spec.leaderWorkerTemplate.volumeClaimTemplates")
    if _EXCLUSIVE in (lws["metadata"].get("annotations") or {}):
        found.append(f"the annotation {_EXCLUSIVE}: write networkTopology of a ModelInfer")
    return found


def status(infer: Manifest | None) -> dict[str, Any]:
    """Give the status of the set, from that of its ModelInfer."""
    seen = (infer or {}).get("status") or {}
    return {
        "replicas": seen.get("replicas", 0),
        "readyReplicas": seen.get("availableReplicas", 0),
        "updatedReplicas": seen.get("updatedReplicas", 0),
        "hpaPodSelector": seen.get("labelSelector", ""),
        "conditions": [
            {key: one[key] for key in ("type", "status", "reason", "message", "lastTransitionTime")}
            for one in seen.get("conditions", ())
        ],
    }


def _restarts(lws: Manifest) -> str:
    policy = (lws["spec"].get("leaderWorkerTemplate") or {}).get("restartPolicy")
    return policy or _RECREATES[0]


def _told(template: Mapping[str, Any]) -> Manifest:
    """Give a pod template in which containers have LeaderWorkerSet's variables, first, so that others may refer to them."""
    spec = dict(template.get("spec") or {})
    ours = [{"name": name, "value": value} for name, value in _ENV.items()]
    for member in ("initContainers", "containers"):
        if member in spec:
            spec[member] = [
                one | {"env": [*ours, *(env for env in one.get("env") or () if env["name"] not in _ENV)]}
                for one in spec[member]
            ]
    around = template.get("metadata") or {}
    kept = {name: around[name] for name in ("labels", "annotations") if around.get(name)}
    return {"metadata": kept, "spec": spec} if kept else {"spec": spec}


def _owned_by(lws: Manifest) -> Manifest:
    return {
        "apiVersion": kinds.LEADER_WORKER_SET.api_version,
        "kind": kinds.LEADER_WORKER_SET.kind,
        "name": lws["metadata"]["name"],
        "uid": lws["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
