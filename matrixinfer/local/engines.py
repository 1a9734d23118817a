"""Engines that run already: what they serve becomes Pods, ModelServers and ModelRoutes, and is kept up to date.

Each engine is a Pod that no node runs (`spec.nodeName: external`). Its `/v1/models` is asked again and again: that it
answers makes the Pod ready, and what it lists makes the rest. `manifests` is pure; `Engines` asks and writes.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import aiohttp

from matrixinfer.api import dataplane, kinds
from matrixinfer.cluster.protocol import ClusterError, NotFound
from matrixinfer.local.status import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matrixinfer.cluster.protocol import Cluster, Manifest

logger = logging.getLogger("matrixinfer.local")

MANAGER: Final = "matrixinfer-engines"
NAMESPACE: Final = "default"
NODE: Final = "external"
SERVES: Final = "serves.matrixinfer.ai/"  # label of a Pod: one for each model that its engine has
ASK_EVERY_S: Final = 1.0
TIMEOUT_S: Final = 2.0
FAILURES: Final = 2  # in a row, until an engine counts as gone: one lost answer is no outage
ADAPTERS_PER_ROUTE: Final = 10  # what a ModelRoute holds
_LABEL_LENGTH: Final = 52


class EngineAddress(Exception):
    """An engine's host name leads nowhere; the message says which."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that an engine lists, with the adapters that it has loaded on it."""

    id: str
    adapters: tuple[str, ...] = ()
    owner: str = "vllm"


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine, as it was last seen. `problem` says why it is not ready; "" means that it is."""

    name: str
    url: str
    address: str
    port: int
    models: tuple[Model, ...] = ()
    problem: str = "not asked yet"
    failures: int = 0


def models(listing: Any) -> tuple[Model, ...]:
    """Read the answer of `/v1/models`: entries with a `parent` are adapters. Raises ValueError."""
    try:
        cards = [
            (str(card["id"]), card.get("parent") or "", str(card.get("owned_by") or "")) for card in listing["data"]
        ]
    except (TypeError, KeyError, AttributeError):
        raise ValueError("its /v1/models is not a list of models") from None
    names = {name for name, _, _ in cards}
    adapters: dict[str, list[str]] = {}
    for name, parent, _ in cards:
        if parent in names:
            adapters.setdefault(parent, []).append(name)
    return tuple(
        Model(name, tuple(sorted(adapters.get(name, ()))), owner)
        for name, parent, owner in cards
        if parent not in names
    )


def manifests(engines: Iterable[Engine]) -> list[Manifest]:
    """Write what the engines serve as manifests; those of an engine that has never answered are its Pod alone."""
    listed = list(engines)
    written = [_pod(engine) for engine in listed]
    for name in sorted({model.id for engine in listed for model in engine.models}):
        having = [(engine, model) for engine in listed for model in engine.models if model.id == name]
        adapters = sorted({adapter for _, model in having for adapter in model.adapters})
        sglang = any("sglang" in model.owner.lower() for _, model in having)
        written.append(
            _object(
                kinds.MODEL_SERVER,
                _slug(name),
                {
                    "model": name,
                    "inferenceEngine": "SGLang" if sglang else "vLLM",
                    "workloadSelector": {"matchLabels": {SERVES + _slug(name): "true"}},
                    "workloadPort": {"port": having[0][0].port},
                },
            )
        )
        rules = [{"name": "default", "targetModels": [{"modelServerName": _slug(name)}]}]
        written.append(_object(kinds.MODEL_ROUTE, _slug(name), {"modelName": name, "rules": rules}))
        for start in range(0, len(adapters), ADAPTERS_PER_ROUTE):
            route = {"loraAdapters": adapters[start : start + ADAPTERS_PER_ROUTE], "rules": rules}
            written.append(_object(kinds.MODEL_ROUTE, f"{_slug(name)}-adapters-{start // ADAPTERS_PER_ROUTE}", route))
    return written


def _pod(engine: Engine) -> Manifest:
    manifest = _object(
        kinds.POD, engine.name, {"nodeName": NODE, "containers": [{"name": "engine", "image": engine.url}]}
    )
    manifest["metadata"]["labels"] = {SERVES + _slug(model.id): "true" for model in engine.models}
    manifest["metadata"]["annotations"] = {dataplane.PORT_ANNOTATION: str(engine.port)}
    return manifest


def _object(kind: kinds.Kind, name: str, spec: dict[str, Any]) -> Manifest:
    metadata = {"namespace": NAMESPACE, "name": name}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "spec": spec}


def _slug(model: str) -> str:
    """Name of a model's objects: its own as far as it can be a DNS label, else made unique by a hash."""
    plain = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    if plain == model and len(plain) <= _LABEL_LENGTH:
        return plain
    digest = hashlib.sha256(model.encode()).hexdigest()[:6]
    return f"{plain[:_LABEL_LENGTH].strip('-') or 'model'}-{digest}"


