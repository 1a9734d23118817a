"""A control plane whose pods all run on a hollow node of ours, the controller beside it, and somebody with kubectl.

The node makes pods with the image `bad` wait for ever, and heeds readiness gates as a kubelet does.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

from kubernetes import client as official

from controllers.__main__ import gangs_served, modelinfer_loop
from matrixinfer.api import kinds, workload
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local.hollow import HollowNode
from tests.cluster.conformance import eventually
from tests.modelinfer.village import a_role, an_infer

NAMESPACE = "default"
KIND = (kinds.MODEL_INFER.group, kinds.MODEL_INFER.version, NAMESPACE, kinds.MODEL_INFER.plural)
COST = "controller.kubernetes.io/pod-deletion-cost"
GATE = "example.com/takes-part"


class PickyNode(HollowNode):
    """Does not find the image `bad`; a pod with a readiness gate is not ready while the gate's condition is False."""

    async def _tend(self, namespace, name):
        await super()._tend(namespace, name)
        pod = self._pods.get(name, namespace)
        if pod is None or "deletionTimestamp" in pod["metadata"] or not pod["spec"].get("readinessGates"):
            return
        conditions = pod.get("status", {}).get("conditions", ())
        closed = any(one["type"] == GATE and one["status"] == "False" for one in conditions)
        word = "False" if closed else "True"
        if pod["status"].get("phase") != "Running" or _condition(conditions, "Ready")["status"] == word:
            return
        changed = [one | ({"status": word} if one["type"] == "Ready" else {}) for one in conditions]
        meta = {key: pod["metadata"][key] for key in ("namespace", "name", "uid")}
        status = pod["status"] | {"conditions": changed}
        await self._cluster.update_status(kinds.POD, {"metadata": meta, "status": status})

    def _status(self, manifest):
        status = super()._status(manifest)
        if manifest["spec"]["containers"][0]["image"] == "bad":
            for condition in status["conditions"]:
                if condition["type"] in ("Ready", "ContainersReady"):
                    condition["status"] = "False"
            waiting = {"reason": "ImagePullBackOff", "message": "bad"}
            status["containerStatuses"][0] |= {"state": {"waiting": waiting}, "ready": False, "started": False}
            status["phase"] = "Pending"
        return status


@contextlib.asynccontextmanager
async def noded(plane):
    """Run the node."""
    async with ApiServer(credentials.kubeconfig(str(plane.kubeconfig))) as server:
        task = asyncio.create_task(PickyNode(server).run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def controlling(plane, requests=None, **options):
    """Run the controller; `requests` gets the verb and resource of each request."""

    def report(verb, resource, *_):
        if requests is not None:
            requests.append((verb, resource))

    async with ApiServer(credentials.kubeconfig(str(plane.kubeconfig)), report=report) as server:
        loop = modelinfer_loop(server, await gangs_served(server), **options)
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclasses.dataclass
class User:
    """Somebody with kubectl, and one ModelInfer. Names of pods are given without the ModelInfer's."""

    look: official.ApiClient
    name: str

    def __post_init__(self):
        self.custom = official.CustomObjectsApi(self.look)
        self.core = official.CoreV1Api(self.look)
        self.apps = official.AppsV1Api(self.look)

    async def call(self, method, *arguments, **options):
        return await asyncio.to_thread(method, *arguments, **options)

    # The ModelInfer

    async def create(self, *roles, **spec):
        return await self.submit(an_infer(*(roles or (a_role(),)), name=self.name, **spec))

    async def submit(self, manifest):
        return await self.call(self.custom.create_namespaced_custom_object, *KIND, manifest)

    async def patch(self, **spec):
        return await self.call(self.custom.patch_namespaced_custom_object, *KIND, self.name, {"spec": spec})

    async def image(self, image, *roles):
        await self.patch(template={"roles": list(roles) or [a_role(image=image)]})

    async def scale(self, replicas):
        body = {"spec": {"replicas": replicas}}
        return await self.call(self.custom.patch_namespaced_custom_object_scale, *KIND, self.name, body)

    async def delete(self):
        await self.call(self.custom.delete_namespaced_custom_object, *KIND, self.name)

    async def infer(self):
        return await self.call(self.custom.get_namespaced_custom_object, *KIND, self.name)

    async def status(self):
        return (await self.infer()).get("status", {})

    async def condition(self, kind):
        return _condition((await self.status()).get("conditions", ()), kind)

    # Its pods and Services

    async def pods(self):
        found = await self.call(
            self.core.list_namespaced_pod, NAMESPACE, label_selector=f"{workload.NAME_LABEL}={self.name}"
        )
        return {
            pod.metadata.name.removeprefix(f"{self.name}-"): pod
            for pod in found.items
            if not pod.metadata.deletion_timestamp
        }

    async def images(self):
        pods = await self.pods()
        return {name: pod.spec.containers[0].image for name, pod in sorted(pods.items())}

    async def uids(self):
        return {name: pod.metadata.uid for name, pod in (await self.pods()).items()}

    async def ready_pods(self):
        return sum(is_ready(pod) for pod in (await self.pods()).values())

    async def services(self):
        found = await self.call(
            self.core.list_namespaced_service, NAMESPACE, label_selector=f"{workload.NAME_LABEL}={self.name}"
        )
        return sorted(service.metadata.name for service in found.items)

    async def delete_pod(self, name):
        await self.call(self.core.delete_namespaced_pod, f"{self.name}-{name}", NAMESPACE)

    async def patch_pod(self, name, body):
        return await self.call(self.core.patch_namespaced_pod, f"{self.name}-{name}", NAMESPACE, body)

    async def cost(self, name, cost):
        await self.patch_pod(name, {"metadata": {"annotations": {COST: str(cost)}}})

    async def close_gate(self, name):
        body = {"status": {"conditions": [{"type": GATE, "status": "False"}]}}
        await self.call(self.core.patch_namespaced_pod_status, f"{self.name}-{name}", NAMESPACE, body)

        async def closed():
            return not is_ready((await self.pods())[name])

        await eventually(closed)

    # Waiting

    async def is_settled(self):
        infer = await self.infer()
        status = infer.get("status", {})
        return (
            status.get("observedGeneration") == infer["metadata"]["generation"]
            and status["replicas"] == status["availableReplicas"] == infer["spec"]["replicas"]
            and _condition(status["conditions"], "Progressing")["status"] == "False"
        )

    async def settled(self):
        await eventually(self.is_settled)

    async def rolled(self, image, watch=None):
        """Wait until every pod is of the image and all is ready; `watch` looks on."""
        while not await self.is_settled() or set((await self.images()).values()) != {image}:
            if watch is not None:
                await watch()

    async def has(self, images):
        """Wait until these pods are there, of these images."""

        async def holds():
            return await self.images() == images

        await eventually(holds)


def gated(role):
    """Give the role with a readiness gate on its entries."""
    role["entryTemplate"]["spec"]["readinessGates"] = [{"conditionType": GATE}]
    return role


def is_ready(pod):
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())


def _condition(conditions, kind):
    return next((one for one in conditions if one["type"] == kind), {})
