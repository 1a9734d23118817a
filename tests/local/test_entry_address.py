"""A ModelInfer with workers on one machine: each finds its entry by ENTRY_ADDRESS, as on Kubernetes."""

from __future__ import annotations

import asyncio

import pytest

from controllers.__main__ import modelinfer_loop
from matrixinfer.api import kinds
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, Settings
from matrixinfer.local.node import Node
from tests.local.waiting import eventually_async
from tests.modelinfer.village import a_role, an_infer

ENTRY = """
import os, socket
server = socket.create_server((os.environ["POD_IP"], 5000))
print("listening", flush=True)
while True:
    server.accept()[0].sendall(os.environ["HOSTNAME"].encode())
"""
WORKER = """
import os, socket, time
while True:
    try:
        print(os.environ["MASTER"], socket.create_connection(("$(ENTRY_ADDRESS)", 5000), 5).recv(100).decode(), flush=True)
        time.sleep(1000)
    except OSError:
        time.sleep(0.1)
"""


def runs(code, **fields):
    return {"spec": {"containers": [{"name": "engine", "command": ["python", "-c", code]} | fields]}}


@pytest.fixture
async def world(tmp_path):
    cluster, addresses = MemoryCluster(), Addresses()
    node = Node(cluster, addresses=addresses, settings=Settings(tmp_path, Backoff(0.01, 0.05)), shutdown_grace_s=5)
    tasks = [asyncio.create_task(node.run()), asyncio.create_task(modelinfer_loop(cluster).run())]
    yield cluster, node
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    addresses.close()


async def test_workers_reach_the_entry_of_their_instance(world):
    cluster, node = world
    role = a_role(
        workers=1,
        replicas=2,
        entryTemplate=runs(ENTRY),
        workerTemplate=runs(WORKER, env=[{"name": "MASTER", "value": "$(ENTRY_ADDRESS)"}]),
    )
    await cluster.apply(kinds.MODEL_INFER, an_infer(role), manager="user")

    def words(pod):
        runner = node.runners.get(f"default/{pod}")
        return "".join(runner.containers[0].log_tail(1)).split() if runner else []

    async def all_have_answers():
        return [words(f"demo-0-decode-{index}-1")[1:] for index in range(2)] == [
            [f"demo-0-decode-{index}-0"] for index in range(2)
        ]

    await eventually_async(all_have_answers)
    addresses = [node.runners[f"default/demo-0-decode-{index}-0"].address for index in range(2)]
    assert [words(f"demo-0-decode-{index}-1")[0] for index in range(2)] == addresses
