"""A real stack under test: Envoy, the picker's process, simulated engines; and how tests ask it, hurt it and look at it.

`running(manifests)` starts one. What is sent is HTTP over sockets; what is read are answers, the picker's admin pages and
metrics, and the engines' own accounts.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from matrixinfer.api import core, kinds
from matrixinfer.api.networking import ModelServer
from matrixinfer.local.containers import Backoff
from matrixinfer.local.stack import Config, Stack
from tests.local.waiting import eventually_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

COMPLETIONS, CHAT, MESSAGES = "/v1/completions", "/v1/chat/completions", "/v1/messages"
PORT = 8000
PATIENCE_S = 60  # nothing that a test waits for takes as long as this

POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{app: {app}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: engine
    command: [python, -m, {module}]
    args: {args}
    env:
    - name: POD_IP
      valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}
    ports:
    - {{name: http, containerPort: 8000}}
    readinessProbe:
      httpGet: {{path: /health, port: http}}
      periodSeconds: 1
"""
SERVER = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {{name: {name}}}
spec:
  model: demo
  inferenceEngine: vLLM
  workloadSelector: {{matchLabels: {{app: {app}}}}}
  workloadPort: {{port: 8000}}
{policy}"""
ROUTE = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelRoute
metadata: {{name: {name}}}
spec:
  modelName: {model}
  rules:
  - name: default
    targetModels:
    - modelServerName: {server}
"""


def say(figure: str) -> None:
    """Tell whoever runs the tests with `-s`."""
    print(figure)  # noqa: T201


def a_pod(name: str, *args: str, app: str = "demo") -> str:
    """Manifest of a simulated engine that serves `demo`."""
    own = ["--model", "demo", "--host", "$(POD_IP)", "--port", str(PORT), *args]
    return POD.format(name=name, app=app, module="engine.simulator", args=json.dumps(own))


def a_stub(name: str, *, app: str) -> str:
    """Manifest of an engine that answers at once and always the same."""
    own = ["--host", "$(POD_IP)", "--port", str(PORT)]
    return POD.format(name=name, app=app, module="bench.stub", args=json.dumps(own))


def a_server(name: str = "demo", *, app: str = "demo", timeout: str = "", attempts: int | None = None) -> str:
    """Manifest of a ModelServer over the pods labelled `app`."""
    policy = {"timeout": timeout} if timeout else {}
    retry = {} if attempts is None else {"retry": {"attempts": attempts, "retryInterval": "10ms"}}
    both = {**policy, **retry}
    return SERVER.format(name=name, app=app, policy=f"  trafficPolicy: {json.dumps(both)}\n" if both else "")


def a_route(model: str = "demo", *, server: str = "demo", name: str = "") -> str:
    """Manifest of a ModelRoute."""
    return ROUTE.format(name=name or model, model=model, server=server)


def manifests(*documents: str) -> str:
    """One file of them all."""
    return "---\n".join(documents)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got. `broken`: the answer was cut after it had begun."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    broken: bool = False

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The body's error object, held to OpenAI's form."""
        return an_error(self.body)


def an_error(body: bytes) -> dict[str, Any]:
    """The error object of `body`; fails where it is not one as OpenAI's clients read it."""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert isinstance(error["message"], str), error
    assert error["message"], error
    assert isinstance(error["type"], str), error
    assert error["param"] is None or isinstance(error["param"], str), error
    assert error["code"] is None or isinstance(error["code"], str | int), error
    return dict(error)


