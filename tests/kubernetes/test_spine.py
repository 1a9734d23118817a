"""The spine on Kubernetes: what is installed, and `kubectl apply` of the examples, make the request of `make run` be answered."""

from __future__ import annotations

import asyncio
import subprocess

import pytest
from kubernetes import client as official

from tests.cluster.conformance import eventually
from tests.kubernetes.conftest import leave_out, official_client, own_control_plane
from tests.kubernetes.spine import CHART, KUBECTL, NAMESPACE, deployed, helm, kubectl

BOTH = ["demo-0-engine-0-0", "demo-1-engine-0-0"]


def install(plane):
    """Install as users do. The pods of Deployments stay away: our node would run them, and we run them by ourselves."""
    if helm() is None:
        kubectl(plane, "apply", "-f", "crds")
        kubectl(plane, "apply", "-f", "charts/manifests")
        for name in ("controllers", "gateway"):
            kubectl(plane, "-n", NAMESPACE, "scale", "deployment", f"matrixinfer-{name}", "--replicas=0")
        return
    values = ("--set", "controllers.replicas=0", "--set", "gateway.replicas=0")
    where = ("--kubeconfig", str(plane.kubeconfig), "--namespace", NAMESPACE, "--create-namespace")
    command = [helm(), "upgrade", "--install", "matrixinfer", CHART, *where, *values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed():
    if not KUBECTL.exists():
        leave_out("kubectl is not there: `make kubetest` brings it")
    with own_control_plane() as plane:
        install(plane)
        install(plane)  # an upgrade to the same is none
        yield plane


@pytest.mark.timeout(240)
async def test_the_examples_are_served_by_pods_that_model_infer_made(installed):
    core = official.CoreV1Api(official_client(installed))

    async def user(*words):
        await asyncio.to_thread(kubectl, installed, *words)  # the node runs in this loop

    await user("apply", "-f", "examples/model-infer")
    async with deployed(installed) as spine:
        await eventually(spine.serves)
        await user("wait", "mi/demo", "--for=condition=Available", "--timeout=60s")
        await user("wait", "modelroute/demo", "--for=condition=Programmed", "--timeout=60s")
        made = await asyncio.to_thread(core.list_namespaced_pod, "default")

        async def knows_both():
            status, model, addresses = await spine.ask()
            return (status, model, addresses) == (200, "demo", sorted(pod.status.pod_ip for pod in made.items))

        await eventually(knows_both)
        assert sorted(pod.metadata.name for pod in made.items) == BOTH
        assert {pod.metadata.owner_references[0].kind for pod in made.items} == {"ModelInfer"}

        # More of them, and another template, while somebody asks.
        await user("scale", "mi/demo", "--replicas=3")
        label = '[{"op":"add","path":"/spec/template/roles/0/entryTemplate/metadata/labels/version","value":"next"}]'
        await user("patch", "mi", "demo", "--type=json", "-p", label)
        seen: set[int] = set()

        async def rolled():
            seen.add((await spine.ask())[0])
            found = await asyncio.to_thread(core.list_namespaced_pod, "default", label_selector="version=next")
            pods = await asyncio.to_thread(core.list_namespaced_pod, "default")
            return len(found.items) == 3 == len(pods.items)

        await eventually(rolled)
        assert seen == {200}
        assert "orbidden" not in spine.said("controllers") + spine.said("news") + spine.said("picker")

        # The API server goes, and comes back to the same processes.
        await asyncio.to_thread(installed.stop)
        answers = [(await spine.ask())[0] for _ in range(50)]
        await asyncio.to_thread(installed.start)
        await user("scale", "mi/demo", "--replicas=1")

        async def fewer():
            return len((await asyncio.to_thread(core.list_namespaced_pod, "default")).items) == 1

        await eventually(fewer)
        _, _, last = await spine.ask()

        assert answers == [200] * 50
        assert len(last) == 1
        assert await spine.stop("controllers") == 0, spine.said("controllers")
        assert (await spine.ask())[0] == 200  # without a control plane
        assert await spine.stop("news") == 0, spine.said("news")
        assert await spine.stop("picker") == 0, spine.said("picker")
        assert (await spine.ask())[0] == 200  # without a picker: Envoy balances
