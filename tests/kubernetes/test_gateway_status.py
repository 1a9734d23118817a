"""ModelServers and ModelRoutes on a real API server, with a real Envoy that takes or refuses: what users read in their status."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from dataclasses import dataclass, field

import pytest
from kubernetes import client as official

from controllers.__main__ import gateway_loop
from controllers.gateway.replicas import Replica
from matrixinfer.api import kinds
from matrixinfer.cluster.apiserver import ApiServer
from tests.cluster.conformance import eventually
from tests.gateway.test_reconcile import GATEWAY, a_route, a_server
from tests.kubernetes.conftest import access
from tests.xds.stack import running


@dataclass
class User:
    """Somebody with kubectl, in one namespace."""

    look: official.ApiClient
    namespace: str
    custom: official.CustomObjectsApi = field(init=False)
    core: official.CoreV1Api = field(init=False)

    def __post_init__(self):
        self.custom, self.core = official.CustomObjectsApi(self.look), official.CoreV1Api(self.look)

    async def call(self, method, kind, *arguments):
        path = (kind.group, kind.version, self.namespace, kind.plural)
        return await asyncio.to_thread(getattr(self.custom, f"{method}_namespaced_custom_object"), *path, *arguments)

    async def create(self, kind, manifest):
        body = copy.deepcopy(manifest)
        body["metadata"].pop("namespace")
        if kind == kinds.MODEL_ROUTE:  # others in this cluster have routes, too
            body["spec"]["modelName"] += f".{self.namespace}"
        return await self.call("create", kind, body)

    async def get(self, kind, name="demo"):
        return await self.call("get", kind, name)

    async def pod(self, name, *, ready=True, port=None, ip="127.0.0.1"):
        annotations = {"networking.matrixinfer.ai/port": str(port)} if port is not None else {}
        body = {
            "metadata": {"name": name, "labels": {"app": "demo"}, "annotations": annotations},
            "spec": {"containers": [{"name": "engine", "image": "sim"}], "nodeName": "nowhere"},
        }
        await asyncio.to_thread(self.core.create_namespaced_pod, self.namespace, body)
        await self.report(name, ready=ready, ip=ip)

    async def report(self, name, *, ready, ip="127.0.0.1"):
        status = {"podIP": ip, "podIPs": [{"ip": ip}], "conditions": [{"type": "Ready", "status": str(ready)}]}
        await asyncio.to_thread(self.core.patch_namespaced_pod_status, name, self.namespace, {"status": status})

    async def says(self, kind, name="demo", **expected):
        """Wait until the conditions have these reasons, for the object as it stands."""
        found = {}

        async def holds():
            manifest = await self.get(kind, name)
            status = manifest.get("status", {})
            found.clear()
            found.update(status)
            reasons = {one["type"]: one["reason"] for one in status.get("conditions", ())}
            return status.get("observedGeneration") == manifest["metadata"]["generation"] and all(
                reasons[type_] == reason for type_, reason in expected.items()
            )

        try:
            await eventually(holds)
        except TimeoutError:
            raise AssertionError(f"{kind.kind} {name} should say {expected}: {found}") from None
        return found


def message(status, type_):
    return next(one["message"] for one in status["conditions"] if one["type"] == type_)


@contextlib.asynccontextmanager
async def serving(plane, gateway, *addresses, replica=None, may_write=lambda: True, requests=None):
    def report(verb, resource, *_):
        if requests is not None and verb not in ("watch", "list"):
            requests.append((verb, resource))

    async with (
        ApiServer(access(plane), report=report) as cluster,
        gateway_loop(cluster, gateway, *addresses, replica=replica, may_write=may_write) as loop,
    ):
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def user(look, namespace):
    return User(look, namespace)


@pytest.mark.envoy
async def test_all_conditions_hold_once_envoy_has_taken_it_and_it_serves(plane, user):
    async with running(served=False) as stack:
        await stack.picker.stop()  # Envoy balances by itself
        async with serving(plane, stack.config.gateway, f"unix:{stack.envoy.folder}/xds.sock"):
            await user.pod("one", port=stack.engines[0].port)
            await user.pod("two", port=stack.engines[1].port, ready=False)
            await user.create(kinds.MODEL_SERVER, a_server())
            await user.create(kinds.MODEL_ROUTE, a_route())
            before = await user.says(kinds.MODEL_SERVER, Programmed="NoEnvoy", Ready="Ready")
            await stack.envoy.start(None)
            well = {name: name for name in ("Accepted", "ResolvedRefs", "Programmed", "Ready")}
            server = await user.says(kinds.MODEL_SERVER, **well)
            await user.says(kinds.MODEL_ROUTE, **well)
            answer = await stack.envoy.request(body=json.dumps({"model": f"demo.{user.namespace}"}).encode())
            await user.report("two", ready=True)

            async def both():
                return (await user.get(kinds.MODEL_SERVER))["status"]["readyEndpoints"] == 2

            await eventually(both)
            await stack.envoy.stop()
            gone = await user.says(kinds.MODEL_SERVER, Programmed="NoEnvoy")

    assert (server["endpoints"], server["readyEndpoints"]) == (2, 1)
    assert answer.status == 200
    times = {one["type"]: one["lastTransitionTime"] for one in gone["conditions"]}
    assert (
        times["Accepted"]
        == next(one for one in before["conditions"] if one["type"] == "Accepted")["lastTransitionTime"]
    )


async def test_what_is_missing_wrong_or_claimed_before_is_named(plane, user, tmp_path):
    async with serving(plane, GATEWAY, f"unix:{tmp_path}/xds.sock"):
        await user.create(kinds.MODEL_SERVER, a_server())
        await user.create(kinds.MODEL_ROUTE, a_route("demo", "demo", "absent"))
        alone = await user.says(kinds.MODEL_SERVER, ResolvedRefs="NoPods", Ready="NoReadyEndpoints")
        dangling = await user.says(kinds.MODEL_ROUTE, ResolvedRefs="BackendNotFound", Accepted="Accepted")
        await user.pod("one", port="http")
        await user.says(kinds.MODEL_SERVER, ResolvedRefs="InvalidPort")
        await user.pod("two")
        await user.create(kinds.MODEL_SERVER, a_server("twin"))
        await asyncio.to_thread(user.core.delete_namespaced_pod, "one", user.namespace, grace_period_seconds=0)
        twin = await user.says(kinds.MODEL_SERVER, "twin", ResolvedRefs="SharedPods")
        second = a_route("second")
        second["spec"]["modelName"] = "demo"
        await asyncio.sleep(1.1)  # ages are whole seconds
        await user.create(kinds.MODEL_ROUTE, second)
        behind = await user.says(kinds.MODEL_ROUTE, "second", Accepted="Overlapping")
        await user.create(kinds.MODEL_ROUTE, a_route("elsewhere", parentRefs=[{"name": "public"}]))
        await user.says(kinds.MODEL_ROUTE, "elsewhere", Accepted="NoMatchingParent", Programmed="NotAccepted")
        large = {
            "modelMatch": {"uri": {"regex": "[a-z]{600}[0-9]{600}"}},
            "targetModels": [{"modelServerName": "demo"}],
        }
        await user.create(kinds.MODEL_ROUTE, a_route("wrong", rules=[large]))
        wrong = await user.says(kinds.MODEL_ROUTE, "wrong", Accepted="Invalid", Ready="NotAccepted")
        await user.call("patch", kinds.MODEL_ROUTE, "wrong", {"spec": {"rules": a_route()["spec"]["rules"]}})
        await user.says(kinds.MODEL_ROUTE, "wrong", Accepted="Accepted")

    assert "app=demo" in message(alone, "ResolvedRefs")
    assert "absent" in message(dangling, "ResolvedRefs")
    assert f"{user.namespace}/demo" in message(twin, "ResolvedRefs")
    assert f"'demo.{user.namespace}' is served by ModelRoute {user.namespace}/demo first" in message(behind, "Accepted")
    assert "spec.rules[0].modelMatch.uri.regex" in message(wrong, "Accepted")


async def test_a_status_is_ours_alone_and_is_written_only_when_it_changes(plane, user, tmp_path):
    requests = []
    async with serving(plane, GATEWAY, f"unix:{tmp_path}/xds.sock", requests=requests) as loop:
        await user.create(kinds.MODEL_SERVER, a_server())
        await user.says(kinds.MODEL_SERVER, ResolvedRefs="NoPods")

        async def idle():
            return not loop.waiting and not loop._queue._working

        await eventually(idle)
        stands = await user.get(kinds.MODEL_SERVER)
        foreign = {"status": {"conditions": [*stands["status"]["conditions"], a_condition("example.com/Audited")]}}
        await asyncio.to_thread(
            user.custom.patch_namespaced_custom_object_status,
            kinds.MODEL_SERVER.group, kinds.MODEL_SERVER.version, user.namespace, "modelservers", "demo", foreign,
        )  # fmt: skip
        await user.call("patch", kinds.MODEL_SERVER, "demo", {"spec": {"model": "other"}})
        after = await user.says(kinds.MODEL_SERVER, ResolvedRefs="NoPods")
        await eventually(idle)
        requests.clear()
        for _ in range(3):
            loop.refresh()
            await eventually(idle)

    stands = await user.get(kinds.MODEL_SERVER)
    managers = {one["manager"] for one in stands["metadata"]["managedFields"] if one.get("subresource") == "status"}
    assert "matrixinfer-gateway" in managers
    assert "example.com/Audited" in {one["type"] for one in after["conditions"]}
    assert [one for one in requests if one[1] == "modelservers"] == []


@pytest.mark.envoy
async def test_a_follower_serves_envoy_and_writes_nothing_until_it_leads(plane, user):
    requests, leads = [], []
    async with running(served=False) as stack:
        await stack.picker.stop()  # Envoy balances by itself
        address = f"unix:{stack.envoy.folder}/xds.sock"
        async with serving(
            plane, stack.config.gateway, address, may_write=lambda: bool(leads), requests=requests
        ) as loop:
            await user.pod("one", port=stack.engines[0].port)
            await user.create(kinds.MODEL_SERVER, a_server())
            await user.create(kinds.MODEL_ROUTE, a_route())
            await stack.envoy.start(None)

            async def served():
                body = json.dumps({"model": f"demo.{user.namespace}"}).encode()
                return (await stack.envoy.request(body=body)).status == 200

            await eventually(served)
            before = list(requests)
            leads.append(True)
            loop.refresh()
            await user.says(kinds.MODEL_SERVER, Programmed="Programmed")

    assert before == []
    assert ("apply", "modelservers") in requests


@pytest.mark.envoy
async def test_the_leader_knows_what_the_envoys_of_a_follower_took(plane, user, tmp_path):
    requests = []
    for name in ("leader", "follower"):
        await user.pod(name)
    async with running(served=False) as stack:
        leader, follower = (Replica(user.namespace, name) for name in ("leader", "follower"))
        here, there = f"unix:{tmp_path}/xds.sock", f"unix:{stack.envoy.folder}/xds.sock"
        gateway = stack.config.gateway
        async with (
            serving(plane, gateway, here, replica=leader),
            serving(plane, gateway, there, replica=follower, may_write=lambda: False, requests=requests) as followers,
        ):
            await user.create(kinds.MODEL_SERVER, a_server())
            await user.create(kinds.MODEL_ROUTE, a_route())
            await user.says(kinds.MODEL_SERVER, Programmed="NoEnvoy")
            await stack.envoy.start(None)
            await user.says(kinds.MODEL_SERVER, Programmed="Programmed")
            await user.says(kinds.MODEL_ROUTE, Programmed="Programmed")

            async def idle():
                return not followers.waiting

            await eventually(idle)
            written = list(requests)
            await user.report("follower", ready=False)
            await user.says(kinds.MODEL_SERVER, Programmed="NoEnvoy")

    assert {resource for _, resource in written} == {"leases"}
    assert len(written) <= 3


def a_condition(type_):
    return {
        "type": type_,
        "status": "True",
        "reason": "Looked",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
