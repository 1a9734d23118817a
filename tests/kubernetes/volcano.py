"""Volcano's PodGroup as an API server sees it: its CRD, of the fields and types of `scheduling.volcano.sh/v1beta1`, and nothing behind it."""

from __future__ import annotations

INTEGER = {"type": "integer", "format": "int32"}
STRING = {"type": "string"}
NUMBERS = {"type": "object", "additionalProperties": INTEGER}
AMOUNTS = {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True}}
SELECTOR = {
    "type": "object",
    "properties": {
        "matchLabels": {"type": "object", "additionalProperties": STRING},
        "matchExpressions": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["key", "operator"],
                "properties": {"key": STRING, "operator": STRING, "values": {"type": "array", "items": STRING}},
            },
        },
    },
}
TOPOLOGY = {
    "type": "object",
    "properties": {
        "mode": {"type": "string", "enum": ["hard", "soft"], "default": "hard"},
        "highestTierAllowed": {"type": "integer"},
        "highestTierName": STRING,
    },
}
SUB_GROUPS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": STRING,
            "labelSelector": SELECTOR,
            "matchLabelKeys": {"type": "array", "items": STRING, "x-kubernetes-list-type": "set"},
            "subGroupSize": INTEGER,
            "minSubGroups": INTEGER,
            "networkTopology": TOPOLOGY,
        },
    },
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
}
SPEC = {
    "minMember": INTEGER,
    "minTaskMember": NUMBERS,
    "minResources": AMOUNTS,
    "queue": {"type": "string", "default": "default"},
    "priorityClassName": STRING,
    "networkTopology": TOPOLOGY,
}


def pod_group_crd(*, sub_groups: bool) -> dict:
    """Give the CRD of Volcano 1.14 and newer, or of an older one."""
    spec = SPEC | ({"subGroupPolicy": SUB_GROUPS} if sub_groups else {})
    status = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": {"type": "object", "properties": spec}, "status": status}}
    version = {"name": "v1beta1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "podgroups.scheduling.volcano.sh"},
        "spec": {
            "group": "scheduling.volcano.sh",
            "scope": "Namespaced",
            "names": {"kind": "PodGroup", "listKind": "PodGroupList", "plural": "podgroups", "singular": "podgroup"},
            "versions": [version],
        },
    }
