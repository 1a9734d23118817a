"""The control plane on a real API server: a thousand pods of one ModelInfer, and a thousand ModelInfers of one pod.

Each is created, rolled and scaled to zero. Beside it stands what a bare client takes for the same pods: it creates and deletes
them and does nothing else. The node is hollow and a process of its own; server, node, controllers and clients share the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from bench import apiserver, processes, table
from matrixinfer.api import kinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from bench.apiserver import Bare
    from matrixinfer.cluster.protocol import Manifest

PODS: Final = "/api/v1/namespaces/default/pods"
INFERS: Final = f"/apis/{kinds.MODEL_INFER.api_version}/namespaces/default/modelinfers"
_PATIENCE_S: Final = 300.0
_IDLE_S: Final = 10.0
_LISTENING: Final = re.compile(r"metrics and health on port (\d+)")
_REQUESTS: Final = re.compile(r'matrixinfer_cluster_requests_total\{code="\d+",resource="(\w+)",verb="(\w+)"\} (\S+)')
_READS: Final = ("get", "list", "watch")


class Watched:
    """What there is of the ModelInfers and the pods, as a watch tells it."""

    def __init__(self) -> None:
        self.pods: dict[str, Manifest] = {}
        self.infers: dict[str, Manifest] = {}
        self._news = asyncio.Event()

    async def follow(self, client: Bare, path: str, objects: dict[str, Manifest]) -> None:
        """Keep up with what there is; a watch that the server ends for being slow begins anew."""
        while True:
            objects.clear()
            async for event, manifest in client.watch(path):
                if event == "DELETED":
                    objects.pop(manifest["metadata"]["name"], None)
                elif event != "BOOKMARK":
                    objects[manifest["metadata"]["name"]] = manifest
                self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return once it holds."""
        async with asyncio.timeout(_PATIENCE_S):
            while not holds():
                self._news.clear()
                await self._news.wait()
                await asyncio.sleep(0.05)

    def ready(self, count: int) -> bool:
        """Whether there are as many pods, and all of them are ready."""
        return len(self.pods) == count and all(map(_is_ready, self.pods.values()))

    def settled(self, replicas: int) -> bool:
        """Whether every ModelInfer says that it is as its spec says, and it is so."""
        statuses = [(one["metadata"]["generation"], one.get("status") or {}) for one in self.infers.values()]
        return len(self.pods) == replicas * len(self.infers) and all(
            status.get("observedGeneration") == generation
            and status["replicas"] == status["availableReplicas"] == status["updatedReplicas"] == replicas
            for generation, status in statuses
        )


def _is_ready(pod: Manifest) -> bool:
    conditions = (pod.get("status") or {}).get("conditions", ())
    return "deletionTimestamp" not in pod["metadata"] and any(
        one["type"] == "Ready" and one["status"] == "True" for one in conditions
    )


@dataclass(frozen=True, slots=True)
class Controllers:
    """The process under test."""

    pid: int
    port: int

    def requests(self) -> dict[str, float]:
        """Requests so far by verb, without the lease's."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for resource, verb, count in _REQUESTS.findall(text):
            if resource != "leases":
                found[verb] = found.get(verb, 0.0) + float(count)
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a story took."""

    seconds: float
    controllers_s: float  # CPU
    server_s: float
    requests: dict[str, float]

    def cells(self, pods: int) -> tuple[str, ...]:
        writes = sum(count for verb, count in self.requests.items() if verb not in _READS)
        reads = sum(count for verb, count in self.requests.items() if verb in _READS)
        verbs = ", ".join(f"{verb} {count / pods:.2f}" for verb, count in sorted(self.requests.items()) if count)
        return (
            f"{self.seconds:.1f}",
            f"{self.controllers_s:.1f}",
            f"{self.server_s:.1f}",
            f"{writes / pods:.2f}",
            f"{reads / pods:.2f}",
            verbs,
        )


