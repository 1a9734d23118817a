"""LeaderWorkerSets, and their CRD of the fields and types of `leaderworkerset.x-k8s.io/v1` as far as they are read."""

from __future__ import annotations

from matrixinfer.api import kinds

NUMBER = {"type": "integer", "format": "int32"}
SHARE = {"x-kubernetes-int-or-string": True}
FREE = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
STRING = {"type": "string"}


def a_set(*, size=2, name="demo", replicas=1, metadata=None, **fields):
    """Give a set; what is not a field of leaderWorkerTemplate is one of the spec."""
    inner = {"leaderTemplate", "workerTemplate", "restartPolicy", "subGroupPolicy", "volumeClaimTemplates"}
    template = {"size": size, "workerTemplate": a_template()} | {k: v for k, v in fields.items() if k in inner}
    return {
        "apiVersion": kinds.LEADER_WORKER_SET.api_version,
        "kind": kinds.LEADER_WORKER_SET.kind,
        "metadata": {"name": name, "namespace": "default"} | (metadata or {}),
        "spec": {"replicas": replicas, "leaderWorkerTemplate": template}
        | {key: value for key, value in fields.items() if key not in inner},
    }


def a_template(image="sim:1", **metadata):
    made = {"spec": {"containers": [{"name": "engine", "image": image}]}}
    return made | ({"metadata": metadata} if metadata else {})


def the_crd():
    kind = kinds.LEADER_WORKER_SET
    spec = {
        "replicas": NUMBER | {"default": 1},
        "startupPolicy": {"type": "string", "default": "LeaderCreated"},
        "networkConfig": FREE,
        "rolloutStrategy": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "default": "RollingUpdate"},
                "rollingUpdateConfiguration": {
                    "type": "object",
                    "properties": {
                        "maxUnavailable": SHARE | {"default": 1},
                        "maxSurge": SHARE | {"default": 0},
                        "partition": NUMBER | {"default": 0},
                    },
                },
            },
            "default": {"type": "RollingUpdate", "rollingUpdateConfiguration": {}},
        },
        "leaderWorkerTemplate": {
            "type": "object",
            "properties": {
                "leaderTemplate": FREE,
                "workerTemplate": FREE,
                "size": NUMBER | {"default": 1},
                "restartPolicy": {"type": "string", "default": "RecreateGroupOnPodRestart"},
                "subGroupPolicy": FREE,
            },
        },
    }
    condition = dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), STRING)
    status = {
        "replicas": NUMBER,
        "readyReplicas": NUMBER,
        "updatedReplicas": NUMBER,
        "hpaPodSelector": STRING,
        "conditions": {"type": "array", "items": {"type": "object", "properties": condition}},
    }
    schema = {
        "type": "object",
        "properties": {
            "spec": {"type": "object", "properties": spec},
            "status": {"type": "object", "properties": status},
        },
    }
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.hpaPodSelector",
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}, "scale": scale},
    }
    names = {"kind": kind.kind, "listKind": f"{kind.kind}List", "plural": kind.plural, "singular": "leaderworkerset"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "scope": "Namespaced",
            "names": names | {"shortNames": ["lws"]},
            "versions": [version],
        },
    }
