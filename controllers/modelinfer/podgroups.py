"""PodGroups of a ModelInfer's groups: which are made, changed and removed, and whose pods can join theirs. Pure.

Volcano's can be changed. The API server's own cannot, and stands until the last pod that names it is gone: a group whose numbers
change keeps the one it began with, and gets another when it begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from controllers.modelinfer.gangs import Served
from matrixinfer.api import workload
from matrixinfer.cluster.manifest import differs
from matrixinfer.cluster.plan import Apply, Delete

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controllers.modelinfer.gangs import Gang
    from controllers.modelinfer.revisions import Revision
    from matrixinfer.cluster.protocol import Manifest


@dataclass(frozen=True, slots=True)
class PodGroups:
    """What is written, and what becomes of pods that are to be made meanwhile."""

    writes: tuple[Apply | Delete, ...] = ()
    waiting: frozenset[int] = frozenset()  # groups whose PodGroup has to go first
    alone: frozenset[int] = frozenset()  # groups whose PodGroup asks for more pods than they have now


def decide(
    owner: Manifest,
    gang: Gang,
    groups: Mapping[int, Revision | None],
    *,
    standing: Iterable[Manifest],
    inhabited: set[int],
) -> PodGroups:
    """Compare what stands with what the groups need at their revisions (None: forgotten, so that its PodGroup stays).

    `inhabited` are groups of which there are pods, going ones too.
    """
    kind = gang.served.kind
    if kind is None:
        return PodGroups()
    there = {one["metadata"]["name"]: one for one in standing}
    writes: list[Apply | Delete] = []
    waiting, alone = set(), set()
    for ordinal, revision in groups.items() if gang.used else ():
        stands = there.pop(workload.group_name(owner["metadata"]["name"], ordinal), None)
        if revision is None:
            continue
        wanted = gang.pod_group(owner, ordinal, revision)
        if stands is None or (gang.served is not Served.IN_TREE and differs(wanted, stands)):
            writes.append(Apply(kind, wanted))
        elif gang.served is Served.IN_TREE:
            if ordinal not in inhabited and (_going(stands) or differs(wanted["spec"], stands["spec"])):
                waiting.add(ordinal)
                writes += _removed(gang, stands)
            elif _asks_for(stands) > sum(role.replicas * role.pods for role in revision.shape.roles):
                alone.add(ordinal)
    for one in there.values():
        writes += _removed(gang, one)
    return PodGroups(tuple(writes), frozenset(waiting), frozenset(alone))


def _removed(gang: Gang, one: Manifest) -> list[Delete]:
    kind, meta = gang.served.kind, one["metadata"]
    if kind is None or _going(one):
        return []
    return [Delete(kind, meta["name"], meta.get("namespace", ""), uid=meta.get("uid"))]


def _going(one: Manifest) -> bool:
    return "deletionTimestamp" in one["metadata"]


def _asks_for(one: Manifest) -> int:
    policy = one["spec"].get("schedulingPolicy") or {}
    return int((policy.get("gang") or {}).get("minCount", 0))
