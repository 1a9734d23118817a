"""The ModelInfer controller without a cluster: what one reconcile takes, for a thousand pods in a few shapes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from bench import table
from controllers.modelinfer import reconcile
from controllers.modelinfer.gangs import Served
from matrixinfer.api import kinds
from matrixinfer.cluster.plan import Apply, ApplyStatus, Plan, Together
from matrixinfer.cluster.protocol import Key

if TYPE_CHECKING:
    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.protocol import Manifest

_KEY: Final = Key("ModelInfer", "default", "bench")
_NOW: Final = 1_800_000_000.0
_BATCHES: Final = 5
_SHAPES: Final = (
    ("1,000 groups of 1 pod", 1000, 1, 0),
    ("100 groups of 2 times 5 pods", 100, 2, 4),
    ("1 group of 1,000", 1, 1000, 0),
)


class _World:
    """What the controller reads, and what becomes of its plans."""

    def __init__(self, manifest: Manifest) -> None:
        self.objects: dict[Kind, dict[str, Manifest]] = {kinds.MODEL_INFER: {"bench": manifest}}

    def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:  # noqa: ARG002 - one namespace
        return self.objects.get(kind, {}).get(name)

    def owned(self, kind: Kind, uid: str) -> list[Manifest]:  # noqa: ARG002 - one owner
        return list(self.objects.get(kind, {}).values())

    def perform(self, plan: Plan) -> int:
        singles = [each for one in plan.actions for each in (one.actions if isinstance(one, Together) else (one,))]
        for action in singles:
            if isinstance(action, Apply):
                meta = action.manifest["metadata"]
                meta |= {"uid": meta["name"], "creationTimestamp": "2026-01-01T00:00:00Z"}
                self.objects.setdefault(action.kind, {})[meta["name"]] = action.manifest
            elif isinstance(action, ApplyStatus):
                self.objects[kinds.MODEL_INFER]["bench"]["status"] = action.manifest["status"]
        return sum(isinstance(action, Apply | ApplyStatus) for action in singles)

    def ready(self) -> None:
        condition = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:10Z"}
        for pod in self.objects[kinds.POD].values():
            pod["status"] = {"phase": "Running", "conditions": [condition], "containerStatuses": []}


def run() -> None:
    """Print milliseconds per plan: everything to make, nothing to do, everything to update."""
    rows = []
    for name, groups, instances, workers in _SHAPES:
        world = _World(_manifest(groups, instances, workers, "sim:1"))
        create, plan = _timed(world)
        writes = world.perform(plan)
        world.ready()
        world.perform(_reconcile(world))
        idle, plan = _timed(world)
        if plan.actions:
            raise AssertionError(f"a steady world is written to: {plan.actions[:3]}")
        status = world.objects[kinds.MODEL_INFER]["bench"]["status"]
        world.objects[kinds.MODEL_INFER]["bench"] = _manifest(groups, instances, workers, "sim:2") | {"status": status}
        update, _ = _timed(world)
        pods = len(world.objects[kinds.POD])
        rows.append((name, f"{create:.0f}", f"{idle:.0f}", f"{update:.0f}", f"{writes / pods:.2f}"))
    table.show(
        "ModelInfer: one plan (ms)", ("shape", "to make all", "nothing to do", "a new template", "writes per pod"), rows
    )


def _reconcile(world: _World) -> Plan:
    controller: Any = reconcile.Reconciler(Served.NOTHING)
    plan: Plan = controller.reconcile(_KEY, world, _NOW)
    return plan


def _timed(world: _World) -> tuple[float, Plan]:
    """Best of several, so that it compares on a busy machine."""
    best = float("inf")
    for _ in range(_BATCHES):
        start = time.process_time()
        plan = _reconcile(world)
        best = min(best, time.process_time() - start)
    return best * 1000, plan


def _manifest(groups: int, instances: int, workers: int, image: str) -> Manifest:
    template = {"spec": {"containers": [{"name": "engine", "image": image}]}}
    role: dict[str, Any] = {
        "name": "engine",
        "replicas": instances,
        "workerReplicas": workers,
        "entryTemplate": template,
    } | ({"workerTemplate": template} if workers else {})
    return {
        "apiVersion": kinds.MODEL_INFER.api_version,
        "kind": kinds.MODEL_INFER.kind,
        "metadata": {"name": "bench", "namespace": "default", "uid": "bench", "generation": 1},
        "spec": {"replicas": groups, "template": {"roles": [role]}},
    }
