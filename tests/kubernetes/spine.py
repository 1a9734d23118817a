"""What the chart deploys, as processes of this machine: the manifests' own commands, with the accounts' own rights.

Only where things are is other than in a cluster: ports, folders, and the name by which Envoy finds the control plane. Pods of engines
run on our node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml

from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local import envoy, ports
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, Settings
from matrixinfer.local.node import Node
from matrixinfer.local.processes import Command, Process, tail
from tests.kubernetes import control_plane

CHART = control_plane.ROOT / "charts" / "matrixinfer"
MANIFESTS = control_plane.ROOT / "charts" / "manifests"
KUBECTL = control_plane.BUILT / "kubectl"
NAMESPACE = "matrixinfer-system"


def helm() -> str | None:
    """Give the path of a Helm, if there is one."""
    built = control_plane.ROOT / ".build" / "helm" / "helm"
    return str(built) if built.exists() else shutil.which("helm")


def kubectl(plane, *words, check=True):
    """Run kubectl as the administrator."""
    command = [KUBECTL, "--kubeconfig", plane.kubeconfig, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=control_plane.ROOT)
    assert done.returncode == 0 or not check, done.stderr
    return done


def plain() -> list[dict]:
    """Give the manifests that are applied where there is no Helm."""
    return [document for path in sorted(MANIFESTS.glob("*.yaml")) for document in yaml.safe_load_all(path.read_text())]


def one(documents, kind, name):
    """Give the manifest of this kind and name."""
    [found] = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def containers(documents, deployment):
    """Give the containers of a Deployment by name, init containers, too."""
    spec = one(documents, "Deployment", deployment)["spec"]["template"]["spec"]
    return {each["name"]: each for each in (*spec.get("initContainers", ()), *spec["containers"])}


@dataclass
class Spine:
    """Everything that runs. `url` is where clients send requests."""

    plane: control_plane.ControlPlane
    folder: Path
    documents: list[dict] = field(default_factory=plain)
    ports: dict[str, int] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['gateway']}"

    def place(self, text: str) -> str:
        """Say where on this machine something of a manifest is."""
        for there, here in {
            "0.0.0.0:18000": f"127.0.0.1:{self.ports['xds']}",
            "0.0.0.0:8080": f"127.0.0.1:{self.ports['gateway']}",
            "0.0.0.0:9443": f"127.0.0.1:{self.ports['webhooks']}",
            "--metrics-port=9090": "--metrics-port=0",
            "/run/matrixinfer": str(self.folder),
            "/etc/matrixinfer": str(self.folder),
            "$(POD_NAME)": "gateway-0",
            f'"matrixinfer-controllers.{NAMESPACE}","port_value":18000': f'"localhost","port_value":{self.ports["xds"]}',
        }.items():
            text = text.replace(there, here)
        return text

    def kubeconfig(self, account: str) -> Path:
        """Write a kubeconfig of a service account."""
        config = yaml.safe_load(self.plane.kubeconfig.read_text())
        for user in config["users"]:
            user["user"]["as"] = f"system:serviceaccount:{NAMESPACE}:{account}"
        path = self.folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    async def start(self, deployment: str, name: str, *program: str, more: tuple[str, ...] = ()) -> None:
        """Start a container of a Deployment as a process; `program` stands for its image's."""
        container = containers(self.documents, deployment)[name]
        command = [sys.executable, *container["command"][1:]] if "command" in container else []
        argv = [*program, *command, *map(self.place, container["args"]), *more]
        env = dict(os.environ) | {
            "KUBECONFIG": str(self.kubeconfig(deployment)),
            "POD_NAMESPACE": NAMESPACE,
            "ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(envoy.MODULES),
        }
        log = self.folder / f"{name}.log"
        self.processes[name] = await Process.start(Command(argv, env, log, control_plane.ROOT))

    async def stop(self, name: str) -> int:
        return await self.processes.pop(name).stop(10)

    def said(self, name: str) -> str:
        return "\n".join(tail(self.folder / f"{name}.log", 1000))

    async def serves(self) -> bool:
        """Tell whether a request is answered, and check that every process is there."""
        for name, process in self.processes.items():
            assert process.running, f"{name} ended:\n{self.said(name)}"
        with contextlib.suppress(aiohttp.ClientError):
            return (await self.ask())[0] == 200
        return False

    async def ask(self) -> tuple[int, str, list[str]]:
        """Send the request of the quickstart; gives status, model, and the addresses that it could have gone to."""
        message = {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
            http.post(
                f"{self.url}/v1/chat/completions", json=message, headers={"x-matrixinfer-explain": "1"}
            ) as answer,
        ):
            decision = json.loads(answer.headers.get("x-matrixinfer-decision", "{}"))
            body = await answer.json(content_type=None) if answer.status == 200 else {}
            addresses = [each["endpoint"].partition(":")[0] for each in decision.get("candidates", ())]
            return answer.status, body.get("model", ""), sorted(addresses)


@contextlib.asynccontextmanager
async def deployed(plane, *, engines: bool = True):
    """Run what has been installed in a cluster, and a node for engines."""
    folder = Path(tempfile.mkdtemp(prefix="spine-"))
    addresses = Addresses()
    spine = Spine(plane, folder)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.callback(addresses.close)
        spine.ports = {name: ports.choose(0, option="port") for name in ("xds", "gateway", "webhooks")}
        data = one(spine.documents, "ConfigMap", "matrixinfer-gateway")["data"]
        for name, text in data.items():
            (folder / name).write_text(spine.place(text))
        if engines:
            server = await stack.enter_async_context(ApiServer(credentials.kubeconfig(str(plane.kubeconfig))))
            node = Node(server, addresses=addresses, settings=Settings(folder, Backoff(0.1, 1)), shutdown_grace_s=5)
            running = asyncio.create_task(node.run())
            stack.push_async_callback(asyncio.gather, running, return_exceptions=True)
            stack.callback(running.cancel)
        stack.push_async_callback(_stopped, spine)
        await spine.start("matrixinfer-controllers", "controllers")
        await spine.start("matrixinfer-gateway", "news")
        await spine.start("matrixinfer-gateway", "picker", more=("--admin-port=0",))
        await spine.start("matrixinfer-gateway", "envoy", envoy.find(), more=("--use-dynamic-base-id",))
        try:
            yield spine
        except BaseException:
            _tell(spine)
            raise


def _tell(spine: Spine) -> None:
    """Write down what is known of a failure."""
    for log in sorted(spine.folder.glob("*.log")):
        text = log.read_text(errors="replace")
        sys.stdout.write(f"--- {log.stem}\n{text[:2000]}\n...\n{text[-1000:]}\n")
    seen = kubectl(spine.plane, "get", "pods,mi,ms,mr,events", "-A", "-o", "yaml", check=False)
    sys.stdout.write(seen.stdout + seen.stderr)


async def _stopped(spine: Spine) -> None:
    await asyncio.gather(*(process.stop(5) for process in spine.processes.values()))