class Run:
    """One API server, one node, one control plane, and what they do."""

    def __init__(self, client: Bare, watched: Watched, server: int, controllers: Controllers) -> None:
        self._client = client
        self._watched = watched
        self._server = server
        self._controllers = controllers

    async def part(self, act: Awaitable[Any], holds: Callable[[], bool]) -> Part:
        """Do something and wait until it has come about."""
        requests, cpu, server = self._controllers.requests(), processes.cpu_s(self._controllers.pid), self._cpu()
        began = time.monotonic()
        await act
        await self._watched.until(holds)
        seconds = time.monotonic() - began
        after = self._controllers.requests()
        return Part(
            seconds,
            processes.cpu_s(self._controllers.pid) - cpu,
            self._cpu() - server,
            {verb: count - requests.get(verb, 0.0) for verb, count in after.items()},
        )

    async def bare(self, pods: int) -> tuple[Part, Part]:
        """Create pods as the controller makes them, and delete them, with nothing that thinks."""
        names = [f"bare-{number}-engine-0-0" for number in range(pods)]
        create = self._client.all(lambda name=name: self._client.ask("POST", PODS, _pod(name)) for name in names)  # type: ignore[misc]  # a lambda's default
        made = await self.part(create, lambda: self._watched.ready(pods))
        delete = self._client.all(lambda name=name: self._client.ask("DELETE", f"{PODS}/{name}") for name in names)  # type: ignore[misc]
        return made, await self.part(delete, lambda: not self._watched.pods)

    async def story(self, infers: int, groups: int) -> list[tuple[str, Part]]:
        """Create, roll, scale to zero."""
        names = [f"bench-{number}" for number in range(infers)]

        def every(method: str, body: Callable[[str], Any], *, on: bool, content: str = "application/json") -> Any:
            return self._client.all(
                lambda name=name: self._client.ask(method, f"{INFERS}/{name}" if on else INFERS, body(name), content)  # type: ignore[misc]
                for name in names
            )

        def change(spec: Any) -> Any:
            return every("PATCH", lambda _: {"spec": spec}, on=True, content="application/merge-patch+json")

        def settled(replicas: int, image: str) -> Callable[[], bool]:
            return lambda: (
                self._watched.settled(replicas)
                and all(pod["spec"]["containers"][0]["image"] == image for pod in self._watched.pods.values())
            )

        template = {"template": {"roles": [_role("sim:2")]}}
        parts = [
            (
                "created",
                await self.part(
                    every("POST", lambda name: _infer(name, groups), on=False),
                    lambda: len(self._watched.infers) == infers and settled(groups, "sim:1")(),
                ),
            ),
            ("rolled", await self.part(change(template), settled(groups, "sim:2"))),
            ("idle", await self.part(asyncio.sleep(_IDLE_S), lambda: True)),
            ("scaled to zero", await self.part(change({"replicas": 0}), settled(0, ""))),
        ]
        await every("DELETE", lambda _: None, on=True)
        await self._watched.until(lambda: not self._watched.infers)
        return parts

    def _cpu(self) -> float:
        return processes.cpu_s(self._server)


async def run(pods: int = 1000) -> None:
    """Print both stories."""
    program = apiserver.binary()
    if program is None:
        print("\nControllers on an API server: left out, `make kubetest` builds one")
        return
    with apiserver.serving(program) as (kubeconfig, server), _controllers(kubeconfig) as controllers:
        config = yaml.safe_load(kubeconfig.read_text())
        async with _watching(config) as (client, watched):
            it = Run(client, watched, server, controllers)
            rows = []
            with _node(kubeconfig):
                for title, infers in ((f"1 ModelInfer of {pods:,}", 1), (f"{pods:,} ModelInfers of 1", pods)):
                    for name, part in await it.story(infers, pods // infers):
                        rows.append((f"{title}: {name}", *part.cells(pods)))
                    made, gone = await it.bare(pods)
                    rows += [
                        (f"bare client, {pods:,} pods: {name}", *part.cells(pods)[:3], "1.00", "0.00", "")
                        for name, part in (("created", made), ("deleted", gone))
                    ]
            memory = processes.rss_mib(controllers.pid)
    table.show(
        f"Controllers on an API server; {memory:.0f} MiB at the end",
        ("", "s", "controllers CPU s", "server CPU s", "writes a pod", "reads a pod", "by verb"),
        rows,
    )


@contextlib.asynccontextmanager
async def _watching(config: dict[str, Any]) -> AsyncIterator[tuple[Bare, Watched]]:
    async with apiserver.bare(config) as client:
        watched = Watched()
        following = [
            asyncio.create_task(watched.follow(client, PODS, watched.pods)),
            asyncio.create_task(watched.follow(client, INFERS, watched.infers)),
        ]
        try:
            yield client, watched
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)


@contextlib.contextmanager
def _node(kubeconfig: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "bench.hollow", str(kubeconfig)], cwd=apiserver.ROOT)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _controllers(kubeconfig: Path) -> Iterator[Controllers]:
    argv = ["--kubeconfig", str(kubeconfig), "--metrics-host", "127.0.0.1", "--metrics-port", "0"]
    log = kubeconfig.parent / "controllers.log"
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-m", "controllers", *argv], cwd=apiserver.ROOT, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while (found := _LISTENING.search(log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the controllers did not start: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Controllers(process.pid, int(found[1]))
    finally:
        process.terminate()
        process.wait()


def _role(image: str) -> Manifest:
    template = {"spec": {"containers": [{"name": "engine", "image": image}]}}
    return {"name": "engine", "workerReplicas": 0, "entryTemplate": template}


def _infer(name: str, groups: int) -> Manifest:
    rolling = {"type": "InferGroupRollingUpdate", "rollingUpdateConfiguration": {"maxUnavailable": "25%"}}
    return {
        "apiVersion": kinds.MODEL_INFER.api_version,
        "kind": kinds.MODEL_INFER.kind,
        "metadata": {"name": name},
        "spec": {"replicas": groups, "rolloutStrategy": rolling, "template": {"roles": [_role("sim:1")]}},
    }


def _pod(name: str) -> Manifest:
    labels = {f"modelinfer.matrixinfer.ai/{key}": name for key in ("name", "group-name", "role", "role-id", "revision")}
    env = [{"name": key, "value": name} for key in ("GROUP_SIZE", "ENTRY_ADDRESS", "WORKER_INDEX")]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "engine", "image": "sim:1", "env": env}]},
    }
