"""InferenceObjectives on a real API server: before llm-d's CRD is installed, while it is, and after; with the gateway's own rights."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections import Counter
from pathlib import Path

from kubernetes import client as official

from extproc.traffic.flow.objectives import priorities
from matrixinfer.api import kinds
from matrixinfer.api.objectives import InferenceObjective
from matrixinfer.cluster import credentials, feed
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import eventually
from tests.cluster.test_store import QUICK, running
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import leave_out, official_client, own_control_plane
from tests.kubernetes.spine import KUBECTL, MANIFESTS, Spine, kubectl

KIND = kinds.INFERENCE_OBJECTIVE
STRING = {"type": "string"}
PENDING = {
    "type": "Ready",
    "status": "Unknown",
    "reason": "Pending",
    "message": "Waiting for controller",
    "lastTransitionTime": "1970-01-01T00:00:00Z",
}


def the_crd():
    """The CRD of the fields, types and defaults of `llm-d.ai/v1alpha2`."""
    reference = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "group": STRING | {"default": "llm-d.ai"},
            "kind": STRING | {"default": "InferencePool"},
            "name": STRING,
        },
    }
    spec = {
        "type": "object",
        "required": ["poolRef"],
        "properties": {"priority": {"type": "integer", "format": "int32"}, "poolRef": reference},
    }
    condition = {"type": "object", "properties": dict.fromkeys(PENDING, STRING)}
    status = {
        "type": "object",
        "properties": {"conditions": {"type": "array", "items": condition, "default": [PENDING]}},
    }
    schema = {"type": "object", "properties": {"spec": spec, "status": status}}
    version = {"name": KIND.version, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{KIND.plural}.{KIND.group}"},
        "spec": {
            "group": KIND.group,
            "scope": "Namespaced",
            "names": {"plural": KIND.plural, "kind": KIND.kind, "singular": "inferenceobjective"},
            "versions": [version | {"schema": {"openAPIV3Schema": schema}}],
        },
    }


async def test_the_crd_may_be_missing_come_and_go(caplog):
    if not KUBECTL.exists():
        leave_out("kubectl is not there: `make kubetest` brings it")
    caplog.set_level(logging.WARNING)
    asked: Counter[tuple[str, int]] = Counter()

    def report(verb, resource, code, _seconds):
        if resource == KIND.plural:
            asked[verb, code] += 1

    async with contextlib.AsyncExitStack() as stack:
        plane = stack.enter_context(own_control_plane(crds=control_plane.OUR_CRDS))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="news-")))
        await asyncio.to_thread(kubectl, plane, "apply", "-f", MANIFESTS / "access.yaml")
        definitions = official.ApiextensionsV1Api(official_client(plane))
        account = credentials.kubeconfig(str(Spine(plane, folder).kubeconfig("matrixinfer-gateway")))
        news = await stack.enter_async_context(ApiServer(account, report=report))
        admin = await stack.enter_async_context(ApiServer(credentials.kubeconfig(str(plane.kubeconfig))))
        await stack.enter_async_context(feed.serve(news, folder / "feed", feed.KINDS, look_every_s=0.2))
        stores = [Store(feed.Feed(folder / "feed"), kind, backoff=QUICK) for kind in feed.KINDS]
        await stack.enter_async_context(running(*stores))
        store = stores[feed.KINDS.index(KIND)]

        async def quiet():
            return all(each.connected for each in stores) and asked["list", 404] > 3

        await eventually(quiet)
        assert {code for _, code in asked} == {404}
        assert ("watch", 404) not in asked

        await asyncio.to_thread(definitions.create_custom_resource_definition, the_crd())

        async def made():
            manifest = {
                "apiVersion": KIND.api_version,
                "kind": KIND.kind,
                "metadata": {"namespace": "default", "name": "batch"},
                "spec": {"priority": -1, "poolRef": {"name": "engines"}},
            }
            with contextlib.suppress(Exception):  # what was defined just now is served a moment later
                await admin.create(KIND, manifest)
            return store.get("batch", "default") is not None

        await eventually(made)
        found = [InferenceObjective.model_validate(one) for one in store.all()]
        assert found[0].spec.pool_ref.group == "llm-d.ai"  # as the API server fills it in
        assert priorities(found, {("default", "engines"): {}}) == {("default/engines", "batch"): -1}

        name = f"{KIND.plural}.{KIND.group}"
        await asyncio.to_thread(definitions.delete_custom_resource_definition, name)

        async def gone():
            return store.all() == [] and store.connected

        await eventually(gone)
        missed = asked["list", 404]

        async def looked_for():
            return asked["list", 404] > missed + 3 and store.connected

        await eventually(looked_for)
    assert [record.message for record in caplog.records if record.name.startswith("matrixinfer")] == []
