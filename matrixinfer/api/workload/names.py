"""How the parts of a ModelInfer are named and labelled: groups, role instances, pods. Clients and dashboards rely on it."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "modelinfer.matrixinfer.ai/"

NAME_LABEL: Final = f"{PREFIX}name"  # of the ModelInfer
GROUP_LABEL: Final = f"{PREFIX}group-name"
ROLE_LABEL: Final = f"{PREFIX}role"
ROLE_ID_LABEL: Final = f"{PREFIX}role-id"  # of the role's instance, within its group
ENTRY_LABEL: Final = f"{PREFIX}entry"  # "true" on the pod of an instance that requests go to
REVISION_LABEL: Final = f"{PREFIX}revision"
ROLE_HASH_LABEL: Final = f"{PREFIX}role-template-hash"


def group_name(model_infer: str, group: int) -> str:
    """Name of a group, and of its PodGroup."""
    return f"{model_infer}-{group}"


def role_id(role: str, index: int) -> str:
    """Name of a role's instance within its group."""
    return f"{role}-{index}"


def pod_name(model_infer: str, group: int, role: str, index: int, member: int) -> str:
    """Name of a pod; member 0 is the entry, and its name is that of the instance's Service."""
    return f"{model_infer}-{group}-{role}-{index}-{member}"
