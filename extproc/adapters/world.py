"""The world as the cluster tells it: Pods, ModelServers, ModelRoutes, providers and objectives become endpoints, pools, routes and priorities.

Stores follow the cluster and keep the last known state when it falls silent; `WorldView` is told of every change. A resource
that cannot be read keeps its last good version, and is listed among the problems. Changes are gathered for a moment and applied together, so that a
rollout of a hundred pods is one rebuild.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError

from extproc.adapters import kv_sources
from extproc.scheduling.endpoints import Endpoint
from extproc.traffic.flow.objectives import priorities
from extproc.traffic.routes import RouteTable
from matrixinfer.api import core, dataplane, kinds, networking, objectives

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from extproc.adapters.arrivals import Arrivals
    from extproc.candidates import World
    from extproc.director import Director
    from matrixinfer.cluster.store import Store

_LOG = logging.getLogger(__name__)
_GATHER_S: Final = 0.01  # far below the second in which an edited route must take effect
_TYPES: Final[dict[kinds.Kind, type[BaseModel]]] = {
    kinds.POD: core.Pod,
    kinds.MODEL_SERVER: networking.ModelServer,
    kinds.MODEL_ROUTE: networking.ModelRoute,
    kinds.EXTERNAL_MODEL_PROVIDER: networking.ExternalModelProvider,
    kinds.OLD_INFERENCE_OBJECTIVE: objectives.InferenceObjective,
    kinds.INFERENCE_OBJECTIVE: objectives.InferenceObjective,
}
KINDS: Final = tuple(_TYPES)
_OBJECTIVES: Final = (kinds.OLD_INFERENCE_OBJECTIVE, kinds.INFERENCE_OBJECTIVE)  # of one name in both, the last counts
_OTHERS: Final = frozenset((kinds.POD, *_OBJECTIVES))  # whose conditions are not ours
_OVER: Final = frozenset({"Failed", "Succeeded"})  # phases of a pod that runs nothing any more

Name = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class _Member:
    """One address of a pool, and what makes the engine behind it another one than before."""

    endpoint: Endpoint
    scheme: str
    model: str  # the name that every request for the base model goes by; "": as the client wrote it
    uid: str
    restarts: int


class WorldView:
    """Takes manifests, keeps the director's world in step with them."""

    def __init__(self, world: World, director: Director, arrivals: Arrivals | None = None) -> None:
        self.problems: dict[str, str] = {}  # "Kind namespace/name" -> what is wrong with it
        self.unmet: dict[str, tuple[str, ...]] = {}  # likewise -> conditions of routes and servers that are False
        self.changes = 0  # told of
        self.rebuilds = 0  # made of them
        self._world = world
        self._director = director
        self._arrivals = arrivals
        self._seen: dict[kinds.Kind, dict[Name, Any]] = {kind: {} for kind in KINDS}
        self._asked: list[objectives.InferenceObjective] = []  # what the priorities in force were made of: these
        self._labelled: dict[Name, Mapping[str, str]] = {}  # and ModelServers' labels
        self._members: dict[str, _Member] = {}  # by address
        self._pending: asyncio.TimerHandle | None = None

    def scheme(self, address: str) -> str:
        """Return the protocol of the engine at `address`: http or https."""
        member = self._members.get(address)
        return "http" if member is None else member.scheme

    def base_models(self, address: str, row: int) -> tuple[str, ...]:
        """Return the names by which requests for the base model reach the engine at `address`; empty: not known yet."""
        member = self._members.get(address)
        if member is not None and member.model:
            return (member.model,)
        table = self._world.table
        return tuple(sorted(table.models[row] - table.adapters[row]))

    def follow(self, store: Store) -> None:
        """Take what `store` knows and every change of it."""
        kind = store.kind

        def changed(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> None:
            if new is None:
                self.drop(kind, old or {})
            elif old is None or _said(old) != _said(new):
                self.put(kind, new)

        store.on_change(changed)

    def put(self, kind: kinds.Kind, manifest: Mapping[str, Any]) -> None:
        """Take an object that was added or changed."""
        name = _name(manifest)
        label = _label(kind, name)
        self.changes += 1
        if kind not in _OTHERS:
            self.unmet[label] = _unmet(manifest)
        try:
            parsed = _TYPES[kind].model_validate(manifest)
        except ValidationError as error:
            self.problems[label] = _problem(error)
            _LOG.warning("a resource cannot be used", extra={"resource": label, "problem": self.problems[label]})
            return
        self.problems.pop(label, None)
        self._seen[kind][name] = parsed
        self._soon()

    def drop(self, kind: kinds.Kind, manifest: Mapping[str, Any]) -> None:
        """Take an object's deletion."""
        name = _name(manifest)
        label = _label(kind, name)
        self.changes += 1
        self.problems.pop(label, None)
        self.unmet.pop(label, None)
        if self._seen[kind].pop(name, None) is not None:
            self._soon()

    def rebuild(self) -> None:
        """Bring table, pools and routes in step with what was seen."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        servers: list[networking.ModelServer] = list(self._seen[kinds.MODEL_SERVER].values())
        members, pools = self._gathered(servers)
        self._update_table(members)
        self._world.pools.set(pools, self._awaited(pools))
        providers = self._seen[kinds.EXTERNAL_MODEL_PROVIDER].values()
        self._update_priorities(servers)
        self._director.use_routes(RouteTable.build(self._seen[kinds.MODEL_ROUTE].values(), servers, providers))
        self.rebuilds += 1

    def _soon(self) -> None:
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_GATHER_S, self.rebuild)

    def _gathered(self, servers: Iterable[networking.ModelServer]) -> tuple[dict[str, _Member], dict[str, list[str]]]:
        members: dict[str, _Member] = {}
        pools: dict[str, list[str]] = {}
        pods: list[core.Pod] = list(self._seen[kinds.POD].values())
        for server in servers:
            pool = pools.setdefault(f"{server.metadata.namespace}/{server.metadata.name}", [])
            for pod in pods:
                if not server.selects(pod):
                    continue
                address = server.address(pod)
                if address is None or pod.status.phase in _OVER:
                    continue
                pool.append(address)
                members[address] = _member(server, pod, address)
        return members, pools

    def _awaited(self, pools: Mapping[str, list[str]]) -> frozenset[str]:
        if self._arrivals is None:
            return frozenset()
        ready = {
            server: [address for address in addresses if self._members[address].endpoint.ready]
            for server, addresses in pools.items()
        }
        return self._arrivals.awaited(ready, self._soon)

    def _update_priorities(self, servers: Iterable[networking.ModelServer]) -> None:
        """Say what objectives mean now; most rebuilds are of pods, and change nothing of it."""
        seen = (one for kind in _OBJECTIVES for one in self._seen[kind].values())
        asked = [one for one in seen if not one.metadata.deletion_timestamp]
        labelled: dict[Name, Mapping[str, str]] = {
            (one.metadata.namespace, one.metadata.name): one.metadata.labels for one in servers
        }
        if asked != self._asked or (asked and labelled != self._labelled):
            self._director.gate.objectives = priorities(asked, labelled)
        self._asked, self._labelled = asked, labelled

    def _update_table(self, members: dict[str, _Member]) -> None:
        table = self._world.table
        for address, before in self._members.items():
            after = members.get(address)
            if after is None or after.uid != before.uid:
                row = table.remove(address)
                if row is not None:
                    self._director.endpoint_left(row)
            elif after.restarts != before.restarts:
                row = table.row(address)
                if row is not None:
                    self._director.endpoint_restarted(row)
        for member in members.values():
            table.upsert(member.endpoint)
        self._members = members


def _member(server: networking.ModelServer, pod: core.Pod, address: str) -> _Member:
    return _Member(
        endpoint=Endpoint(
            address=address,
            pod=f"{pod.metadata.namespace}/{pod.metadata.name}",
            engine=server.spec.inference_engine,
            labels=pod.metadata.labels,
            ready=pod.ready and not pod.terminating,
            node=pod.spec.node_name,
            kv_events=pod.metadata.annotations.get(kv_sources.ANNOTATION, ""),
        ),
        scheme=server.spec.workload_port.protocol,
        model=server.spec.model or "",
        uid=pod.metadata.uid,
        restarts=sum(status.restart_count for status in pod.status.container_statuses),
    )


def _said(manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what can matter to us: all but who wrote which version, and the annotation that we have had written."""
    meta = dict(manifest.get("metadata") or {})
    for name in ("resourceVersion", "managedFields"):
        meta.pop(name, None)
    annotations = dict(meta.pop("annotations", None) or {})
    annotations.pop(dataplane.HELD_ANNOTATION, None)
    return meta, annotations, {name: value for name, value in manifest.items() if name != "metadata"}


def _label(kind: kinds.Kind, name: Name) -> str:
    # Two kinds of one name are told apart as kubectl does.
    group = f".{kind.group}" if kind == kinds.OLD_INFERENCE_OBJECTIVE else ""
    return f"{kind.kind}{group} {name[0]}/{name[1]}"


def _name(manifest: Mapping[str, Any]) -> Name:
    meta = manifest.get("metadata") or {}
    return str(meta.get("namespace", "")), str(meta.get("name", ""))


def _unmet(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return tuple(str(each.get("type")) for each in conditions if each.get("status") == "False")


def _problem(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors()
    )
