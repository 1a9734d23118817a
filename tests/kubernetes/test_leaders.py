"""Two controllers, the leader frozen past its lease and woken: the audit log of the API server shows one writer at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from kubernetes import client as official

from controllers.__main__ import main
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import own_control_plane

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: RequestResponse
  verbs: [create, update, patch]
  resources: [{group: coordination.k8s.io, resources: [leases]}, {group: "", resources: [configmaps]}]
  namespaces: [default]
- level: None
"""


@dataclass
class Writer:
    name: str
    process: asyncio.subprocess.Process
    leads: bool = False

    async def listen(self) -> None:
        while line := await self.process.stdout.readline():
            self.leads = line == b"leads\n"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextlib.asynccontextmanager
async def writing(plane, name: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kubernetes.writer", str(plane.kubeconfig), name,
        cwd=control_plane.ROOT, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    writer = Writer(name, process)
    listening = asyncio.create_task(writer.listen())
    try:
        yield writer
    finally:
        process.kill()
        await process.wait()
        await listening


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)


@dataclass(frozen=True)
class Written:
    """A write that the server carried out. Versions are the order in which it did: no clock is asked."""

    version: int
    who: str
    holder: str | None  # whom it made the lease's holder


def written(log: Path) -> list[Written]:
    found = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["stage"] == "ResponseComplete" and 200 <= event["responseStatus"]["code"] < 300:
            stands = event["responseObject"]
            version = int(stands["metadata"]["resourceVersion"])
            found.append(Written(version, event["userAgent"], stands.get("spec", {}).get("holderIdentity")))
    return sorted(found, key=lambda write: write.version)


@pytest.mark.timeout(180)
async def test_a_leader_that_was_frozen_past_its_lease_never_writes_beside_the_next(tmp_path):
    policy, log = tmp_path / "policy.yaml", tmp_path / "audit.log"
    policy.write_text(POLICY)
    audit = (f"--apiserver=--audit-policy-file={policy}", f"--apiserver=--audit-log-path={log}")
    with own_control_plane(*audit, "--apiserver=--audit-log-mode=blocking") as plane:
        async with writing(plane, "one") as one, writing(plane, "two") as two:
            for _ in range(3):
                await until(lambda: one.leads or two.leads)
                leader, other = (one, two) if one.leads else (two, one)
                await asyncio.sleep(0.3)
                leader.freeze()
                await until(lambda other=other: other.leads)
                leader.thaw()
                await until(lambda leader=leader: not leader.leads)
        everything = [item for item in written(log) if item.who in ("one", "two")]

    holder, changes, intruders = None, 0, []
    for item in everything:
        if item.holder is not None:
            changes += item.holder != holder
            holder = item.holder
        elif item.who != holder:
            intruders.append(item)
    # A write that had passed its last look at the clock when the process was frozen arrives when it thaws: nothing but
    # the storage could refuse it. A leader that does not look at all writes on.
    assert len(intruders) <= 1, intruders
    assert changes >= 4
    assert {item.who for item in everything if item.holder is None} == {"one", "two"}


async def test_a_control_plane_that_is_told_to_stop_gives_its_lease_back(plane, look, namespace, tmp_path):
    argv = ["--kubeconfig", str(plane.kubeconfig), "--lease-namespace", namespace, "--xds", f"unix:{tmp_path}/xds.sock"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controllers", *argv, "--metrics-host", "127.0.0.1", "--metrics-port", "0",
        cwd=control_plane.ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    leases = official.CoordinationV1Api(look)

    def holders() -> list[str]:
        return [item.spec.holder_identity for item in leases.list_namespaced_lease(namespace).items]

    async def held() -> bool:
        return any(await asyncio.to_thread(holders))

    await eventually(held)
    process.terminate()
    _, said = await process.communicate()

    assert process.returncode == 0, said.decode()
    assert "Traceback" not in said.decode()
    assert await asyncio.to_thread(holders) == [""]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--kubeconfig", "/nowhere"], "no such file"),
        (["--lease-duration", "4"], "make the lease longer"),
        (["--picker", "nonsense"], "must be unix:PATH or HOST:PORT"),
        (["--qps", "0"], "lets nothing through"),
    ],
)
def test_a_control_plane_says_what_is_wrong_with_its_flags(plane, argv, message, capsys):
    assert main(["--kubeconfig", str(plane.kubeconfig), *argv]) == 1
    assert message in capsys.readouterr().err
