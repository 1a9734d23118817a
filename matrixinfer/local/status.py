"""A pod's status as the kubelet would write it, from the states of its containers. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matrixinfer.api import core


@dataclass(frozen=True, slots=True)
class Waiting:
    """Not running, and not over."""

    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A process runs."""

    started_at: float


@dataclass(frozen=True, slots=True)
class Terminated:
    """A process has ended."""

    exit_code: int
    reason: str
    message: str
    started_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class ContainerStatus:
    """All that is known of one container."""

    name: str
    image: str
    state: Waiting | Running | Terminated = Waiting("ContainerCreating")
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False  # the startup probe has passed
    ready: bool = False
    complaint: str = ""  # what the last failed probe said
    pid: int | None = None


def pod_status(  # noqa: PLR0913 - the facts that a status is made of, by name
    pod: core.Pod,
    *,
    address: str,
    started_at: float,
    now: float,
    init: Sequence[ContainerStatus],
    containers: Sequence[ContainerStatus],
    previous: Mapping[str, Any],
) -> dict[str, Any]:
    """Status of the pod. Transition times of `previous` are kept."""
    initialized = all(_initialized(status, pod, i) for i, status in enumerate(init))
    sidecars = [status for i, status in enumerate(init) if pod.spec.init_containers[i].restart_policy == "Always"]
    unready = [status for status in (*sidecars, *containers) if not status.ready]
    phase = _phase(pod, initialized=initialized, init=init, containers=containers)
    conditions = [
        _condition("PodScheduled", value=True),
        _condition("Initialized", value=initialized, reason="ContainersNotInitialized", message=_names(init)),
    ]
    if phase == "Succeeded":
        reason, message = "PodCompleted", ""
    else:
        reason, message = "ContainersNotReady", _unready(unready)
    ready = initialized and not unready and bool(containers)
    conditions += [
        _condition(kind, value=ready, reason=reason, message=message) for kind in ("ContainersReady", "Ready")
    ]
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": _with_transitions(conditions, previous.get("conditions") or (), now),
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "127.0.0.1",
        "startTime": timestamp(started_at),
        "containerStatuses": [_container(item) for item in containers],
    }
    if init:
        status["initContainerStatuses"] = [_container(item) for item in init]
    return status


def timestamp(seconds: float) -> str:
    """Time as the API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _initialized(status: ContainerStatus, pod: core.Pod, index: int) -> bool:
    if pod.spec.init_containers[index].restart_policy == "Always":
        return status.started or isinstance(status.state, Terminated) or status.last is not None
    return isinstance(status.state, Terminated) and status.state.exit_code == 0


def _phase(
    pod: core.Pod, *, initialized: bool, init: Sequence[ContainerStatus], containers: Sequence[ContainerStatus]
) -> str:
    if not initialized:
        failed = any(
            isinstance(status.state, Terminated) and status.state.exit_code != 0 and pod.spec.restart_policy == "Never"
            for i, status in enumerate(init)
        )
        return "Failed" if failed else "Pending"
    over = [status.state for status in containers if isinstance(status.state, Terminated)]
    if containers and len(over) == len(containers):  # a container that will start again is Waiting
        return "Succeeded" if all(state.exit_code == 0 for state in over) else "Failed"
    begun = any(isinstance(status.state, Running) or status.last for status in containers)
    return "Running" if begun or over else "Pending"


def _condition(kind: str, *, value: bool, reason: str = "", message: str = "") -> dict[str, Any]:
    condition: dict[str, Any] = {"type": kind, "status": "True" if value else "False"}
    if not value:
        condition |= {"reason": reason, "message": message}
    return condition


def _with_transitions(
    conditions: Sequence[dict[str, Any]], previous: Sequence[Mapping[str, Any]], now: float
) -> list[dict[str, Any]]:
    before = {condition["type"]: condition for condition in previous}
    stamped = []
    for condition in conditions:
        old = before.get(condition["type"])
        same = old is not None and old["status"] == condition["status"] and "lastTransitionTime" in old
        stamped.append(
            condition | {"lastTransitionTime": old["lastTransitionTime"] if same and old else timestamp(now)}
        )
    return stamped


def _names(statuses: Sequence[ContainerStatus]) -> str:
    waiting = [status.name for status in statuses if not isinstance(status.state, Terminated)]
    return f"containers with incomplete status: [{' '.join(waiting)}]"


def _unready(statuses: Sequence[ContainerStatus]) -> str:
    """One clause per container: its name and what is known of why."""
    clauses = []
    for status in statuses:
        match status.state:
            case Waiting(reason, message):
                why = f"{reason}: {message}" if message else reason
            case Terminated(exit_code, reason, message):
                why = f"{reason}, exit code {exit_code}" + (f": {message}" if message else "")
            case Running():
                why = status.complaint or "no probe has passed yet"
        clauses.append(f"{status.name} ({why})")
    return f"containers with unready status: {', '.join(clauses)}"


def _container(status: ContainerStatus) -> dict[str, Any]:
    manifest = {
        "name": status.name,
        "image": status.image,
        "imageID": "",
        "ready": status.ready,
        "started": status.started,
        "restartCount": status.restarts,
        "state": _state(status.state),
        "lastState": _state(status.last) if status.last else {},
    }
    if status.pid is not None:
        manifest["containerID"] = f"process://{status.pid}"
    return manifest


def _state(state: Waiting | Running | Terminated) -> dict[str, Any]:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(started_at):
            return {"running": {"startedAt": timestamp(started_at)}}
        case Terminated(exit_code, reason, message, started_at, finished_at):
            terminated = {
                "exitCode": exit_code,
                "reason": reason,
                "startedAt": timestamp(started_at),
                "finishedAt": timestamp(finished_at),
            }
            return {"terminated": terminated | ({"message": message} if message else {})}
