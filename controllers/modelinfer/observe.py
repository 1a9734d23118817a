"""Pods as the arithmetic sees them, read from their manifests. Pure.

A pod has failed if it has ended, or if a container has crashed since the pod was last ready. A restart of long ago does not
count again when readiness flaps later, and a pod that has never been ready is given a few restarts: nothing relied on it yet.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from controllers.modelinfer.shapes import InstanceKey, Seen
from matrixinfer.api import workload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matrixinfer.cluster.protocol import Manifest

COST_ANNOTATION: Final = "controller.kubernetes.io/pod-deletion-cost"
_PLACE: Final = re.compile(r"(0|[1-9][0-9]*)-([a-z][-a-z0-9]*)-(0|[1-9][0-9]*)-(0|[1-9][0-9]*)")
_SLACK_S: Final = 10.0  # by which a crash may be noted before the readiness that it ended
_STARTING_S: Final = 2.0  # a pod that has not been ready since so soon after its start never was
_STARTS: Final = 3  # restarts that a pod gets to become ready at all: its node makes the pauses between them


def seen(name: str, pod: Manifest) -> Seen | None:
    """Read a pod of the ModelInfer `name`; None if its name is not of the form that its pods have."""
    meta = pod["metadata"]
    place = _PLACE.fullmatch(meta["name"].removeprefix(f"{name}-"))
    if place is None:
        return None
    labels = meta.get("labels", {})
    status = pod.get("status") or {}
    ended = status.get("phase") in ("Failed", "Succeeded")
    created = moment(meta.get("creationTimestamp", ""))
    ready = {"status": "False"} | next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
    is_ready = ready["status"] == "True" and not ended
    since = max(moment(ready.get("lastTransitionTime", "")), created)
    return Seen(
        name=meta["name"],
        uid=meta.get("uid", ""),
        instance=InstanceKey(int(place[1]), place[2], int(place[3])),
        member=int(place[4]),
        revision=labels.get(workload.REVISION_LABEL, ""),
        hash=labels.get(workload.ROLE_HASH_LABEL, ""),
        ready=is_ready,
        leaving="deletionTimestamp" in meta,
        ended=ended,
        failed_at=None
        if is_ready
        else _failed_at(status, since, started=max(moment(status.get("startTime", "")), created), ended=ended),
        created=created,
        cost=_cost(meta.get("annotations", {}).get(COST_ANNOTATION, "0")),
    )


def moment(text: str) -> float:
    """Read a time as the API writes it; 0 if there is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


def _failed_at(status: Manifest, since: float, *, started: float, ended: bool) -> float | None:
    """Say since when a pod that is not ready has failed; None if it is only not ready yet, or not for now."""
    crashes = [crash for crash in _crashes(status) if crash[0] >= since - _SLACK_S]
    if ended:
        return max((at for at, _ in crashes), default=since)
    if not crashes:
        return None
    never_ready = since <= started + _STARTING_S
    if never_ready and max(restarts for _, restarts in crashes) < _STARTS:
        return None
    # Of many restarts only the last is known: the pod has failed since it was not ready any more.
    return since if max(restarts for _, restarts in crashes) > 1 else max(at for at, _ in crashes)


def _crashes(status: Manifest) -> Iterator[tuple[float, int]]:
    """Give the last end of each container that shall run and does not, or has run before, and its restarts."""
    for member in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(member, ()):
            for state in (container.get("state") or {}, container.get("lastState") or {}):
                over: dict[str, Any] = state.get("terminated") or {}
                if over and (member == "containerStatuses" or over.get("exitCode")):
                    yield moment(over.get("finishedAt", "")), container.get("restartCount", 0)


def _cost(text: str) -> int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,10}", text) else 0
