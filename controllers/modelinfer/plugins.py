"""What plugins of a ModelInfer do to a pod before it is created. Pure: a manifest in, another out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from matrixinfer.cluster.protocol import Manifest

_LWS: Final = "leaderworkerset.sigs.k8s.io/"


@dataclass(frozen=True, slots=True)
class Seat:
    """Where in its ModelInfer a pod is."""

    model_infer: str
    group: int
    role: str
    member: int


def applied(plugins: Iterable[Mapping[str, Any]], pod: Manifest, seat: Seat) -> Manifest:
    """Give the pod as the plugins that are for it make it, in their order."""
    for plugin in plugins:
        if _is_for(plugin.get("scope", {}), seat):
            pod = BUILTIN[plugin["name"]](pod, seat, plugin.get("config", {}))
    return pod


def with_env(spec: Mapping[str, Any], entries: Iterable[Mapping[str, Any]], *, first: bool = False) -> dict[str, Any]:
    """Give a pod's spec in which every container has these variables, in the place of others of the name.

    They come last, or first, where the others can refer to them.
    """
    listed = list(entries)
    made = dict(spec)
    for member in ("initContainers", "containers"):
        if member in made:
            made[member] = [one | {"env": _merged(one.get("env", ()), listed, first=first)} for one in made[member]]
    return made


def _merged(
    there: Iterable[Mapping[str, Any]], listed: list[Mapping[str, Any]], *, first: bool
) -> list[Mapping[str, Any]]:
    names = {entry["name"] for entry in listed}
    others = [env for env in there if env["name"] not in names]
    return [*listed, *others] if first else [*others, *listed]


def _is_for(scope: Mapping[str, Any], seat: Seat) -> bool:
    roles, target = scope.get("roles", ()), scope.get("target", "All")
    return (not roles or seat.role in roles) and target in ("All", "Worker" if seat.member else "Entry")


def _demo_pod_tweaks(pod: Manifest, _seat: Seat, config: Mapping[str, Any]) -> Manifest:
    meta, spec = dict(pod["metadata"]), with_env(pod["spec"], config.get("env", ()))
    if "annotations" in config:
        meta["annotations"] = meta.get("annotations", {}) | config["annotations"]
    if "runtimeClassName" in config:
        spec["runtimeClassName"] = config["runtimeClassName"]
    return pod | {"metadata": meta, "spec": spec}


def _lws_standard_labels(pod: Manifest, seat: Seat, _config: Mapping[str, Any]) -> Manifest:
    group = f"{seat.model_infer}-{seat.group}"
    labels = {
        f"{_LWS}name": seat.model_infer,
        f"{_LWS}group-index": str(seat.group),
        f"{_LWS}worker-index": str(seat.member),
        f"{_LWS}group-key": hashlib.sha1(group.encode(), usedforsecurity=False).hexdigest(),
    }
    meta = pod["metadata"]
    return pod | {"metadata": meta | {"labels": meta.get("labels", {}) | labels}}


BUILTIN: Final[Mapping[str, Callable[[Manifest, Seat, Mapping[str, Any]], Manifest]]] = {
    "demo-pod-tweaks": _demo_pod_tweaks,
    "lws-standard-labels": _lws_standard_labels,
}
