"""A node on which nothing runs: every pod is bound, Running and Ready at once, and gone when it is deleted.

For tests and benchmarks of controllers with thousands of pods. The pods' addresses are made up and nobody listens there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.api import core, kinds
from matrixinfer.cluster.protocol import ClusterError, Conflict, NotFound, Unavailable
from matrixinfer.cluster.queue import WorkQueue
from matrixinfer.cluster.store import Store
from matrixinfer.local.status import ContainerStatus, Running, pod_status

if TYPE_CHECKING:
    from matrixinfer.cluster.protocol import Cluster, Manifest

log = logging.getLogger("matrixinfer.local")

_FIRST: Final = IPv4Address("10.244.0.1")

Name = tuple[str, str]  # namespace, name


class HollowNode:
    """Plays the node `name`. `run` until cancelled; `at_once` is how many writes may be on their way."""

    def __init__(self, cluster: Cluster, *, name: str = "hollow", at_once: int = 8) -> None:
        self._cluster = cluster
        self._name = name
        self._at_once = at_once
        self._pods = Store(cluster, kinds.POD)
        self._queue: WorkQueue[Name] = WorkQueue()
        self._wake = asyncio.Event()
        self._addresses: dict[str, IPv4Address] = {}  # by uid
        self._next = _FIRST

    async def run(self) -> None:
        """Register the node, and tend its pods until cancelled."""
        node = {"metadata": {"name": self._name}, "spec": {}}
        ready = {"type": "Ready", "status": "True", "reason": "Hollow", "message": "nothing runs here"}
        await self._cluster.apply(kinds.NODE, node, manager=self._name, force=True)
        await self._cluster.apply_status(
            kinds.NODE, node | {"status": {"conditions": [ready]}}, manager=self._name, force=True
        )
        self._pods.on_change(self._changed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run())
            for _ in range(self._at_once):
                group.create_task(self._work())

    def _changed(self, old: Manifest | None, new: Manifest | None) -> None:
        if new is not None:
            self._queue.add((new["metadata"]["namespace"], new["metadata"]["name"]))
            self._wake.set()
        elif old is not None:
            self._addresses.pop(old["metadata"]["uid"], None)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            name = self._queue.pop(loop.time())
            if name is None:
                self._wake.clear()
                due = self._queue.next_due()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                continue
            try:
                await self._tend(*name)
            except (Conflict, Unavailable):
                self._queue.retry(name, loop.time(), 0.5)
            except ClusterError:
                log.exception("pod %s/%s", *name)
            else:
                self._queue.forget(name)
            finally:
                self._queue.done(name)

    async def _tend(self, namespace: str, name: str) -> None:
        pod = self._pods.get(name, namespace)
        if pod is None:
            return
        meta, node = pod["metadata"], pod["spec"].get("nodeName")
        with suppress(NotFound):
            if not node and "deletionTimestamp" not in meta:
                with suppress(Conflict):  # the store is behind: it has a node by now
                    await self._cluster.bind(name, namespace, self._name)
            elif node == self._name and "deletionTimestamp" in meta:
                await self._cluster.delete(kinds.POD, name, namespace, uid=meta["uid"], grace_period_s=0)
            elif node == self._name and pod.get("status", {}).get("phase") == "Pending":
                address = {"namespace": namespace, "name": name, "uid": meta["uid"]}
                await self._cluster.update_status(kinds.POD, {"metadata": address, "status": self._status(pod)})

    def _status(self, manifest: Manifest) -> dict[str, Any]:
        uid = manifest["metadata"]["uid"]
        if uid not in self._addresses:
            self._addresses[uid], self._next = self._next, self._next + 1
        pod, now = core.Pod.model_validate(manifest), time.time()

        def runs(container: core.Container) -> ContainerStatus:
            return ContainerStatus(container.name, container.image, Running(now), started=True, ready=True)

        return pod_status(
            pod,
            address=str(self._addresses[uid]),
            started_at=now,
            now=now,
            init=[],
            containers=[runs(item) for item in pod.spec.containers],
            previous={},
        )
