"""That requests wait for an engine, written on their ModelServer: an annotation with the time, which a scaler can follow.

Pickers say it again and again as long as it is so (`feed.py` brings it), and the time is written anew now and then. Nobody takes it
away: a picker that dies could not, and one of several must not, since others may hold requests still. Who reads it goes by its age.

What cannot be written is logged once and tried again when it is said again; no request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from matrixinfer.api import dataplane, kinds
from matrixinfer.cluster.protocol import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixinfer.cluster.protocol import Cluster, Manifest

log = logging.getLogger(__name__)

MANAGER: Final = "matrixinfer-wakeup"

Place = tuple[str, str]  # namespace, name


class WakeUp:
    """Writes the annotation, at most once in `every_s` for each ModelServer over all pickers."""

    def __init__(self, cluster: Cluster, *, clock: Callable[[], datetime], every_s: float = 10.0) -> None:
        self._cluster = cluster
        self._clock = clock
        self._every = timedelta(seconds=every_s)
        self._tried: dict[Place, datetime] = {}  # lately
        self._refused: dict[Place, str] = {}  # why the last try failed
        self._writing: set[asyncio.Task[None]] = set()

    def held(self, namespace: str, name: str) -> None:
        """Take that requests wait for an engine of this ModelServer now."""
        now, place = self._clock(), (namespace, name)
        self._tried = {other: at for other, at in self._tried.items() if self._is_fresh(at, now)}
        if place in self._tried:
            return
        self._tried[place] = now
        task = asyncio.get_running_loop().create_task(self._try(place, now))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def stop(self) -> None:
        """Give up what is being written."""
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)

    async def _try(self, place: Place, now: datetime) -> None:
        try:
            await self._write(place, now)
        except ClusterError as error:
            if self._refused.get(place) != error.reason:
                log.warning(
                    "ModelServer %s/%s cannot be told that requests wait for an engine: %s",
                    *place,
                    error or error.reason,
                )
            self._refused[place] = error.reason
        except Exception:
            log.exception("ModelServer %s/%s could not be told that requests wait for an engine", *place)
        else:
            self._refused.pop(place, None)

    async def _write(self, place: Place, now: datetime) -> None:
        namespace, name = place
        stands = await self._cluster.get(kinds.MODEL_SERVER, name, namespace)
        if self._is_fresh(_written(stands), now):
            return  # another picker's
        meta = {
            "namespace": namespace,
            "name": name,
            "uid": stands["metadata"]["uid"],  # an object that has gone meanwhile is not made anew
            "annotations": {dataplane.HELD_ANNOTATION: now.strftime("%Y-%m-%dT%H:%M:%SZ")},
        }
        kind = kinds.MODEL_SERVER
        applied = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}
        await self._cluster.apply(kind, applied, manager=MANAGER, force=True)

    def _is_fresh(self, at: datetime | None, now: datetime) -> bool:
        """Tell whether a time is so near that it need not be written anew; one to come is another clock's."""
        return at is not None and abs(now - at) < self._every


def _written(manifest: Manifest) -> datetime | None:
    """Return what the annotation says; None if there is none that can be read."""
    text = manifest["metadata"].get("annotations", {}).get(dataplane.HELD_ANNOTATION, "")
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
