"""The whole control plane, killed by the kernel twenty times while it rolls on a real API server: the next ends what it began."""

from __future__ import annotations

import asyncio
import multiprocessing
import random

import pytest
from kubernetes import client as official

from controllers.__main__ import main
from matrixinfer.api import kinds, workload
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local.hollow import HollowNode
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import access, official_client, own_control_plane
from tests.local.waiting import eventually_async
from tests.modelinfer.guard import Guard
from tests.modelinfer.test_mortality import REPLICAS, SURGE, UNAVAILABLE, running, the_infer

KILLS = 20
PLACE = (kinds.MODEL_INFER.group, kinds.MODEL_INFER.version, "default", kinds.MODEL_INFER.plural)


@pytest.fixture(scope="module")
def births():
    """Starts processes that have all modules loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["controllers.__main__"])
    return context


@pytest.mark.timeout(240)
async def test_whenever_the_control_plane_is_killed_the_next_ends_what_it_began(births):
    chance = random.Random(0)
    with own_control_plane(crds=control_plane.OUR_CRDS) as plane:
        argv = ["--kubeconfig", str(plane.kubeconfig), "--no-leader-elect", "--metrics-host", "127.0.0.1"]
        argv += ["--metrics-port", "0", "--log-level", "warning"]
        custom = official.CustomObjectsApi(official_client(plane))
        core = official.CoreV1Api(official_client(plane))
        await asyncio.to_thread(custom.create_namespaced_custom_object, *PLACE, the_infer("sim:0"))

        def roll(image):
            spec = {"spec": the_infer(image)["spec"]}
            return asyncio.to_thread(custom.patch_namespaced_custom_object, *PLACE, "demo", spec)

        def born():
            process = births.Process(target=main, args=(argv,))
            process.start()
            return process

        async with ApiServer(access(plane)) as cluster:
            guard = Guard(cluster, "demo", pods_a_group=3, floor=REPLICAS - UNAVAILABLE, ceiling=REPLICAS + SURGE)
            async with running(HollowNode(cluster).run()), running(guard.run()):
                for number in range(1, KILLS + 1):
                    process = born()
                    if number > 1:
                        await roll(f"sim:{number}")
                    until = guard.changes + chance.randint(1, 25)
                    await guard.until(lambda until=until: guard.changes >= until)
                    await asyncio.sleep(chance.uniform(0, 0.05))
                    process.kill()
                    process.join()

                def rolled():
                    images = {pod["spec"]["containers"][0]["image"] for pod in guard.pods()}
                    return (images, len(guard.pods()), guard.available()) == ({f"sim:{KILLS}"}, REPLICAS * 3, REPLICAS)

                async def tidy():
                    listed = await asyncio.to_thread(
                        core.list_namespaced_service, "default", label_selector=workload.NAME_LABEL
                    )
                    return sorted(one.metadata.name for one in listed.items) == sorted(
                        f"{group}-decode-0-0" for group in guard.groups()
                    )

                process = born()
                await guard.until(rolled)
                await eventually_async(tidy)
                process.terminate()
                process.join()

        made = (await asyncio.to_thread(core.list_namespaced_pod, "default")).items

    groups = {pod.metadata.labels[workload.GROUP_LABEL] for pod in made}
    assert guard.broken == []
    assert (len(made), len(groups)) == (REPLICAS * 3, REPLICAS)
