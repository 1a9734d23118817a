"""Two controllers, the leader frozen past its lease and woken: the audit log of the API server shows one writer at a time.

Two things see to it. A leader looks at the clock right before a write leaves, and leaves it be when its lease may be over. What was
past that look when its process was frozen leaves when it thaws, at most one write of each connection; that one the API server refuses
by the policy which the chart installs. So the test of the first allows for it (each lane of the writer waits for its answers, so it
has one connection at a time), and the test of the second takes the first away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml
from kubernetes import client as official
from kubernetes import config as official_config

from controllers.__main__ import main
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import official_client, own_control_plane
from tests.kubernetes.writer import LEASE, NAMESPACE

if TYPE_CHECKING:
    from pathlib import Path

AUDIT = f"""
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: RequestResponse
  verbs: [create, update, patch]
  resources: [{{group: coordination.k8s.io, resources: [leases]}}, {{group: "", resources: [secrets]}}]
  namespaces: [default, {NAMESPACE}]
- level: None
"""
FENCE = control_plane.ROOT / "charts" / "manifests" / "leader.yaml"
ACCOUNT = "matrixinfer-controllers"
NAMES = ("one", "two")


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
async def writing(kubeconfig: Path, name: str, *more: str):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kubernetes.writer", str(kubeconfig), name, *more,
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
    """What the server was asked to write. Versions are the order in which it did: no clock is asked."""

    who: str
    lane: str
    code: int
    version: int
    holder: str | None  # whom it made the lease's holder


def asked(log: Path) -> list[Written]:
    found = []
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["stage"] == "ResponseComplete" and event["userAgent"] in NAMES:
            stands = event.get("responseObject", {})
            holder = (stands.get("spec", {}).get("holderIdentity") or "").partition("_")[0] or None
            version = int(stands["metadata"].get("resourceVersion", 0))
            lane, code = event["objectRef"].get("name", ""), event["responseStatus"]["code"]
            found.append(Written(event["userAgent"], lane, code, version, holder))
    return found


def intruders(everything: list[Written]) -> Counter[tuple[int, str]]:
    """Count the writes that were carried out while another held the lease, of each of its terms and each lane."""
    holder, term, found = None, 0, Counter()
    for item in sorted((item for item in everything if 200 <= item.code < 300), key=lambda item: item.version):
        if item.holder is not None:
            term += item.holder != holder
            holder = item.holder
        elif item.who != holder:
            found[term, item.lane] += 1
    return found


@contextlib.contextmanager
def audited(tmp_path):
    """Run an API server that writes down what it is asked, with a namespace as the chart's; give it and its log."""
    policy, log = tmp_path / "policy.yaml", tmp_path / "audit.log"
    policy.write_text(AUDIT)
    audit = (f"--apiserver=--audit-policy-file={policy}", f"--apiserver=--audit-log-path={log}")
    with own_control_plane(*audit, "--apiserver=--audit-log-mode=blocking") as plane:
        official.CoreV1Api(official_client(plane)).create_namespace({"metadata": {"name": NAMESPACE}})
        yield plane, log


async def contest(*writers: Writer, rounds: int) -> None:
    """Freeze whoever leads until another does, and wake it up; some times."""
    for _ in range(rounds):
        await until(lambda: any(writer.leads for writer in writers))
        leader, other = sorted(writers, key=lambda writer: not writer.leads)
        await asyncio.sleep(0.3)
        leader.freeze()
        await until(lambda other=other: other.leads)
        leader.thaw()
        await until(lambda leader=leader: not leader.leads)


@pytest.mark.timeout(180)
async def test_a_leader_that_was_frozen_past_its_lease_never_writes_beside_the_next(tmp_path):
    with audited(tmp_path) as (plane, log):
        async with writing(plane.kubeconfig, "one") as one, writing(plane.kubeconfig, "two") as two:
            await contest(one, two, rounds=3)
        everything = asked(log)

    assert set(intruders(everything).values()) <= {1}  # see above
    assert {item.who for item in everything if item.holder is None} == set(NAMES)
    holders = [item.holder for item in everything if item.holder]
    assert sum(before != after for before, after in itertools.pairwise(holders)) >= 3


