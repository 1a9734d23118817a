import asyncio
import os
from contextlib import asynccontextmanager, suppress

import pytest

from matrixinfer.api import core, kinds
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import NotFound
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, Settings
from matrixinfer.local.node import Node
from tests.local.waiting import eventually, eventually_async

SLEEP = "import time; time.sleep(1000)"


def a_pod(name="demo-0", *, code=SLEEP, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "labels": {"app": "demo"}},
        "spec": {"containers": [{"name": "engine", "command": ["python", "-c", code]}], **spec},
    }


@pytest.fixture
async def world(tmp_path):
    """A cluster with a node that runs its pods."""
    cluster, addresses = MemoryCluster(), Addresses()
    node = Node(cluster, addresses=addresses, settings=Settings(tmp_path, Backoff(0.01, 0.05)), shutdown_grace_s=5)
    task = asyncio.create_task(node.run())
    yield cluster, node
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    addresses.close()


@asynccontextmanager
async def gone(pid):
    """The body takes place while the process lives; afterwards it is gone."""
    os.kill(pid, 0)
    yield
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def the(cluster, name="demo-0"):
    return core.Pod.model_validate(await cluster.get(kinds.POD, name, "default"))


async def ready(cluster, name="demo-0"):
    async def is_ready():
        return (await the(cluster, name)).ready

    await eventually_async(is_ready)
    return await the(cluster, name)


async def test_a_pod_gets_a_node_an_address_and_a_status(world):
    cluster, _ = world
    await cluster.create(kinds.POD, a_pod())

    pod = await ready(cluster)
    assert pod.spec.node_name == "local"
    assert pod.status.pod_ip.startswith("127.")
    assert pod.status.phase == "Running"


async def test_every_pod_has_an_address_of_its_own(world):
    cluster, _ = world
    for i in range(3):
        await cluster.create(kinds.POD, a_pod(f"demo-{i}"))

    addresses = {(await ready(cluster, f"demo-{i}")).status.pod_ip for i in range(3)}
    assert len(addresses) == 3


async def test_pods_of_other_nodes_are_left_alone(world):
    cluster, node = world
    await cluster.create(kinds.POD, a_pod("elsewhere", nodeName="external"))
    await cluster.create(kinds.POD, a_pod())
    await ready(cluster)

    assert set(node.runners) == {"default/demo-0"}


async def test_a_deleted_pod_is_stopped_and_then_gone(world):
    cluster, node = world
    await cluster.create(kinds.POD, a_pod())
    await ready(cluster)

    async with gone(node.pids()["default/demo-0/engine"]):
        await cluster.delete(kinds.POD, "demo-0", "default")
        await eventually(lambda: not node.runners)
        with pytest.raises(NotFound):
            await cluster.get(kinds.POD, "demo-0", "default")


async def test_a_pod_that_ignores_sigterm_is_killed_after_the_grace_of_its_deletion(world, tmp_path):
    cluster, node = world
    await cluster.create(
        kinds.POD, a_pod(code="import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(1000)")
    )
    await eventually(lambda: (tmp_path / "default_demo-0_engine.log").exists() and node.pids())
    await eventually(lambda: "up" in (tmp_path / "default_demo-0_engine.log").read_text())

    async with gone(node.pids()["default/demo-0/engine"]):
        await cluster.delete(kinds.POD, "demo-0", "default", grace_period_s=1)
        await eventually(lambda: not node.runners)


async def test_a_pod_created_again_under_its_name_runs_anew(world):
    cluster, node = world
    await cluster.create(kinds.POD, a_pod())
    first = await ready(cluster)
    pid = node.pids()["default/demo-0/engine"]
    await cluster.delete(kinds.POD, "demo-0", "default", grace_period_s=0)
    await cluster.create(kinds.POD, a_pod())

    second = await ready(cluster)
    assert second.metadata.uid != first.metadata.uid
    await eventually(lambda: node.pids().get("default/demo-0/engine") not in (None, pid))


async def test_a_changed_spec_restarts_the_pod_and_changed_labels_do_not(world):
    cluster, node = world
    await cluster.apply(kinds.POD, a_pod(), manager="files")
    await ready(cluster)
    pid = node.pids()["default/demo-0/engine"]

    relabelled = a_pod()
    relabelled["metadata"]["labels"] = {"app": "other"}
    await cluster.apply(kinds.POD, relabelled, manager="files")
    await cluster.create(kinds.POD, a_pod("later"))
    await ready(cluster, "later")
    assert node.pids()["default/demo-0/engine"] == pid

    async with gone(pid):
        await cluster.apply(kinds.POD, a_pod(code=SLEEP + "#"), manager="files")
        await eventually(lambda: node.pids().get("default/demo-0/engine") not in (None, pid))
    assert (await ready(cluster)).status.phase == "Running"


async def test_a_finished_pod_keeps_its_status_and_does_not_run_again(world):
    cluster, node = world
    await cluster.create(kinds.POD, a_pod(code="pass", restartPolicy="Never"))

    async def succeeded():
        return (await the(cluster)).status.phase == "Succeeded"

    await eventually_async(succeeded)
    assert node.pids() == {}


async def test_the_environment_takes_values_of_secrets(world, tmp_path):
    cluster, _ = world
    await cluster.create(
        kinds.SECRET,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": "default", "name": "hub"},
            "data": {"token": "czNjcmV0"},
        },
    )
    pod = a_pod(code="import os; print(os.environ['TOKEN'])", restartPolicy="Never")
    ref = {"secretKeyRef": {"name": "hub", "key": "token"}}
    pod["spec"]["containers"][0]["env"] = [{"name": "TOKEN", "valueFrom": ref}]
    await cluster.create(kinds.POD, pod)

    log = tmp_path / "default_demo-0_engine.log"
    await eventually(lambda: log.exists() and log.read_text() == "s3cret\n")


async def test_a_worker_finds_its_entry_by_name_whichever_comes_first(world):
    cluster, node = world
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "entry"},
        "spec": {"clusterIP": "None", "selector": {"role": "entry"}},
    }
    await cluster.create(kinds.SERVICE, service)
    worker = a_pod("worker", code="import os, time; print(os.environ['ENTRY'], flush=True); time.sleep(1000)")
    worker["spec"]["containers"][0]["env"] = [{"name": "ENTRY", "value": "entry.default"}]
    await cluster.create(kinds.POD, worker)
    await ready(cluster, "worker")
    entry = a_pod("entry-0")
    entry["metadata"]["labels"] = {"role": "entry"}
    await cluster.create(kinds.POD, entry)
    address = (await ready(cluster, "entry-0")).status.pod_ip

    await eventually(lambda: node.runners["default/worker"].containers[0].log_tail(1) == [address])
