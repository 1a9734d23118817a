"""A memory cluster with the real controller, a kubelet that a test drives, and a count of what is written."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

from controllers.modelinfer import reconcile
from controllers.modelinfer.gangs import Served
from matrixinfer.api import kinds, workload
from matrixinfer.cluster.loop import Loop
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import Apply, ApplyStatus, Delete, Emit, Together
from matrixinfer.cluster.protocol import Key, NotFound

API_VERSION = kinds.MODEL_INFER.api_version
KEY = Key("ModelInfer", "default", "demo")


def a_template(image="sim:1", **spec):
    return {"spec": {"containers": [{"name": "engine", "image": image}]} | spec}


def a_role(name="decode", *, workers=0, image="sim:1", **fields):
    role = {"name": name, "workerReplicas": workers, "entryTemplate": a_template(image)}
    if workers:
        role["workerTemplate"] = a_template(image)
    return role | fields


def an_infer(*roles, name="demo", template=None, **spec):
    spec = {"replicas": 1, "template": {"roles": list(roles or (a_role(),))} | (template or {})} | spec
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelInfer",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def rolling(**fields):
    return {"type": "InferGroupRollingUpdate", "rollingUpdateConfiguration": fields}


def one_by_one(plan):
    """Every single write of a plan, in order."""
    return [
        single for action in plan.actions for single in (action.actions if isinstance(action, Together) else (action,))
    ]


class Snapshot:
    """What the controller reads, as of one moment."""

    def __init__(self, objects):
        self._objects = objects

    def get(self, kind, name, namespace=""):
        return next((one for one in self._objects[kind] if one["metadata"]["name"] == name), None)

    def owned(self, kind, uid):
        return [
            one
            for one in self._objects[kind]
            if any(reference["uid"] == uid for reference in one["metadata"].get("ownerReferences", ()))
        ]


class Village:
    """`reconcile` performs one plan; the rest is what users, the kubelet and time do."""

    def __init__(self, served=Served.NOTHING, *, now=1_800_000_000.0):
        self.now = now
        self.cluster = MemoryCluster(clock=lambda: datetime.fromtimestamp(self.now, UTC))
        self.served = served
        self.events: list[Emit] = []
        self.writes = 0
        self.bad: set[str] = set()  # images that never become ready

    async def world(self):
        # A controller that is new each time: nothing can be remembered.
        controller = reconcile.controller(self.served)
        listed = {kind: list((await self.cluster.list(kind)).items) for kind in controller.watches}
        return controller, Snapshot(listed)

    async def plan(self, key=KEY):
        controller, world = await self.world()
        return controller.reconcile(key, world, self.now)

    async def reconcile(self, actions=None, key=KEY):
        """Perform one plan, or only as many of its actions: the controller dies then."""
        plan = await self.plan(key)
        controller, _ = await self.world()
        loop = Loop(self.cluster, controller, clock=lambda: self.now)
        for action in one_by_one(plan)[:actions]:
            if isinstance(action, Emit):
                self.events.append(action)
            else:
                assert isinstance(action, Apply | ApplyStatus | Delete)
                self.writes += 1
                await loop._perform(action)
        return plan

    async def apply(self, manifest):
        return await self.cluster.apply(kinds.MODEL_INFER, manifest, manager="user", force=True)

    async def pods(self):
        return {pod["metadata"]["name"]: pod for pod in (await self.cluster.list(kinds.POD)).items}

    async def set_status(self, name, *, ready=True, phase="Running", restarts=0, waiting=None, crashed=False):
        pod = await self.cluster.get(kinds.POD, name, "default")
        old = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}
        word = "True" if ready else "False"
        time = datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        since = old["Ready"]["lastTransitionTime"] if old.get("Ready", {}).get("status") == word else time
        container = {"name": "engine", "ready": ready, "restartCount": restarts}
        if waiting:
            container["state"] = {"waiting": waiting}
        if crashed:
            container["lastState"] = {"terminated": {"exitCode": 1, "finishedAt": time}}
        pod["status"] = {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": word, "lastTransitionTime": since}],
            "containerStatuses": [container],
        }
        pod["metadata"].pop("resourceVersion")
        await self.cluster.update_status(kinds.POD, pod)

    async def kubelet(self):
        for name, pod in (await self.pods()).items():
            if "deletionTimestamp" in pod["metadata"]:
                with contextlib.suppress(NotFound):
                    await self.cluster.delete(kinds.POD, name, "default", grace_period_s=0)
            elif pod["spec"]["containers"][0].get("image") not in self.bad:
                await self.set_status(name)

    async def settle(self, rounds=80):
        """Until the controller has nothing to write."""
        for _ in range(rounds):
            plan = await self.reconcile()
            await self.kubelet()
            self.now += 5
            if not plan.actions and not (await self.plan()).actions:
                return
        raise AssertionError(f"not settled: {[str(action)[:200] for action in plan.actions]}")

    async def status(self):
        return (await self.cluster.get(kinds.MODEL_INFER, "demo", "default")).get("status", {})

    async def condition(self, name):
        return next(one for one in (await self.status())["conditions"] if one["type"] == name)

    async def images(self):
        """Images of each group's pods."""
        found: dict[str, set[str]] = {}
        for pod in (await self.pods()).values():
            group = pod["metadata"]["labels"][workload.GROUP_LABEL]
            found.setdefault(group, set()).add(pod["spec"]["containers"][0]["image"])
        return {group: "+".join(sorted(images)) for group, images in sorted(found.items())}

    async def uids(self):
        return {name: pod["metadata"]["uid"] for name, pod in (await self.pods()).items()}