@pytest.mark.timeout(180)
async def test_a_leader_that_does_not_look_at_the_clock_is_caught_by_the_audit_log(tmp_path):
    with audited(tmp_path) as (plane, log):
        async with (
            writing(plane.kubeconfig, "one", "reckless") as one,
            writing(plane.kubeconfig, "two", "reckless") as two,
        ):
            await contest(one, two, rounds=1)

        assert max(intruders(asked(log)).values()) > 1


@pytest.mark.timeout(180)
async def test_the_api_server_itself_refuses_who_does_not_hold_the_lease(tmp_path):
    with audited(tmp_path) as (plane, log):
        look = official_client(plane)
        configs = await asyncio.to_thread(fenced, look, plane, tmp_path)
        async with (
            writing(configs["one"], "one", "reckless") as one,
            writing(configs["two"], "two", "reckless") as two,
        ):
            await contest(one, two, rounds=3)
        everything = asked(log)

    assert not intruders(everything)
    done = {item.who for item in everything if item.code < 300 and item.holder is None}
    refused = {item.who for item in everything if item.code == 403}
    assert done == refused == set(NAMES)


def fenced(look: official.ApiClient, plane, folder: Path) -> dict[str, Path]:
    """Install what the chart does; give the kubeconfigs of two replicas, each with the token of its pod."""
    core, rbac = official.CoreV1Api(look), official.RbacAuthorizationV1Api(look)
    core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": ACCOUNT}})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    subjects = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}]
    rbac.create_cluster_role_binding({"metadata": {"name": ACCOUNT}, "roleRef": role, "subjects": subjects})
    admission = official.AdmissionregistrationV1Api(look)
    policy, binding = yaml.safe_load_all(FENCE.read_text())
    admission.create_validating_admission_policy(policy)
    admission.create_validating_admission_policy_binding(binding)
    assert binding["spec"]["paramRef"]["name"] == LEASE
    document = yaml.safe_load(plane.kubeconfig.read_text())
    configs = {}
    for name in NAMES:
        spec = {"serviceAccountName": ACCOUNT, "containers": [{"name": "c", "image": "i"}]}
        pod = core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": name}, "spec": spec})
        bound = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod.metadata.uid}
        request = {"spec": {"audiences": [], "boundObjectRef": bound}}
        token = core.create_namespaced_service_account_token(ACCOUNT, NAMESPACE, request).status.token
        users = [user | {"user": {"token": token}} for user in document["users"]]
        configs[name] = folder / name
        configs[name].write_text(yaml.safe_dump(document | {"users": users}))
    _in_force(look, configs["one"])
    return configs


def _in_force(look: official.ApiClient, kubeconfig: Path) -> None:
    """Return once a policy that has just been made is followed."""
    lease = {"metadata": {"name": LEASE}, "spec": {"holderIdentity": "nobody_1"}}
    official.CoordinationV1Api(look).create_namespaced_lease(NAMESPACE, lease)
    replica = official.CoreV1Api(official_config.new_client_from_config(str(kubeconfig)))
    for _ in range(600):
        try:
            replica.create_namespaced_secret("default", {"metadata": {"generateName": "tried-"}})
        except official.ApiException as refusal:
            if "does not hold the lease" in refusal.body:
                return
        time.sleep(0.05)
    raise AssertionError("the policy is not followed")


async def test_a_control_plane_that_is_told_to_stop_gives_its_lease_back(plane, look, namespace, tmp_path):
    argv = ["--kubeconfig", str(plane.kubeconfig), "--lease-namespace", namespace, "--xds", f"unix:{tmp_path}/xds.sock"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controllers", *argv, "--metrics-host", "127.0.0.1", "--metrics-port", "0",
        cwd=control_plane.ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    leases = official.CoordinationV1Api(look)

    def holders() -> list[str]:
        return [item.spec.holder_identity for item in leases.list_namespaced_lease(namespace).items]

    # Not as soon as the lease is there: what the process has not been told that it holds, it does not give back.
    said = await asyncio.wait_for(process.stderr.readuntil(b"this process leads"), 60)
    assert any(await asyncio.to_thread(holders))
    process.terminate()
    said += (await process.communicate())[1]

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
