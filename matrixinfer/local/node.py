"""The local node: plays the kubelet for the pods of a cluster, with processes for containers.

It takes every pod that has no node yet, runs it (see `pods.py`) at an address of its own, writes back what becomes of
it, and stops it when it is deleted. A pod whose spec changes is started anew, which Kubernetes would refuse: an edited
file takes effect.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from matrixinfer.api import core, kinds
from matrixinfer.cluster.protocol import ClusterError, Conflict, EventType, Expired, NotFound, Unavailable
from matrixinfer.local import environment
from matrixinfer.local.environment import NODE_NAME
from matrixinfer.local.names import Names
from matrixinfer.local.pods import PodRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixinfer.cluster.protocol import Cluster, Manifest
    from matrixinfer.local.addresses import Addresses
    from matrixinfer.local.containers import Settings

logger = logging.getLogger("matrixinfer.local")

MANAGER = "matrixinfer-node"
RETRY_S = 0.2
Name = tuple[str, str]  # namespace, name


@dataclass(slots=True)
class _Seat:
    """A pod's place on the node: what is wanted there, and what runs."""

    wanted: Manifest | None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    runner: PodRunner | None = None
    task: asyncio.Task[None] | None = None


class Node:
    """Runs the cluster's pods. `run` until cancelled; nothing is left afterwards."""

    def __init__(
        self, cluster: Cluster, *, addresses: Addresses, settings: Settings, shutdown_grace_s: float = float("inf")
    ) -> None:
        """`shutdown_grace_s` bounds what pods get to stop by themselves when the node goes, whatever they ask for."""
        self._cluster = cluster
        self._names = Names(addresses)
        self._settings = settings
        self._seats: dict[Name, _Seat] = {}
        self._max_grace_s = float("inf")
        self._shutdown_grace_s = shutdown_grace_s

    @property
    def runners(self) -> dict[str, PodRunner]:
        """The pods that run or have run here, by `namespace/name`."""
        return {f"{name[0]}/{name[1]}": seat.runner for name, seat in self._seats.items() if seat.runner}

    def pids(self) -> dict[str, int]:
        """Process ids of running containers, by `namespace/pod/container`."""
        return {
            f"{name}/{item.container.name}": item.status.pid
            for name, runner in self.runners.items()
            for item in (*runner.init, *runner.containers)
            if item.status.pid is not None
        }

    async def run(self) -> None:
        """Follow the pods until cancelled, then stop them all."""
        try:
            while True:
                with suppress(Expired, Unavailable):
                    await self._follow()
                await asyncio.sleep(RETRY_S)
        finally:
            tasks = [seat.task for seat in self._seats.values() if seat.task]
            self._max_grace_s = self._shutdown_grace_s
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _register(self) -> None:
        """Be there as a Node: what serves pods of a node asks whether it is."""
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}
        ready = {"type": "Ready", "status": "True", "reason": "LocalNode", "message": "containers are processes here"}
        await self._cluster.apply(kinds.NODE, node, manager=MANAGER, force=True)
        status = node | {"status": {"conditions": [ready]}}
        await self._cluster.apply_status(kinds.NODE, status, manager=MANAGER, force=True)

    async def _follow(self) -> None:
        await self._register()
        listing = await self._cluster.list(kinds.POD)
        seen = {_name(pod) for pod in listing.items}
        for pod in listing.items:
            await self._see(pod)
        for name in self._seats.keys() - seen:
            self._want(name, None)
        async for event in self._cluster.watch(kinds.POD, since=listing.resource_version):
            if event.type is EventType.DELETED:
                self._want(_name(event.object), None)
            elif event.type is not EventType.BOOKMARK:
                await self._see(event.object)

    async def _see(self, pod: Manifest) -> None:
        node = (pod.get("spec") or {}).get("nodeName")
        if not node and not pod["metadata"].get("deletionTimestamp"):
            await self._bind(pod)  # comes back as a change
        elif node == NODE_NAME:
            self._want(_name(pod), pod)

    async def _bind(self, pod: Manifest) -> None:
        namespace, name = _name(pod)
        with suppress(Conflict, NotFound):
            await self._cluster.bind(name, namespace, NODE_NAME)

    def _want(self, name: Name, pod: Manifest | None) -> None:
        seat = self._seats.get(name)
        if seat is None:
            if pod is None:
                return
            seat = self._seats[name] = _Seat(pod)
            seat.task = asyncio.create_task(self._tend(name, seat), name=f"pod {name[0]}/{name[1]}")
        seat.wanted = pod
        seat.news.set()

    async def _tend(self, name: Name, seat: _Seat) -> None:
        """One pod's seat, from first sight until it is gone."""
        address = ""
        try:
            if seat.wanted is not None:
                address = self._names.take(seat.wanted, await self._services())
            while seat.wanted is not None and not seat.wanted["metadata"].get("deletionTimestamp"):
                await self._run_version(seat, address)
            if seat.wanted is not None:
                await self._remove(seat.wanted)
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("pod %s/%s: the node's own fault", *name)
        finally:
            if address:
                self._names.give_back(address)
            if self._seats.get(name) is seat:
                del self._seats[name]
        latest = seat.wanted
        if latest is not None and not latest["metadata"].get("deletionTimestamp"):
            self._want(name, latest)  # created again while the old one was going

    async def _run_version(self, seat: _Seat, address: str) -> None:
        """Run the pod as it is now, until it is to be something else."""
        manifest = seat.wanted
        if manifest is None:
            return
        pod = core.Pod.model_validate(self._names.resolved(manifest, await self._services()))
        dirty = asyncio.Event()
        dirty.set()
        seat.runner = PodRunner(
            pod, address=address, settings=self._settings, sources=await self._sources(pod), changed=dirty.set
        )
        life = asyncio.create_task(seat.runner.run())
        life.add_done_callback(_complain)
        report = asyncio.create_task(self._report(manifest, seat.runner, dirty))
        try:
            while _same(manifest, seat.wanted):
                seat.news.clear()
                await seat.news.wait()
        finally:
            if seat.wanted is not None:
                asked = seat.wanted["metadata"].get("deletionGracePeriodSeconds")
                grace_s = pod.spec.termination_grace_period_seconds if asked is None else asked
                seat.runner.grace_s = min(grace_s, self._max_grace_s)
            life.cancel()
            await asyncio.gather(life, return_exceptions=True)
            report.cancel()
            await asyncio.gather(report, return_exceptions=True)

    async def _services(self) -> Sequence[Manifest]:
        """Services as they are now; asked again until the cluster answers."""
        while True:
            try:
                return (await self._cluster.list(kinds.SERVICE)).items
            except ClusterError:
                await asyncio.sleep(RETRY_S)

    async def _sources(self, pod: core.Pod) -> dict[tuple[str, str], dict[str, str]]:
        """ConfigMaps and Secrets that the pod's environment names, as far as they exist."""
        sources = {}
        for container in (*pod.spec.init_containers, *pod.spec.containers):
            for source in environment.references(container):
                kind = kinds.CONFIG_MAP if source[0] == "ConfigMap" else kinds.SECRET
                with suppress(NotFound):
                    manifest = await self._cluster.get(kind, source[1], pod.metadata.namespace)
                    sources[source] = environment.keys(manifest)
        return sources

    async def _report(self, manifest: Manifest, runner: PodRunner, dirty: asyncio.Event) -> None:
        """Write the pod's status whenever it reads differently."""
        last: dict[str, Any] = manifest.get("status") or {}
        while True:
            await dirty.wait()
            dirty.clear()
            status = runner.status(last)
            if status == last:
                continue
            try:
                await self._cluster.update_status(kinds.POD, _with_status(manifest, status))
                last = status
            except NotFound:
                return
            except (Conflict, Unavailable):
                await asyncio.sleep(RETRY_S)
                dirty.set()

    async def _remove(self, pod: Manifest) -> None:
        """Let go of a pod whose processes have stopped."""
        namespace, name = _name(pod)
        with suppress(NotFound, Conflict):
            await self._cluster.delete(kinds.POD, name, namespace, uid=pod["metadata"].get("uid"), grace_period_s=0)


def _name(pod: Manifest) -> Name:
    return pod["metadata"].get("namespace") or "default", pod["metadata"]["name"]


def _complain(life: asyncio.Task[None]) -> None:
    if not life.cancelled() and life.exception() is not None:
        logger.error("a pod's run ended by the node's own fault", exc_info=life.exception())


def _same(running: Manifest, wanted: Manifest | None) -> bool:
    """Whether the pod that runs is the one that is wanted."""
    return (
        wanted is not None
        and not wanted["metadata"].get("deletionTimestamp")
        and wanted["metadata"].get("uid") == running["metadata"].get("uid")
        and wanted.get("spec") == running.get("spec")
    )


def _with_status(pod: Manifest, status: dict[str, Any]) -> Manifest:
    metadata = {key: pod["metadata"][key] for key in ("namespace", "name", "uid") if key in pod["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
