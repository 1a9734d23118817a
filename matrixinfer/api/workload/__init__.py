"""`workload.matrixinfer.ai/v1alpha1`: ModelInfer, the pods that serve a model: replicated groups of roles of pods.

The one source for this kind: the CRD, the checks of webhook, command line and directories, and the reference page are
generated from the fields, bounds, defaults and `RULES` here.
"""

from __future__ import annotations

from matrixinfer.api.workload.amounts import Amount, resolve_down, resolve_up
from matrixinfer.api.workload.model_infer import (
    ModelInfer,
    ModelInferSpec,
    ModelInferStatus,
    RoleStatus,
    RollingUpdate,
    RolloutStrategy,
    Template,
)
from matrixinfer.api.workload.names import (
    ENTRY_LABEL,
    GROUP_LABEL,
    NAME_LABEL,
    REVISION_LABEL,
    ROLE_HASH_LABEL,
    ROLE_ID_LABEL,
    ROLE_LABEL,
    group_name,
    pod_name,
    role_id,
)
from matrixinfer.api.workload.placement import (
    GangPolicy,
    GangSchedule,
    NetworkTopology,
    NetworkTopologyPolicy,
    Plugin,
    TopologySpread,
)
from matrixinfer.api.workload.preview import pods_of
from matrixinfer.api.workload.roles import PodTemplate, Role

__all__ = [
    "ENTRY_LABEL",
    "GROUP_LABEL",
    "NAME_LABEL",
    "REVISION_LABEL",
    "ROLE_HASH_LABEL",
    "ROLE_ID_LABEL",
    "ROLE_LABEL",
    "Amount",
    "GangPolicy",
    "GangSchedule",
    "ModelInfer",
    "ModelInferSpec",
    "ModelInferStatus",
    "NetworkTopology",
    "NetworkTopologyPolicy",
    "Plugin",
    "PodTemplate",
    "Role",
    "RoleStatus",
    "RollingUpdate",
    "RolloutStrategy",
    "Template",
    "TopologySpread",
    "group_name",
    "pod_name",
    "pods_of",
    "resolve_down",
    "resolve_up",
    "role_id",
]
