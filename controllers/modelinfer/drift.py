"""What has been changed by others in what a ModelInfer owns, and is put right again. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matrixinfer.api import kinds, workload
from matrixinfer.cluster.plan import Apply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from controllers.modelinfer.shapes import Seen
    from matrixinfer.cluster.protocol import Manifest

LABELLER: Final = (
    "matrixinfer-modelinfer-labels"  # a manager of its own: it owns labels of pods and nothing else of them
)


def labels(owner: Manifest, seen: Iterable[Seen], pods: Mapping[str, Manifest]) -> Iterator[Apply]:
    """Give pods back the labels by which Services, ModelServers and people find them."""
    name = owner["metadata"]["name"]
    for pod in seen:
        if pod.leaving:
            continue
        key, meta = pod.instance, pods[pod.name]["metadata"]
        wanted = {
            workload.NAME_LABEL: name,
            workload.GROUP_LABEL: workload.group_name(name, key.group),
            workload.ROLE_LABEL: key.role,
            workload.ROLE_ID_LABEL: workload.role_id(key.role, key.index),
        }
        if pod.member == 0:
            wanted[workload.ENTRY_LABEL] = "true"
        if not wanted.items() <= meta.get("labels", {}).items():
            place = {"name": pod.name, "namespace": meta.get("namespace", ""), "uid": pod.uid, "labels": wanted}
            restored = {"apiVersion": kinds.POD.api_version, "kind": kinds.POD.kind, "metadata": place}
            yield Apply(kinds.POD, restored, manager=LABELLER)
