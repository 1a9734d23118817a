"""The control plane on a real API server: a thousand pods of one ModelInfer, and a thousand ModelInfers of one pod.

Each is created, rolled and scaled to zero. Beside it stands what a bare client takes that writes the same objects and does nothing
else, as fast as the server allows. The node is hollow and a process of its own; server, node, controllers and clients share the machine.
`python -m bench.control_plane 1000x1` runs one of the cases, or another.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import yaml

from bench import apiserver, processes, table
from matrixinfer.api import kinds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from bench.apiserver import Bare
    from matrixinfer.cluster.protocol import Manifest

PODS: Final = "/api/v1/namespaces/default/pods"
INFERS: Final = f"/apis/{kinds.MODEL_INFER.api_version}/namespaces/default/modelinfers"
REVISIONS: Final = "/apis/apps/v1/namespaces/default/controllerrevisions"
_INITIAL_END: Final = "k8s.io/initial-events-end"  # on the bookmark after what a watch begins with
_MERGE: Final = "application/merge-patch+json"
_PATIENCE_S: Final = 300.0
_IDLE_S: Final = 10.0
_LISTENING: Final = re.compile(r"metrics and health on port (\d+)")
_REQUESTS: Final = re.compile(r'matrixinfer_cluster_requests_total\{code="\d+",resource="(\w+)",verb="(\w+)"\} (\S+)')
_READS: Final = ("get ", "list ", "watch ")


class Watched:
    """What there is of the ModelInfers and the pods, as a watch tells it."""

    def __init__(self) -> None:
        self.pods: dict[str, Manifest] = {}
        self.infers: dict[str, Manifest] = {}
        self._news = asyncio.Event()

    async def follow(self, client: Bare, path: str, objects: dict[str, Manifest]) -> None:
        """Keep up with what there is; a watch that the server ends for being slow begins anew, and until it is complete nothing is new."""
        while True:
            beginning: dict[str, Manifest] = {}
            known = beginning
            async for event, manifest in client.watch(path):
                if event == "ERROR":
                    break
                if event == "BOOKMARK":
                    if known is beginning and _INITIAL_END in manifest["metadata"].get("annotations", {}):
                        objects.clear()
                        objects.update(beginning)
                        known = objects
                elif event == "DELETED":
                    known.pop(manifest["metadata"]["name"], None)
                else:
                    known[manifest["metadata"]["name"]] = manifest
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

    def settled(self, shape: Shape, replicas: int, image: str) -> bool:
        """Whether every ModelInfer says that it is as its spec says, and it is so."""
        statuses = [(one["metadata"]["generation"], one.get("status") or {}) for one in self.infers.values()]
        there = len(self.infers) == shape.infers and len(self.pods) == replicas * shape.infers
        images = {pod["spec"]["containers"][0]["image"] for pod in self.pods.values()}
        return (there and images <= {image}) and all(
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
        """Requests so far by verb and resource, without the lease's."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        found: dict[str, float] = {}
        for resource, verb, count in _REQUESTS.findall(text):
            if resource != "leases":
                found[f"{verb} {resource}"] = found.get(f"{verb} {resource}", 0.0) + float(count)
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of a story took."""

    name: str
    seconds: float
    server_s: float  # CPU
    controllers_s: float = 0.0
    requests: Mapping[str, float] = field(default_factory=dict)

    def cells(self, pods: int, bare: Part | None) -> tuple[str, ...]:
        """Give what stands in the table, for each pod where that is said."""
        reads = sum(count for what, count in self.requests.items() if what.startswith(_READS))
        writes = sum(self.requests.values()) - reads
        verbs = ", ".join(f"{what} {count / pods:.2f}" for what, count in sorted(self.requests.items()) if count)
        alone = (f"{bare.seconds:.1f}", f"{bare.server_s:.1f}") if bare is not None else ("", "")
        took = (f"{self.seconds:.1f}", f"{self.server_s:.1f}")
        return (
            took[0],
            alone[0],
            took[1],
            alone[1],
            f"{self.controllers_s:.1f}",
            f"{writes / pods:.2f}",
            f"{reads / pods:.2f}",
            verbs,
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """So many ModelInfers of so many groups of one pod."""

    infers: int
    groups: int

    @property
    def pods(self) -> int:
        """All pods."""
        return self.infers * self.groups

    def __str__(self) -> str:
        return f"{self.infers:,} ModelInfer{'s' * (self.infers > 1)} of {self.groups:,}"


class Run:
    """One API server, one node, and who works on it; `controllers` are none while the bare client does it all."""

    def __init__(self, client: Bare, watched: Watched, server: int, controllers: Controllers | None = None) -> None:
        self._client = client
        self._watched = watched
        self._server = server
        self._controllers = controllers

    async def part(self, name: str, act: Awaitable[Any], holds: Callable[[], bool]) -> Part:
        """Do something and wait until it has come about."""
        before, cpu, requests = processes.cpu_s(self._server), self._cpu(), self._requests()
        began = time.monotonic()
        await act
        await self._watched.until(holds)
        seconds = time.monotonic() - began
        counts = {verb: count - requests.get(verb, 0.0) for verb, count in self._requests().items()}
        return Part(name, seconds, processes.cpu_s(self._server) - before, self._cpu() - cpu, counts)

    async def story(self, shape: Shape) -> list[Part]:
        """Create, roll, do nothing for a while, scale to zero."""
        names = [f"bench-{number}" for number in range(shape.infers)]
        there = self._watched

        def every(ask: Callable[[str], Awaitable[Any]]) -> Awaitable[Any]:
            return self._client.all(partial(ask, name) for name in names)

        def change(spec: Any) -> Awaitable[Any]:
            return every(lambda name: self._client.ask("PATCH", f"{INFERS}/{name}", {"spec": spec}, _MERGE))

        create = every(lambda name: self._client.ask("POST", INFERS, _infer(name, shape.groups)))
        parts = [
            await self.part("created", create, lambda: there.settled(shape, shape.groups, "sim:1")),
            await self.part("rolled", change(_roles("sim:2")), lambda: there.settled(shape, shape.groups, "sim:2")),
            await self.part("idle", asyncio.sleep(_IDLE_S), lambda: True),
            await self.part("scaled to zero", change({"replicas": 0}), lambda: there.settled(shape, 0, "")),
        ]
        await every(lambda name: self._client.ask("DELETE", f"{INFERS}/{name}"))
        await there.until(lambda: not there.infers)
        return parts

    async def alone(self, shape: Shape) -> list[Part]:
        """Write the same objects in the same parts, with nothing that thinks."""
        ask, there = self._client.ask, self._watched
        names = [f"bench-{number}" for number in range(shape.infers)]
        pods = [f"{name}-{group}-engine-0-0" for name in names for group in range(shape.groups)]

        def every(names: list[str], do: Callable[[str], Awaitable[Any]]) -> Awaitable[Any]:
            return self._client.all(partial(do, name) for name in names)

        async def create() -> None:
            await every(names, lambda name: ask("POST", INFERS, _infer(name, shape.groups)))
            await every(names, lambda name: ask("POST", REVISIONS, _revision(f"{name}-1")))
            await every(pods, lambda name: ask("POST", PODS, _pod(name)))
            await every(names, status)

        async def remove() -> None:
            await every(pods, lambda name: ask("DELETE", f"{PODS}/{name}"))
            await there.until(lambda: not there.pods)

        def status(name: str) -> Awaitable[Any]:
            conditions = [_condition(type_) for type_ in ("Accepted", "Available", "Progressing", "Degraded")]
            body = {"status": {"replicas": shape.groups, "conditions": conditions}}
            return ask("PATCH", f"{INFERS}/{name}/status", body, _MERGE)

        async def roll() -> None:
            await every(names, lambda name: ask("PATCH", f"{INFERS}/{name}", {"spec": _roles("sim:2")}, _MERGE))
            await every(names, lambda name: ask("POST", REVISIONS, _revision(f"{name}-2")))
            await remove()
            await every(pods, lambda name: ask("POST", PODS, _pod(name)))
            await every(names, status)

        async def scale() -> None:
            await every(names, lambda name: ask("PATCH", f"{INFERS}/{name}", {"spec": {"replicas": 0}}, _MERGE))
            await remove()
            await every(names, status)

        parts = [
            await self.part("created", create(), lambda: there.ready(shape.pods)),
            await self.part("rolled", roll(), lambda: there.ready(shape.pods)),
            await self.part("scaled to zero", scale(), lambda: not there.pods),
        ]
        await every(names, lambda name: ask("DELETE", f"{INFERS}/{name}"))
        await every(
            [f"{name}-{number}" for name in names for number in (1, 2)], lambda n: ask("DELETE", f"{REVISIONS}/{n}")
        )
        await there.until(lambda: not there.infers)
        return parts

    def _cpu(self) -> float:
        return processes.cpu_s(self._controllers.pid) if self._controllers is not None else 0.0

    def _requests(self) -> dict[str, float]:
        return self._controllers.requests() if self._controllers is not None else {}


async def run(*shapes: Shape) -> None:
    """Print the stories; by default both."""
    program = apiserver.binary()
    if program is None:
        print("\nControllers on an API server: left out, `make kubetest` builds one")
        return
    shapes = shapes or (Shape(1, 1000), Shape(1000, 1))
    with apiserver.serving(program) as (kubeconfig, server), _node(kubeconfig):
        config = yaml.safe_load(kubeconfig.read_text())
        async with _watching(config) as (client, watched):
            alone = [await Run(client, watched, server).alone(shape) for shape in shapes]
            with _controllers(kubeconfig) as controllers:
                it = Run(client, watched, server, controllers)
                stories = [await it.story(shape) for shape in shapes]
                memory = processes.rss_mib(controllers.pid)
    rows = [
        (f"{shape}: {part.name}", *part.cells(shape.pods, next((one for one in bare if one.name == part.name), None)))
        for shape, story, bare in zip(shapes, stories, alone, strict=True)
        for part in story
    ]
    head = (
        "",
        "s",
        "bare client",
        "server CPU s",
        "bare client",
        "controllers CPU s",
        "writes a pod",
        "reads",
        "each",
    )
    table.show(f"Controllers on an API server; {memory:.0f} MiB at the end", head, rows)


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


def _roles(image: str) -> Manifest:
    return {"template": {"roles": [_role(image)]}}


def _revision(name: str) -> Manifest:
    return {"metadata": {"name": name}, "revision": 1, "data": {"spec": _roles("sim:1")}}


def _condition(type_: str) -> Manifest:
    since = {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}
    return {"type": type_, "status": "True", "reason": "Said", "message": "As it was said.", **since}


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


def _shape(text: str) -> Shape:
    infers, _, groups = text.partition("x")
    return Shape(int(infers), int(groups))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench.control_plane", description="The control plane on an API server.")
    parser.add_argument("shape", nargs="*", type=_shape, help="ModelInfers x groups; default: 1x1000 1000x1")
    asyncio.run(run(*parser.parse_args().shape))
