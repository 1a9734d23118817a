"""ModelInfer on a real API server, looked at with the official client: the peers' black-box cases, each named after its case.

Pods run on a hollow node, which makes those with the image `bad` wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses

import pytest
from kubernetes import client as official

from controllers.__main__ import gangs_served, modelinfer_loop
from controllers.modelinfer.gangs import Served
from matrixinfer.api import kinds, workload
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local.hollow import HollowNode
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import access, official_client, own_control_plane
from tests.modelinfer.village import a_role, an_infer, rolling

NAMESPACE = "default"
GROUP, VERSION = kinds.MODEL_INFER.group, kinds.MODEL_INFER.version
PLURAL = kinds.MODEL_INFER.plural


class PickyNode(HollowNode):
    """Does not find the image `bad`."""

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


@dataclasses.dataclass
class User:
    """Somebody with kubectl."""

    custom: official.CustomObjectsApi
    core: official.CoreV1Api
    name: str

    async def _call(self, method, *arguments, **options):
        return await asyncio.to_thread(method, *arguments, **options)

    async def create(self, *roles, **spec):
        manifest = an_infer(*(roles or (a_role(),)), name=self.name, **spec)
        return await self._call(
            self.custom.create_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL, manifest
        )

    async def patch(self, **spec):
        return await self._call(
            self.custom.patch_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL, self.name, {"spec": spec}
        )

    async def image(self, image, *roles):
        await self.patch(template={"roles": list(roles) or [a_role(image=image)]})

    async def delete(self):
        await self._call(self.custom.delete_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL, self.name)

    async def infer(self):
        return await self._call(self.custom.get_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL, self.name)

    async def pods(self):
        found = await self._call(
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

    async def services(self):
        found = await self._call(
            self.core.list_namespaced_service, NAMESPACE, label_selector=f"{workload.NAME_LABEL}={self.name}"
        )
        return sorted(service.metadata.name for service in found.items)

    async def delete_pod(self, name):
        await self._call(self.core.delete_namespaced_pod, f"{self.name}-{name}", NAMESPACE)

    async def annotate(self, name, cost):
        annotations = {"controller.kubernetes.io/pod-deletion-cost": str(cost)}
        body = {"metadata": {"annotations": annotations}}
        await self._call(self.core.patch_namespaced_pod, f"{self.name}-{name}", NAMESPACE, body)

    async def ready(self):
        infer = await self.infer()
        status = infer.get("status", {})
        return (
            status.get("observedGeneration") == infer["metadata"]["generation"]
            and status["replicas"] == status["availableReplicas"] == infer["spec"]["replicas"]
            and next(one for one in status["conditions"] if one["type"] == "Progressing")["status"] == "False"
        )

    async def settled(self):
        await eventually(self.ready)


@contextlib.asynccontextmanager
async def controlling(plane, requests=None):
    """The controller; `requests` gets the verb and resource of each request."""

    def report(verb, resource, *_):
        if requests is not None:
            requests.append((verb, resource))

    async with ApiServer(access(plane), report=report) as server:
        loop = modelinfer_loop(server, await gangs_served(server))
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(scope="module")
def own():
    with own_control_plane(crds=control_plane.OUR_CRDS) as plane:
        yield plane


@pytest.fixture
async def node(own):
    async with ApiServer(access(own)) as server:
        task = asyncio.create_task(PickyNode(server).run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def controller(own, node):
    async with controlling(own) as loop:
        yield loop


@pytest.fixture
def user(own, request):
    look = official_client(own)
    name = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[-24:].strip("-")
    return User(official.CustomObjectsApi(look), official.CoreV1Api(look), name)


async def test_lifecycle(user, controller):
    await user.create()
    await user.settled()
    await user.image("sim:2")
    await user.settled()
    images = await user.images()
    await user.delete()

    async def gone():
        return not await user.pods()

    assert images == {"0-decode-0-0": "sim:2"}
    await eventually(gone)


async def test_scale_up_and_down(user, controller):
    await user.create()
    await user.settled()
    await user.patch(replicas=3)
    await user.settled()
    three = await user.pods()
    await user.patch(replicas=1)
    await user.settled()

    assert sorted(three) == ["0-decode-0-0", "1-decode-0-0", "2-decode-0-0"]
    assert sorted(await user.pods()) == ["0-decode-0-0"]


async def test_scale_subresource_and_its_selector(user, controller):
    await user.create()
    await user.settled()
    await user._call(
        user.custom.patch_namespaced_custom_object_scale,
        GROUP, VERSION, NAMESPACE, PLURAL, user.name, {"spec": {"replicas": 2}},
    )  # fmt: skip
    await user.settled()
    scale = await user._call(
        user.custom.get_namespaced_custom_object_scale, GROUP, VERSION, NAMESPACE, PLURAL, user.name
    )
    found = await user._call(user.core.list_namespaced_pod, NAMESPACE, label_selector=scale["status"]["selector"])

    assert scale["status"]["replicas"] == len(found.items) == 2


async def test_negative_replicas_are_refused(user):
    with pytest.raises(official.ApiException) as refused:
        await user.create(replicas=-1)

    assert "spec.replicas" in refused.value.body


async def test_role_scale_up_and_down(user, controller):
    await user.create(a_role(replicas=1))
    await user.settled()
    await user.patch(template={"roles": [a_role(replicas=3)]})
    await user.settled()
    three = await user.pods()
    await user.patch(template={"roles": [a_role(replicas=1)]})
    await user.settled()

    assert len(three) == 3
    assert len(await user.pods()) == 1


async def test_serving_group_recreate(user, controller):
    await user.create(a_role(), a_role("prefill"), recoveryPolicy="InferGroupRecreate")
    await user.settled()
    before = await user.uids()
    await user.delete_pod("0-decode-0-0")

    async def renewed():
        after = await user.uids()
        return before.keys() == after.keys() and not set(before.values()) & set(after.values())

    await eventually(renewed)
    await user.settled()


async def test_headless_service_delete_on_serving_group_delete(user, controller):
    await user.create(a_role(workers=1), replicas=3)
    await user.settled()
    three = await user.services()
    await user.patch(replicas=1)
    await user.settled()

    async def one():
        return await user.services() == [f"{user.name}-0-decode-0-0"]

    assert len(three) == 3
    await eventually(one)


async def test_pod_recovery(user, controller):
    await user.create()
    await user.settled()
    [before] = (await user.pods()).values()
    await user.delete_pod("0-decode-0-0")

    async def back():
        pods = await user.pods()
        return len(pods) == 1 and pods["0-decode-0-0"].metadata.uid != before.metadata.uid

    await eventually(back)
    assert (await user.pods())["0-decode-0-0"].metadata.labels == before.metadata.labels


async def test_service_recovery(user, controller):
    await user.create(a_role(workers=1))
    await user.settled()
    [name] = await user.services()
    before = await user._call(user.core.read_namespaced_service, name, NAMESPACE)
    await user._call(user.core.delete_namespaced_service, name, NAMESPACE)

    async def back():
        with contextlib.suppress(official.ApiException):
            service = await user._call(user.core.read_namespaced_service, name, NAMESPACE)
            return service.metadata.uid != before.metadata.uid
        return False

    await eventually(back)


async def test_duplicate_host_aliases(user, controller):
    role = a_role()
    role["entryTemplate"]["spec"]["hostAliases"] = [
        {"ip": "10.0.0.1", "hostnames": ["a"]},
        {"ip": "10.0.0.1", "hostnames": ["b"]},
    ]
    await user.create(role)
    await user.settled()

    [pod] = (await user.pods()).values()
    assert [name for alias in pod.spec.host_aliases for name in alias.hostnames] == ["a", "b"]


async def test_rolling_update_max_unavailable(user, controller):
    await user.create(replicas=4, rolloutStrategy=rolling(maxUnavailable=2))
    await user.settled()
    await user.image("sim:2")
    least = 4
    while not await user.ready() or set((await user.images()).values()) != {"sim:2"}:
        least = min(least, sum(_is_ready(pod) for pod in (await user.pods()).values()))

    assert least >= 2
    status = (await user.infer())["status"]
    assert status["currentRevision"] == status["updateRevision"]


async def test_rolling_update_max_unavailable_with_bad_image(user, controller):
    await user.create(replicas=6, rolloutStrategy=rolling(maxUnavailable=2))
    await user.settled()
    await user.image("bad")

    async def stuck():
        return sorted((await user.images()).values()) == ["bad"] * 2 + ["sim:1"] * 4

    await eventually(stuck)
    for _ in range(20):
        await asyncio.sleep(0.05)
        assert sum(_is_ready(pod) for pod in (await user.pods()).values()) >= 4
    await user.image("sim:1")
    await user.settled()
    assert set((await user.images()).values()) == {"sim:1"}


async def test_surge(user, controller):
    await user.create(replicas=3, rolloutStrategy=rolling(maxUnavailable=0, maxSurge=1))
    await user.settled()
    await user.image("sim:2")
    least = 3
    while not await user.ready() or set((await user.images()).values()) != {"sim:2"}:
        least = min(least, sum(_is_ready(pod) for pod in (await user.pods()).values()))

    assert least == 3
    assert len(await user.pods()) == 3


async def test_role_status_events(user, controller):
    await user.create()
    await user.settled()

    async def told():
        events = await user._call(user.core.list_namespaced_event, NAMESPACE)
        reasons = {event.reason for event in events.items if event.involved_object.name == user.name}
        return {"RoleCreating", "RoleRunning"} <= reasons

    await eventually(told)


async def test_partition_boundary_protection_deletion_and_scaling(user, controller):
    await user.create(replicas=5)
    await user.settled()
    first = (await user.infer())["status"]["currentRevision"]
    await user.patch(rolloutStrategy=rolling(partition=3))
    await user.image("sim:2")

    async def are(*images):
        return list((await user.images()).values()) == list(images) and await user.ready()

    await eventually(lambda: are(*["sim:1"] * 3, *["sim:2"] * 2))
    before = await user.uids()
    await user.delete_pod("1-decode-0-0")

    async def back():
        uids = await user.uids()
        return "1-decode-0-0" in uids and uids["1-decode-0-0"] != before["1-decode-0-0"]

    await eventually(back)
    await eventually(lambda: are(*["sim:1"] * 3, *["sim:2"] * 2))
    await user.patch(replicas=7)
    await eventually(lambda: are(*["sim:1"] * 3, *["sim:2"] * 4))
    assert (await user.infer())["status"]["currentRevision"] == first
    await user.patch(replicas=3)
    await eventually(lambda: are(*["sim:1"] * 3))
    status = (await user.infer())["status"]
    assert (status["updatedReplicas"], status["currentReplicas"]) == (0, 3)


async def test_controller_manager_restart(user, own, node):
    await user.create(a_role(workers=2), a_role("prefill", workers=1), replicas=5)
    for pause in (0.05, 0.1, 0.2):
        async with controlling(own):
            await asyncio.sleep(pause)
    async with controlling(own):
        await user.settled()

        assert len(await user.pods()) == 25


async def test_role_based_rolling_update(user, controller):
    await user.create(a_role(), a_role("prefill"), rolloutStrategy={"type": "RoleRollingUpdate"})
    await user.settled()
    before = await user.uids()
    await user.image("", a_role(), a_role("prefill", image="sim:2"))
    await eventually(lambda: _all(user, {"0-decode-0-0": "sim:1", "0-prefill-0-0": "sim:2"}))

    assert (await user.uids())["0-decode-0-0"] == before["0-decode-0-0"]


async def test_role_rolling_update_max_unavailable_and_partition(user, controller):
    strategy = {"type": "RoleRollingUpdate"}
    await user.create(a_role(replicas=4, maxUnavailable=2), rolloutStrategy=strategy)
    await user.settled()
    await user.image("", a_role(replicas=4, maxUnavailable=2, image="bad"))

    async def images(*expected):
        return list((await user.images()).values()) == list(expected)

    await eventually(lambda: images("sim:1", "sim:1", "bad", "bad"))
    await user.image("", a_role(replicas=4, maxUnavailable=2, partition=2, image="sim:2"))
    await eventually(lambda: images("sim:1", "sim:1", "sim:2", "sim:2"))
    await user.settled()
    await user.delete_pod("0-decode-0-0")
    await eventually(lambda: images("sim:1", "sim:1", "sim:2", "sim:2"))


async def test_bin_pack_scale_down_combined(user, controller):
    await user.create(a_role("prefill", replicas=2), a_role(), replicas=2)
    await user.settled()
    await user.annotate("0-prefill-1-0", 10)
    await user.annotate("0-decode-0-0", 100)
    await user.patch(replicas=1, template={"roles": [a_role("prefill", replicas=1), a_role()]})
    await eventually(lambda: _all(user, {"0-decode-0-0": "sim:1", "0-prefill-1-0": "sim:1"}))


async def test_a_steady_world_is_left_alone(user, own, node):
    requests = []
    async with controlling(own, requests) as loop:
        await user.create(a_role(workers=1), replicas=3)
        await user.settled()

        async def idle():
            return not loop.waiting

        await eventually(idle)
        requests.clear()
        loop.refresh()
        await eventually(idle)

        assert not [verb for verb, _ in requests if verb not in ("watch", "list")]


async def test_labels_that_were_taken_away_come_back(user, controller):
    await user.create()
    await user.settled()
    before = await user.uids()
    body = {"metadata": {"labels": {workload.ROLE_LABEL: None}}}
    await user._call(user.core.patch_namespaced_pod, f"{user.name}-0-decode-0-0", NAMESPACE, body)

    async def back():
        [pod] = (await user.pods()).values()
        return pod.metadata.labels.get(workload.ROLE_LABEL) == "decode"

    await eventually(back)
    assert await user.uids() == before


async def test_a_pod_that_the_api_server_refuses_is_said_in_the_status_and_made_once_it_can_be(user, controller):
    role = a_role()
    role["entryTemplate"]["spec"]["restartPolicy"] = "Always"
    role["entryTemplate"]["spec"]["dnsPolicy"] = "Nonsense"
    await user.create(role)

    async def said():
        conditions = (await user.infer()).get("status", {}).get("conditions", ())
        degraded = next((one for one in conditions if one["type"] == "Degraded"), {})
        return degraded.get("reason") == "Refused" and "dnsPolicy" in degraded["message"]

    await eventually(said)
    await user.image("sim:1")
    await user.settled()
    degraded = next(one for one in (await user.infer())["status"]["conditions"] if one["type"] == "Degraded")
    assert degraded["status"] == "False"


async def test_what_the_schema_refuses(user):
    for wrong, expected in (
        ({"recoveryPolicy": "Never"}, "recoveryPolicy"),
        ({"rolloutStrategy": rolling(maxUnavailable="120%")}, "percentage"),
        ({"template": {"roles": [a_role("a"), a_role("a")]}}, "two roles have the same name"),
        ({"template": {"roles": [{**a_role("a"), "workerReplicas": 1}]}}, "workerTemplate"),
        ({"recoveryPolicy": "InferGroupRecreate", "rolloutStrategy": {"type": "RoleRollingUpdate"}}, "RoleRecreate"),
        ({"template": {"roles": [a_role("r" * 12)]}, "replicas": 1_000_000}, ""),
    ):
        manifest = an_infer(name="n" * 40)
        manifest["spec"] |= wrong
        with pytest.raises(official.ApiException) as refused:
            await user._call(user.custom.create_namespaced_custom_object, GROUP, VERSION, NAMESPACE, PLURAL, manifest)
        assert expected in refused.value.body, refused.value.body


async def test_an_api_server_without_volcano_says_so(own):
    async with ApiServer(access(own)) as server:
        assert await gangs_served(server) in (Served.NOTHING, Served.IN_TREE)


async def _all(user, expected):
    return await user.images() == expected


def _is_ready(pod):
    return any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