@dataclass(slots=True)
class World:
    """A running stack, its directory of manifests, and a client."""

    stack: Stack
    directory: Path
    http: aiohttp.ClientSession
    pids: Mapping[str, int] = field(default_factory=dict)  # of the processes as they began
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def address(self) -> tuple[str, int]:
        """Where the gateway listens."""
        return "127.0.0.1", self.stack.port

    @property
    def url(self) -> str:
        """The gateway's URL."""
        return self.stack.url

    # ---- asking

    async def send(
        self, path: str = COMPLETIONS, *, method: str = "POST", headers: Mapping[str, str] | None = None, **body: Any
    ) -> Answer:
        """One request with a JSON body of our own (`model`, `prompt` and `max_tokens` are given unless said)."""
        return await self.raw(
            path,
            method=method,
            headers=headers,
            data=json.dumps(a_body(path, **body)).encode() if method != "GET" else None,
        )

    async def raw(
        self,
        path: str = COMPLETIONS,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> Answer:
        """One request with these very bytes."""
        given = {"content-type": "application/json"} | dict(headers or {}) if data is not None else dict(headers or {})
        async with self.http.request(method, self.url + path, data=data, headers=given) as answer:
            body, broken = b"", False
            try:
                async for part in answer.content.iter_any():
                    body += part
            except aiohttp.ClientPayloadError:
                broken = True
            return Answer(answer.status, answer.headers, body, broken)

    def new_id(self) -> str:
        """A request id that no other request has."""
        return f"test-{os.getpid()}-{next(self._numbers)}"

    # ---- the engines

    async def engines(self) -> dict[str, str]:
        """Addresses ("ip:port") by pod."""
        listed = (await self.stack.cluster.list(kinds.POD)).items
        pods = (core.Pod.model_validate(item) for item in listed)
        return {pod.metadata.name: f"{pod.status.pod_ip}:{PORT}" for pod in pods if pod.status.pod_ip}

    async def fail(self, pod: str, mode: str, **how: Any) -> None:
        """Let the pod's engine fail."""
        address = (await self.engines())[pod]
        async with self.http.post(f"http://{address}/sim/fail", json={"mode": mode, **how}) as answer:
            assert answer.status == 200, await answer.text()

    async def heal(self) -> None:
        """End all failures of engines that answer."""
        for address in (await self.engines()).values():
            async with self.http.delete(f"http://{address}/sim/fail") as answer:
                assert answer.status == 200

    async def served(self, pod: str) -> int:
        """How many requests the pod's engine has had in this life; -1 while it does not answer."""
        address = (await self.engines())[pod]
        try:
            async with self.http.get(f"http://{address}/sim/requests?since=999999999") as answer:
                return int((await answer.json())["totals"]["requests"])
        except aiohttp.ClientError:
            return -1

    async def open_requests(self) -> int:
        """How many requests the engines are working on."""
        total = 0
        for address in (await self.engines()).values():
            async with self.http.get(f"http://{address}/sim/requests?since=999999999") as answer:
                total += int((await answer.json())["totals"]["open"])
        return total

    def pid(self, name: str) -> int:
        """Process id of `envoy`, `picker`, or a pod's engine."""
        pids = self.stack.pids()
        return pids[name] if name in pids else pids[f"default/{name}/engine"]

    def kill(self, name: str) -> int:
        """SIGKILL; returns the pid that was."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    async def all_ready(self) -> bool:
        """Whether every gateway's picker may choose every pod that a ModelServer selects."""
        pods = [core.Pod.model_validate(item) for item in (await self.stack.cluster.list(kinds.POD)).items]
        servers = [
            ModelServer.model_validate(item) for item in (await self.stack.cluster.list(kinds.MODEL_SERVER)).items
        ]
        wanted = {f"default/{pod.metadata.name}" for pod in pods if any(server.selects(pod) for server in servers)}
        for gateway in self.stack.gateways:
            async with self.http.get(gateway.metrics_url) as answer:
                families = text_string_to_metric_families(await answer.text())
            endpoints = next(each.samples for each in families if each.name == "matrixinfer_endpoint_ready")
            if wanted - {each.labels["pod"] for each in endpoints if each.value}:
                return False
        return True

    # ---- the picker's account

    async def decision(self, request_id: str) -> dict[str, Any]:
        """The picker's page of a request, as soon as it has ended."""
        found: dict[str, Any] = {}

        async def ended() -> bool:
            async with self.http.get(f"{self.stack.admin_url}/decisions/{request_id}") as answer:
                found.update(await answer.json(content_type=None))
            return answer.status == 200 and found["end"]["end"] != "open"

        await eventually_async(ended, PATIENCE_S)
        return found

    async def metrics(self) -> dict[str, float]:
        """Samples of the picker's metrics by name and labels: `matrixinfer_ledger_total{event=settled}`."""
        async with self.http.get(self.stack.metrics_url) as answer:
            return samples(await answer.text())

    async def settled(self) -> dict[str, float]:
        """The metrics, as soon as no request is open."""
        found: dict[str, float] = {}

        async def quiet() -> bool:
            found.clear()
            found.update(await self.metrics())
            return found["matrixinfer_ledger_open"] == 0

        await eventually_async(quiet, PATIENCE_S)
        return found

    async def routed(self, pod: str, *, within_s: float = PATIENCE_S) -> None:
        """Wait until a request is served by the pod's engine."""
        before = await self.served(pod)

        async def gets_one() -> bool:
            await asyncio.gather(*(self.send(prompt=self.new_id(), max_tokens=1) for _ in range(4)))
            now = await self.served(pod)
            return now > 0 and now != before

        await eventually_async(gets_one, within_s)


def a_body(path: str = COMPLETIONS, **given: Any) -> dict[str, Any]:
    """A body that is served, unless `given` says otherwise; what is given as None is left out."""
    prompt: dict[str, Any] = {"prompt": "hello"}
    if path in (CHAT, MESSAGES):
        prompt = {"messages": [{"role": "user", "content": "hello"}]}
    return {
        key: value for key, value in ({"model": "demo", "max_tokens": 2} | prompt | given).items() if value is not None
    }


def samples(page: str) -> dict[str, float]:
    """Values of a metrics page by name and labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def total(found: Mapping[str, float], name: str, *parts: str) -> float:
    """Sum of the samples called `name` whose labels hold all of `parts`."""
    return sum(
        value for key, value in found.items() if key.partition("{")[0] == name and all(part in key for part in parts)
    )


def events(body: bytes) -> list[str]:
    """The data of a stream's events."""
    return [line.removeprefix("data: ") for line in body.decode().splitlines() if line.startswith("data: ")]


@asynccontextmanager
async def running(directory: Path, *documents: str, ready_s: float = PATIENCE_S, **config: Any) -> AsyncIterator[World]:
    """A stack that serves `documents` by all of its engines, in one file for each; `ready_s`: how long its start may take."""
    write(directory, documents)
    settings = Config(
        directory=directory,
        port=0,
        admin_port=0,
        metrics_port=0,
        envoy_workers=2,
        log_level="warning",
        backoff=Backoff(0.1, 1),
        **config,
    )
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http, Stack(settings) as stack:
        await stack.ready(ready_s)
        world = World(stack, directory, http, stack.pids())
        await eventually_async(world.all_ready, ready_s)
        yield world


def write(directory: Path, documents: Iterable[str]) -> None:
    """One file for each document, named by its kind and name."""
    directory.mkdir(exist_ok=True)
    for document in documents:
        lines = [line.strip() for line in document.splitlines()]
        kind = next(line.removeprefix("kind: ") for line in lines if line.startswith("kind: "))
        named = next(line for line in lines if "name: " in line)
        name = named.partition("name: ")[2].rstrip("}")
        (directory / f"{kind.lower()}-{name}.yaml").write_text(document)
