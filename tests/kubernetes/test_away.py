"""The API server away for half a minute under traffic: no request fails, and afterwards the same processes catch up."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.cluster.conformance import eventually
from tests.kubernetes.conftest import leave_out, own_control_plane
from tests.kubernetes.spine import KUBECTL, deployed, kubectl
from tests.kubernetes.test_spine import install

AWAY_S = 30


@contextlib.asynccontextmanager
async def asking(spine):
    """Ask all the time; gives the statuses as they come."""
    answers = []

    async def ask() -> None:
        while True:
            answers.append((await spine.ask())[0])
            await asyncio.sleep(0.1)

    lanes = [asyncio.create_task(ask()) for _ in range(3)]
    try:
        yield answers
    finally:
        for lane in lanes:
            lane.cancel()
        for ended in await asyncio.gather(*lanes, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended


@pytest.mark.envoy
@pytest.mark.timeout(240)
async def test_no_request_fails_while_the_api_server_is_away_and_all_catch_up_afterwards():
    if not KUBECTL.exists():
        leave_out("kubectl is not there: `make kubetest` brings it")
    with own_control_plane() as plane:

        async def run(*words):
            """Run kubectl, while the node beside the test does its work."""
            return await asyncio.to_thread(kubectl, plane, *words)

        install(plane)
        kubectl(plane, "apply", "-f", "examples/model-infer")
        async with deployed(plane) as spine:
            await eventually(spine.serves)
            await run("wait", "mi/demo", "--for=condition=Available", "--timeout=60s")
            processes = dict(spine.processes)
            async with asking(spine) as answers:
                await asyncio.to_thread(plane.stop)
                await asyncio.sleep(AWAY_S)
                while_away = len(answers)
                await asyncio.to_thread(plane.start)
                await run("scale", "mi/demo", "--replicas=3")

                async def caught_up():
                    said = await run("get", "mi/demo", "-o", "jsonpath={.status.availableReplicas}")
                    return said.stdout == "3" and len((await spine.ask())[2]) == 3

                await eventually(caught_up)
            assert spine.processes == processes
            assert all(process.running for process in processes.values())

    assert while_away >= AWAY_S
    assert set(answers) == {200}
