"""Events as users see them (events.k8s.io/v1): the same thing again is counted, and written only now and then. Pure.

The first time makes the Event, the second its series, and from then on the count is written once in a while, so that a
reconcile that fails every second does not fill the API server.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from matrixinfer.api import kinds

if TYPE_CHECKING:
    from matrixinfer.cluster.plan import Emit
    from matrixinfer.cluster.protocol import Manifest

_LONGEST_NOTE: Final = 1024  # the API's bounds
_LONGEST_NAME: Final = 253
_EVERY_S: Final = 60.0
_KEPT: Final = 4096  # events that are remembered; of one that is not the count begins with what the cluster has


@dataclass(slots=True)
class _Told:
    """What has been said before."""

    event: Manifest
    count: int
    written_at: float


class Recorder:
    """Turns what a controller says into Events to write."""

    def __init__(self, controller: str) -> None:
        self._controller = controller
        self._told: OrderedDict[str, _Told] = OrderedDict()

    def record(self, emit: Emit, now: float) -> Manifest | None:
        """Return the Event to create, or the one to write anew if it has a `series`; None: nothing needs writing."""
        name = _name(emit, self._controller)
        told = self._told.get(name)
        if told is None:
            told = self._told[name] = _Told(_event(emit, name, self._controller, now), 1, now)
            while len(self._told) > _KEPT:
                self._told.popitem(last=False)
            return told.event
        self._told.move_to_end(name)
        told.count += 1
        if told.count > 2 and now < told.written_at + _EVERY_S:  # noqa: PLR2004 - the first repetition is news
            return None
        return self._series(told, now)

    def resume(self, stands: Manifest, now: float) -> Manifest:
        """Return the Event to write where one stands already: an earlier process has said the same."""
        told = self._told[stands["metadata"]["name"]]
        told.event = told.event | {
            member: stands[member] for member in ("eventTime", "regarding")
        }  # they may not change
        told.count += int((stands.get("series") or {}).get("count") or 1)
        return self._series(told, now)

    def _series(self, told: _Told, now: float) -> Manifest:
        told.written_at = now
        return told.event | {"series": {"count": told.count, "lastObservedTime": _micro(now)}}


def _name(emit: Emit, controller: str) -> str:
    about = emit.about["metadata"]
    same = "\0".join((about.get("uid", ""), controller, emit.type, emit.reason, emit.message))
    suffix = hashlib.sha256(same.encode()).hexdigest()[:16]
    return f"{about['name'][: _LONGEST_NAME - len(suffix) - 1]}.{suffix}"


def _event(emit: Emit, name: str, controller: str, now: float) -> Manifest:
    about = emit.about["metadata"]
    regarding = {"apiVersion": emit.about["apiVersion"], "kind": emit.about["kind"], "name": about["name"]}
    regarding |= {member: about[member] for member in ("namespace", "uid", "resourceVersion") if member in about}
    return {
        "apiVersion": kinds.EVENT.api_version,
        "kind": kinds.EVENT.kind,
        "metadata": {"name": name, "namespace": about.get("namespace", "default")},
        "eventTime": _micro(now),
        "reportingController": f"matrixinfer.ai/{controller}",
        "reportingInstance": controller,
        "action": emit.action,
        "reason": emit.reason,
        "regarding": regarding,
        "note": emit.message[:_LONGEST_NOTE],
        "type": emit.type,
    }


def _micro(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