def pod_status(engine: Engine, previous: Manifest, now: float) -> dict[str, Any]:
    """Status of an engine's Pod; transition times of the `previous` status are kept."""
    value = "False" if engine.problem else "True"
    before = {item["type"]: item for item in previous.get("conditions") or ()}
    conditions = []
    for kind in ("ContainersReady", "Ready"):
        old = before.get(kind)
        since = old["lastTransitionTime"] if old and old["status"] == value else timestamp(now)
        condition = {"type": kind, "status": value, "lastTransitionTime": since}
        if engine.problem:
            condition |= {"reason": "EngineNotReady", "message": f"{engine.url}: {engine.problem}"}
        conditions.append(condition)
    return {"phase": "Running", "podIP": engine.address, "podIPs": [{"ip": engine.address}], "conditions": conditions}


async def resolve(urls: Sequence[str]) -> list[Engine]:
    """Turn addresses into engines with an IP each. Raises EngineAddress."""
    loop = asyncio.get_running_loop()
    engines = []
    for number, url in enumerate(dict.fromkeys(urls)):
        parts = urlsplit(url)
        port = parts.port or 80
        try:
            found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise EngineAddress(f"--engine {url}: {parts.hostname} cannot be resolved: {error.strerror}") from None
        addresses = sorted((str(item[4][0]) for item in found), key=lambda address: ":" in address)
        engines.append(Engine(f"engine-{number}", url, addresses[0], port))
    return engines


class Engines:
    """Asks engines and writes what they serve into the cluster. `run` until cancelled."""

    def __init__(self, cluster: Cluster, engines: Sequence[Engine]) -> None:
        self._cluster = cluster
        self._engines = {engine.name: engine for engine in engines}
        self._written: dict[tuple[str, str], Manifest] = {}
        self._statuses: dict[str, dict[str, Any]] = {}

    async def run(self) -> None:
        """Keep the cluster's picture of the engines up to date."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        await self._write()
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for name in self._engines:
                group.create_task(self._follow(session, name))

    async def _follow(self, session: aiohttp.ClientSession, name: str) -> None:
        while True:
            before = self._engines[name]
            after = await _ask(session, before)
            self._engines[name] = after
            if replace(after, failures=0) != replace(before, failures=0):
                logger.info("engine %s: %s", after.url, after.problem or _serves(after))
                await self._write()
            await asyncio.sleep(ASK_EVERY_S)

    async def _write(self) -> None:
        """Bring the cluster to what the engines serve now."""
        wanted = {(item["kind"], item["metadata"]["name"]): item for item in manifests(self._engines.values())}
        try:
            for key, manifest in wanted.items():
                if self._written.get(key) != manifest:
                    await self._cluster.apply(_kind(key[0]), manifest, manager=MANAGER, force=True)
                    self._written[key] = manifest
            for engine in tuple(self._engines.values()):
                await self._write_status(engine)
            for key in self._written.keys() - wanted.keys():
                with suppress(NotFound):
                    await self._cluster.delete(_kind(key[0]), key[1], NAMESPACE)
                self._written.pop(key, None)
        except ClusterError:
            logger.exception("what the engines serve cannot be written down")

    async def _write_status(self, engine: Engine) -> None:
        status = pod_status(engine, self._statuses.get(engine.name, {}), time.time())
        if status != self._statuses.get(engine.name):
            metadata = {"namespace": NAMESPACE, "name": engine.name}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}
            await self._cluster.update_status(kinds.POD, pod)
            self._statuses[engine.name] = status


async def _ask(session: aiohttp.ClientSession, engine: Engine) -> Engine:
    """Ask an engine what it serves; a problem counts once it has come up often enough in a row."""
    try:
        async with session.get(f"{engine.url}/v1/models") as answer:
            if answer.status == 200:  # noqa: PLR2004 - HTTP's OK
                return replace(engine, models=models(await answer.json(content_type=None)), problem="", failures=0)
            problem = f"/v1/models answers {answer.status}"
    except TimeoutError:
        problem = f"/v1/models does not answer within {TIMEOUT_S:g} s"
    except aiohttp.ClientConnectorError as error:
        problem = f"cannot connect: {error.os_error.strerror or error.os_error}"
    except (aiohttp.ClientError, ValueError) as error:
        problem = str(error) or type(error).__name__
    failures = engine.failures + 1
    if engine.problem or failures >= FAILURES:
        return replace(engine, problem=problem, failures=failures)
    return replace(engine, failures=failures)


def _serves(engine: Engine) -> str:
    named = [
        model.id + (f" (adapters {', '.join(model.adapters)})" if model.adapters else "") for model in engine.models
    ]
    return f"serves {', '.join(named)}" if named else "serves no model"


def _kind(name: str) -> kinds.Kind:
    return next(kind for kind in (kinds.POD, kinds.MODEL_SERVER, kinds.MODEL_ROUTE) if kind.kind == name)
