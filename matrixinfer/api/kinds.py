"""The kinds of resource that we read or write: how each is named and addressed.

`KINDS` is the registry that everything which takes manifests from outside looks a kind up in: the memory cluster,
directories of YAML, validation, the API server client. What a kind's objects look like is the business of the module
of its group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type: how it is named and addressed."""

    group: str  # "" for the core group
    version: str
    kind: str
    plural: str
    namespaced: bool = True
    status: bool = True  # has the status subresource
    scale: tuple[str, str, str] | None = (
        None  # paths of spec replicas, status replicas and selector: ".spec.replicas", ...
    )

    @property
    def api_version(self) -> str:
        """`group/version`, or `version` in the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


NETWORKING_GROUP: Final = "networking.matrixinfer.ai"
WORKLOAD_GROUP: Final = "workload.matrixinfer.ai"
OBJECTIVES_GROUP: Final = "llm-d.ai"
OLD_OBJECTIVES_GROUP: Final = "inference.networking.x-k8s.io"

POD: Final = Kind("", "v1", "Pod", "pods")
SERVICE: Final = Kind("", "v1", "Service", "services")
SECRET: Final = Kind("", "v1", "Secret", "secrets", status=False)
CONFIG_MAP: Final = Kind("", "v1", "ConfigMap", "configmaps", status=False)
NAMESPACE: Final = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
NODE: Final = Kind("", "v1", "Node", "nodes", namespaced=False)
EVENT: Final = Kind("events.k8s.io", "v1", "Event", "events", status=False)
LEASE: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases", status=False)
MODEL_SERVER: Final = Kind(NETWORKING_GROUP, "v1alpha1", "ModelServer", "modelservers")
MODEL_ROUTE: Final = Kind(NETWORKING_GROUP, "v1alpha1", "ModelRoute", "modelroutes")
ACCESS_POLICY: Final = Kind(NETWORKING_GROUP, "v1alpha1", "AccessPolicy", "accesspolicies")
EXTERNAL_MODEL_PROVIDER: Final = Kind(NETWORKING_GROUP, "v1alpha1", "ExternalModelProvider", "externalmodelproviders")
MODEL_INFER: Final = Kind(
    WORKLOAD_GROUP,
    "v1alpha1",
    "ModelInfer",
    "modelinfers",
    scale=(".spec.replicas", ".status.replicas", ".status.labelSelector"),
)
# llm-d's, who installs the CRDs: a cluster may serve either, both or none.
INFERENCE_OBJECTIVE: Final = Kind(OBJECTIVES_GROUP, "v1alpha2", "InferenceObjective", "inferenceobjectives")
OLD_INFERENCE_OBJECTIVE: Final = Kind(OLD_OBJECTIVES_GROUP, "v1alpha2", "InferenceObjective", "inferenceobjectives")
# What only controllers read or write; users have no manifests of these here.
CONTROLLER_REVISION: Final = Kind("apps", "v1", "ControllerRevision", "controllerrevisions", status=False)
CUSTOM_RESOURCE_DEFINITION: Final = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
VALIDATING_WEBHOOK_CONFIGURATION: Final = Kind(
    "admissionregistration.k8s.io",
    "v1",
    "ValidatingWebhookConfiguration",
    "validatingwebhookconfigurations",
    namespaced=False,
    status=False,
)
LEADER_WORKER_SET: Final = Kind("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet", "leaderworkersets")
VOLCANO_POD_GROUP: Final = Kind("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups")
IN_TREE_POD_GROUP: Final = Kind("scheduling.k8s.io", "v1alpha2", "PodGroup", "podgroups")

KINDS: Final[dict[tuple[str, str], Kind]] = {
    (kind.api_version, kind.kind): kind
    for kind in (
        POD,
        SERVICE,
        SECRET,
        CONFIG_MAP,
        NAMESPACE,
        NODE,
        EVENT,
        LEASE,
        MODEL_SERVER,
        MODEL_ROUTE,
        ACCESS_POLICY,
        EXTERNAL_MODEL_PROVIDER,
        MODEL_INFER,
        INFERENCE_OBJECTIVE,
        OLD_INFERENCE_OBJECTIVE,
    )
}
