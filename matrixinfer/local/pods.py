"""One pod: its containers in their order, and the status that follows from theirs.

`PodRunner.run` is the pod's life; cancelling it stops every process of the pod, newest first where order matters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from matrixinfer.local import status
from matrixinfer.local.containers import ContainerRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matrixinfer.api import core
    from matrixinfer.local.containers import Settings

logger = logging.getLogger("matrixinfer.local")

HARMLESS_MOUNTS = ("/dev/shm", "/tmp", "/var/run/secrets/")  # noqa: S108 - where this machine's own will do


class PodRunner:
    """Runs one version of a pod. `changed` is called when `status` would read differently."""

    def __init__(
        self,
        pod: core.Pod,
        *,
        address: str,
        settings: Settings,
        sources: Mapping[tuple[str, str], Mapping[str, str]],
        changed: Callable[[], None],
    ) -> None:
        self.pod = pod
        self.address = address
        self.grace_s: float = pod.spec.termination_grace_period_seconds
        self._started_at = time.time()

        def runner(container: core.Container, restart: str) -> ContainerRunner:
            return ContainerRunner(
                pod,
                container,
                restart=restart,
                address=address,
                settings=settings,
                sources=sources,
                grace=lambda: self.grace_s,
                changed=changed,
            )

        policy = pod.spec.restart_policy
        # An init container runs to success once, so `Always` means to try again; as its own policy it makes a sidecar.
        self.init = [
            runner(item, item.restart_policy or ("Never" if policy == "Never" else "OnFailure"))
            for item in pod.spec.init_containers
        ]
        self.containers = [runner(item, policy) for item in pod.spec.containers]

    async def run(self) -> None:
        """Run the pod to its end: until nothing of it will run again."""
        self._warn_of_mounts()
        sidecars: list[asyncio.Task[int]] = []
        try:
            for item in self.init:
                if item.container.restart_policy == "Always":
                    sidecars.append(asyncio.create_task(item.run()))
                    await item.started.wait()
                elif await item.run() != 0:
                    return
            async with asyncio.TaskGroup() as group:
                for item in self.containers:
                    group.create_task(item.run())
        finally:
            for task in reversed(sidecars):
                task.cancel()
            await asyncio.gather(*sidecars, return_exceptions=True)

    def _warn_of_mounts(self) -> None:
        """Say which volumes a process on one machine does not get: it sees the machine's own files."""
        for item in (*self.init, *self.containers):
            for mount in item.container.volume_mounts:
                if not mount.mount_path.startswith(HARMLESS_MOUNTS):
                    logger.warning(
                        "pod %s/%s, container %s: volume %s is not mounted at %s: the process sees this machine's files",
                        self.pod.metadata.namespace,
                        self.pod.metadata.name,
                        item.container.name,
                        mount.name,
                        mount.mount_path,
                    )

    def status(self, previous: Mapping[str, Any]) -> dict[str, Any]:
        """Status of the pod now; transition times of the `previous` status are kept."""
        return status.pod_status(
            self.pod,
            address=self.address,
            started_at=self._started_at,
            now=time.time(),
            init=[item.status for item in self.init],
            containers=[item.status for item in self.containers],
            previous=previous,
        )
