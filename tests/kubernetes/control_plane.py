"""Where the tests' API server comes from: one given by the environment, or kubetest, built by `make kubetest`.

`TEST_KUBECONFIG` names a kubeconfig of a cluster that tests may fill and break; `KUBEBUILDER_ASSETS` a folder with the binary
`kubetest`, or with `etcd` and `kube-apiserver`, without whose controller-manager the tests of garbage collection are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from matrixinfer.local import ports

ROOT = Path(__file__).parents[2]
BUILT = ROOT / ".build" / "kubernetes"
OUR_CRDS = sorted((ROOT / "crds").glob("*.yaml"))
BOOT_S = 180


class Missing(Exception):
    """There is no API server to test with; the message says why."""


@dataclass
class ControlPlane:
    """A running API server. `process` and `folder` are there if it is ours to stop and to start again."""

    kubeconfig: Path
    binary: Path | None = None
    process: subprocess.Popen | None = None
    folder: Path | None = None
    options: tuple[str, ...] = ()
    said: dict = field(default_factory=dict)
    collects: bool = True  # a controller-manager runs beside it

    @property
    def server(self) -> str:
        return self.said["server"]

    def freeze(self) -> None:
        """Keep the kernel's connections open, and answer nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it at once, as a crash would; its state stays."""
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def start(self, *more: str) -> None:
        """Start it, again at the same address if it ran before, and wait until pods can be created."""
        port = self.server.rpartition(":")[2] if self.said else ports.choose(0, option="port")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, f"--dir={self.folder}", "--stdin", f"--port={port}", *self.options, *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            tail = (self.folder / "log").read_text(errors="replace").splitlines()[-30:]
            raise RuntimeError("kubetest did not start:\n" + "\n".join(tail))
        self.said = json.loads(line)


def find() -> Path:
    """Return the kubetest binary, or the folder of envtest's. Raises Missing."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        for candidate in (Path(assets) / "kubetest", Path(assets)):
            if candidate.is_file() or (candidate / "kube-apiserver").is_file():
                return candidate
        raise Missing(f"KUBEBUILDER_ASSETS={assets} has neither kubetest nor kube-apiserver")
    if (BUILT / "kubetest").is_file():
        return BUILT / "kubetest"
    if shutil.which("go") is None:
        raise Missing("Go is not installed, with which `make kubetest` builds an API server")
    raise Missing("`make kubetest` has not been run")


@contextlib.contextmanager
def kubetest(*options: str, crds=()):
    """Run a control plane of one's own; `options` are kubetest's, `crds` files that are installed at its start."""
    binary = find()
    if binary.is_dir():
        raise Missing("this test stops and starts the control plane, which takes kubetest (`make kubetest`)")
    folder = Path(tempfile.mkdtemp(prefix="kubetest-"))
    options += tuple(f"--crds={path}" for path in crds)
    plane = ControlPlane(folder / "kubeconfig", binary, folder=folder, options=options)
    try:
        plane.start()
        yield plane
    finally:
        if plane.process is not None:
            plane.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def any_control_plane(crds=()):
    """Give the API server that the environment names, or one of our own."""
    if given := os.environ.get("TEST_KUBECONFIG"):
        yield ControlPlane(Path(given))
        return
    binary = find()
    with envtest(binary) if binary.is_dir() else kubetest(crds=crds) as plane:
        yield plane


@contextlib.contextmanager
def envtest(assets: Path):
    """Run etcd and kube-apiserver as controller-runtime's envtest does; its certificate is of its own making."""
    folder = Path(tempfile.mkdtemp(prefix="envtest-"))
    etcd, peer, port = (ports.choose(0, option="port") for _ in range(3))
    key, tokens, config = folder / "accounts.key", folder / "tokens.csv", folder / "kubeconfig"
    token = os.urandom(16).hex()
    tokens.write_text(f"{token},admin,admin,system:masters\n")
    subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
    server = f"https://127.0.0.1:{port}"
    user, context = {"token": token}, {"cluster": "it", "user": "it"}
    document = {
        "clusters": [
            {"name": "it", "cluster": {"server": server, "certificate-authority": str(folder / "apiserver.crt")}}
        ],
        "users": [{"name": "it", "user": user}],
        "contexts": [{"name": "it", "context": context}],
        "current-context": "it",
    }
    config.write_text(json.dumps(document))
    store = (
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{etcd}",
        f"--advertise-client-urls=http://127.0.0.1:{etcd}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        "--unsafe-no-fsync",
        "--log-level=error",
    )
    serve = (
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={folder}",
        f"--token-auth-file={tokens}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--authorization-mode=RBAC",
        # There is no controller-manager to make the accounts that this would wait for.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
    )
    with contextlib.ExitStack() as stack, (folder / "log").open("ab") as log:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for command in ((assets / "etcd", *store), (assets / "kube-apiserver", *serve)):
            process = subprocess.Popen(command, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        _await_port(port)
        yield ControlPlane(config, said={"server": server}, collects=False)


def _await_port(port: int) -> None:
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("kube-apiserver did not start")
