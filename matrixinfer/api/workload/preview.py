"""What pods a ModelInfer will have, as far as selectors see them: for checks of manifests before any pod is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matrixinfer.api import core, meta
from matrixinfer.api.workload import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixinfer.api.workload.model_infer import ModelInfer
    from matrixinfer.api.workload.roles import Role


def pods_of(model_infer: ModelInfer) -> Iterator[core.Pod]:
    """Give the entry pod of each role of the first group, and a worker where there are some."""
    if model_infer.spec.replicas == 0:
        return
    for role in model_infer.spec.template.roles:
        for member in range(min(role.worker_replicas, 1) + 1 if role.replicas else 0):
            yield _pod(model_infer, role, member)


def _pod(model_infer: ModelInfer, role: Role, member: int) -> core.Pod:
    name = model_infer.metadata.name
    template = role.worker_template if member and role.worker_template else role.entry_template
    labels = template.metadata.labels | {
        names.NAME_LABEL: name,
        names.GROUP_LABEL: names.group_name(name, 0),
        names.ROLE_LABEL: role.name,
        names.ROLE_ID_LABEL: names.role_id(role.name, 0),
    }
    if member == 0:
        labels[names.ENTRY_LABEL] = "true"
    placed = meta.ObjectMeta(
        name=names.pod_name(name, 0, role.name, 0, member), namespace=model_infer.metadata.namespace, labels=labels
    )
    return core.Pod(metadata=placed, spec=template.spec)
