"""Gang scheduling: a group's pods are placed together or not at all. Pure.

Volcano's PodGroup is used where Volcano is installed and schedules the pods. The API server's own PodGroup
(`scheduling.k8s.io/v1alpha2`, feature gates GenericWorkload and GangScheduling) is used with any other scheduler, where it is
served and a `gangPolicy` asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from controllers.modelinfer import children, quantities
from matrixinfer.api import kinds, workload

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from controllers.modelinfer.revisions import Revision
    from controllers.modelinfer.shapes import InstanceKey
    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.protocol import Manifest

VOLCANO: Final = "volcano"
QUEUE_ANNOTATION: Final = "scheduling.volcano.sh/queue-name"
_GROUP_ANNOTATION: Final = "scheduling.k8s.io/group-name"
_TASK_ANNOTATION: Final = "volcano.sh/task-spec"


class Served(Enum):
    """What a cluster offers to schedule gangs with."""

    NOTHING = "nothing"
    VOLCANO = "Volcano with subGroupPolicy: 1.14 and newer"
    OLD_VOLCANO = "Volcano without"
    IN_TREE = "the API server's own PodGroups"

    @property
    def is_volcano(self) -> bool:
        """True for any Volcano."""
        return self in (Served.VOLCANO, Served.OLD_VOLCANO)

    @property
    def kind(self) -> Kind | None:
        """The kind of its PodGroups."""
        if self is Served.NOTHING:
            return None
        return kinds.VOLCANO_POD_GROUP if self.is_volcano else kinds.IN_TREE_POD_GROUP


@dataclass(frozen=True, slots=True)
class Gang:
    """How the groups of one ModelInfer are scheduled."""

    served: Served
    used: bool  # PodGroups are made
    spec: workload.ModelInferSpec

    @classmethod
    def of(cls, spec: workload.ModelInferSpec, served: Served) -> Gang:
        """Tell whether PodGroups are made for a ModelInfer."""
        if served.is_volcano:
            used = spec.scheduler_name in (None, VOLCANO)
        else:
            used = served is Served.IN_TREE and spec.template.min_role_replicas is not None
            used = used and spec.scheduler_name != VOLCANO
        return cls(served, used, spec)

    def unused(self) -> Gang:
        """Give the same for pods that no PodGroup is for."""
        return replace(self, used=False)

    @property
    def problem(self) -> str:
        """Say what is asked for and cannot be had; "" if all can."""
        asked, name = self.spec.template, self.spec.scheduler_name
        if name == VOLCANO and not self.served.is_volcano:
            return (
                "Volcano is not installed, and nothing else takes pods of schedulerName volcano: "
                "install it, or leave schedulerName out"
            )
        if asked.min_role_replicas is not None and not self.used:
            return (
                "gangPolicy has no effect without Volcano or PodGroups of scheduling.k8s.io/v1alpha2: install Volcano"
            )
        topology = asked.network_topology
        if (asked.group_topology is not None or topology is not None) and not (self.served.is_volcano and self.used):
            return "networkTopology has no effect without Volcano: install it, and leave schedulerName out"
        if topology is not None and topology.role_policy is not None and self.served is Served.OLD_VOLCANO:
            return "networkTopology.rolePolicy has no effect with this Volcano: install 1.14 or newer"
        return ""

    def annotations(self, name: str, key: InstanceKey) -> dict[str, str]:
        """Give the annotations of a pod by which its scheduler knows the PodGroup."""
        if not (self.used and self.served.is_volcano):
            return {}
        return {
            _GROUP_ANNOTATION: workload.group_name(name, key.group),
            _TASK_ANNOTATION: workload.role_id(key.role, key.index),
        }

    def pod_fields(self, name: str, key: InstanceKey, scheduler: str | None) -> dict[str, Any]:
        """Give the fields of a pod's spec that say who schedules it, and with whom."""
        fields: dict[str, Any] = {}
        if scheduler or (self.used and self.served.is_volcano):
            fields["schedulerName"] = scheduler or VOLCANO
        if self.used and self.served is Served.IN_TREE:
            fields["schedulingGroup"] = {"podGroupName": workload.group_name(name, key.group)}
        return fields

    def pod_group(self, owner: Manifest, ordinal: int, revision: Revision) -> Manifest:
        """Build the PodGroup of a group."""
        kind = self.served.kind
        if kind is None:
            raise TypeError("no PodGroups are served")
        meta = owner["metadata"]
        name = workload.group_name(meta["name"], ordinal)
        made: Manifest = {
            "apiVersion": kind.api_version,
            "kind": kind.kind,
            "metadata": {
                "name": name,
                "namespace": meta.get("namespace", ""),
                "labels": {workload.NAME_LABEL: meta["name"], workload.GROUP_LABEL: name},
                "ownerReferences": [children.owned_by(owner)],
            },
        }
        if self.served is Served.IN_TREE:
            made["spec"] = {"schedulingPolicy": {"gang": {"minCount": self._least_pods(revision)}}}
            return made
        made["metadata"]["annotations"] = {_GROUP_ANNOTATION: name}
        made["spec"] = self._volcano_spec(meta, revision)
        return made

    def _volcano_spec(self, meta: Mapping[str, Any], revision: Revision) -> dict[str, Any]:
        spec: dict[str, Any] = {"minMember": self._least_pods(revision)}
        resources = self._least_resources(revision)
        if resources:
            spec["minResources"] = resources
        queue = meta.get("annotations", {}).get(QUEUE_ANNOTATION)
        if queue:
            spec["queue"] = queue
        if self.spec.template.group_topology is not None:
            spec["networkTopology"] = _topology(self.spec.template.group_topology)
        if self.served is Served.VOLCANO:
            spec["subGroupPolicy"] = [
                self._sub_group(meta["name"], role.name, role.pods, least) for role, least in self._least(revision)
            ]
        else:
            spec["minTaskMember"] = {
                workload.role_id(role.name, index): role.pods
                for role, least in self._least(revision)
                for index in range(least)
            }
        return spec

    def _sub_group(self, name: str, role: str, pods: int, least: int) -> dict[str, Any]:
        policy: dict[str, Any] = {
            "name": role,
            "labelSelector": {"matchLabels": {workload.NAME_LABEL: name, workload.ROLE_LABEL: role}},
            "matchLabelKeys": [workload.ROLE_ID_LABEL],
            "subGroupSize": pods,
            "minSubGroups": least,
        }
        topology = self.spec.template.network_topology
        if topology is not None and topology.role_policy is not None:
            policy["networkTopology"] = _topology(topology.role_policy)
        return policy

    def _least(self, revision: Revision) -> Sequence[tuple[Any, int]]:
        """Give the roles of the group, each with the instances that are placed together."""
        asked = self.spec.template.min_role_replicas or {}
        return [(role, min(asked.get(role.name, role.replicas), role.replicas)) for role in revision.shape.roles]

    def _least_pods(self, revision: Revision) -> int:
        return sum(role.pods * least for role, least in self._least(revision))

    def _least_resources(self, revision: Revision) -> dict[str, str]:
        """Sum what the scheduler must find; nothing if an amount cannot be read: the API server will refuse its pods."""
        try:
            return quantities.written(quantities.total(self._asked(revision)))
        except ValueError:
            return {}

    def _asked(self, revision: Revision) -> Iterator[tuple[quantities.Resources, int]]:
        for role, least in self._least(revision):
            raw = revision.role(role.name)
            yield quantities.of_pod(raw["entryTemplate"]["spec"]), least
            if role.pods > 1:
                yield quantities.of_pod(raw["workerTemplate"]["spec"]), least * (role.pods - 1)


def _topology(topology: workload.NetworkTopology) -> dict[str, Any]:
    return topology.model_dump(by_alias=True, exclude_none=True)
