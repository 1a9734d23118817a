"""How an API server is reached and who we are to it: a kubeconfig, or what a pod finds in its file system.

`kubeconfig` and `in_cluster` give an `Access`; its `identity` is asked before every request, from any thread, and follows
tokens that rotate. Everything wrong with a configuration is an `AccessError` that names the file and the field. Keys and
certificates that come as data are written nowhere: they are in memory under a path, and end with the process, however it ends.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import subprocess
import threading
import time
import weakref
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_READ_EVERY_S: Final = 60.0  # the kubelet renews it when a fifth of its life is left: minutes, at the least
EXEC_VERSIONS: Final = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
EXEC_RENEW_BEFORE_S: Final = 30.0
EXEC_PATIENCE_S: Final = 60.0
_NOEXEC_SEAL: Final = 0x0008  # MFD_NOEXEC_SEAL of Linux 6.3: a host may refuse files in memory without it


class AccessError(Exception):
    """The configuration does not say how to reach an API server; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What goes with a request: headers, and the files of a client certificate and its key."""

    headers: Mapping[str, str]
    certificate: tuple[str, str] | None = None


class Identity(Protocol):
    """Who we are. Called from several threads."""

    def present(self) -> Presented:
        """Return what to show with the next request. Raises AccessError."""
        ...

    def refused(self) -> bool:
        """Take note that the server did not accept it (401); say whether there may be something newer to show."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """An API server and our identity there. `verify` is a file of authorities, True for the system's, False for none."""

    server: str
    identity: Identity
    verify: str | bool = True
    server_name: str = ""  # in its certificate, where it is not the address
    proxy: str = ""
    namespace: str = "default"
    impersonate: str = ""


def find(*, path: str = "", context: str = "") -> Access:
    """Return the access that is configured: the file named, else the pod's own, else `$KUBECONFIG` or `~/.kube/config`."""
    if not path and not context and "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster()
    return kubeconfig(path, context=context)


def in_cluster(
    directory: Path = SERVICE_ACCOUNT,
    environ: Mapping[str, str] = os.environ,
    clock: Callable[[], float] = time.monotonic,
) -> Access:
    """Return the access of a pod's service account."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise AccessError("KUBERNETES_SERVICE_HOST is not set: this is no pod; name a kubeconfig")
    for name in ("token", "ca.crt"):
        if not (directory / name).is_file():
            raise AccessError(f"{directory / name}: missing: set automountServiceAccountToken: true on the pod")
    namespace = directory / "namespace"
    return Access(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        identity=TokenFile(directory / "token", clock=clock),
        verify=str(directory / "ca.crt"),
        namespace=namespace.read_text().strip() if namespace.is_file() else "default",
    )


def kubeconfig(path: str = "", *, context: str = "", clock: Callable[[], float] = time.time) -> Access:
    """Return the access that a context (by default the current one) of a kubeconfig describes.

    `path` may name several files as `$KUBECONFIG` may; of entries with the same name the first counts.
    """
    paths = [
        Path(part).expanduser() for part in (path or os.environ.get("KUBECONFIG", "~/.kube/config")).split(":") if part
    ]
    found = _Kubeconfig.read(paths)
    name = context or found.current
    if not name:
        raise AccessError(f"{found.where}: current-context is not set: name one of: {', '.join(found.contexts)}")
    chosen = found.entry("contexts", name, "context")
    cluster = found.entry("clusters", str(chosen.value.get("cluster", "")), "cluster")
    user = found.entry("users", str(chosen.value["user"]), "user") if chosen.value.get("user") else None
    server = cluster.value.get("server")
    if not isinstance(server, str) or not server.startswith(("http://", "https://")):
        raise AccessError(f"{cluster.at}.server: must be an http:// or https:// address, not {server!r}")
    return Access(
        server=server.rstrip("/"),
        identity=_identity(user, cluster, clock) if user else Bearer({}),
        verify=_authorities(cluster),
        server_name=str(cluster.value.get("tls-server-name") or ""),
        proxy=str(cluster.value.get("proxy-url") or ""),
        namespace=str(chosen.value.get("namespace") or "default"),
        impersonate=str(user.value.get("as") or "") if user else "",
    )


# Identities


class Bearer:
    """Headers and a certificate that stay as they are."""

    def __init__(self, headers: Mapping[str, str], certificate: tuple[str, str] | None = None) -> None:
        self._presented = Presented(headers, certificate)

    def present(self) -> Presented:
        """Return what to show with the next request."""
        return self._presented

    def refused(self) -> bool:
        """Nothing newer is to be had."""
        return False


class TokenFile:
    """A token that something else keeps renewing in a file."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._token = ""
        self._read_at = float("-inf")

    def present(self) -> Presented:
        """Return the token; an unreadable file leaves the last one in use."""
        with self._lock:
            if self._clock() >= self._read_at + TOKEN_READ_EVERY_S:
                self._read()
            return Presented({"Authorization": f"Bearer {self._token}"})

    def refused(self) -> bool:
        """Read the file again; say whether it holds another token."""
        with self._lock:
            before = self._token
            self._read()
            return self._token != before

    def _read(self) -> None:
        try:
            token = self._path.read_text().strip()
        except OSError as error:
            if not self._token:
                raise AccessError(f"{self._path}: {error.strerror}: no token to show the API server") from error
            return
        if token:
            self._token, self._read_at = token, self._clock()


class ExecPlugin:
    """A program that is asked for a token or a certificate, as `kubectl` asks it, and again when that runs out."""

    def __init__(self, entry: _Entry, cluster: _Entry, clock: Callable[[], float]) -> None:
        spec = entry.value
        self._at = entry.at
        self._version = spec.get("apiVersion")
        if self._version not in EXEC_VERSIONS:
            raise AccessError(f"{entry.at}.apiVersion: {self._version!r} is not one of {', '.join(EXEC_VERSIONS)}")
        if not isinstance(spec.get("command"), str) or not spec["command"]:
            raise AccessError(f"{entry.at}.command: the program to run is missing")
        if spec.get("interactiveMode") == "Always":
            raise AccessError(f"{entry.at}.interactiveMode: Always cannot be met: there is nobody to ask")
        command = spec["command"]
        relative = "/" in command and not Path(command).is_absolute()
        self._argv = [
            str(entry.folder / command) if relative else command,
            *(str(item) for item in spec.get("args") or ()),
        ]
        self._env = {str(item["name"]): str(item["value"]) for item in spec.get("env") or ()}
        self._hint = str(spec.get("installHint") or "").strip()
        self._cluster = cluster.value if spec.get("provideClusterInfo") else None
        self._clock = clock
        self._lock = threading.Lock()
        self._presented: Presented | None = None
        self._expires = float("inf")

    def present(self) -> Presented:
        """Return what the program gave, and run it if that has run out."""
        with self._lock:
            if self._presented is None or self._clock() >= self._expires - EXEC_RENEW_BEFORE_S:
                self._presented, self._expires = self._ask()
            return self._presented

    def refused(self) -> bool:
        """Forget what the program gave."""
        with self._lock:
            self._presented = None
        return True

    def _ask(self) -> tuple[Presented, float]:
        info: dict[str, Any] = {"apiVersion": self._version, "kind": "ExecCredential", "spec": {"interactive": False}}
        if self._cluster is not None:
            info["spec"]["cluster"] = {name: value for name, value in self._cluster.items() if name != "extensions"}
        environ = {**os.environ, "KUBERNETES_EXEC_INFO": json.dumps(info), **self._env}
        try:
            done = subprocess.run(
                self._argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=EXEC_PATIENCE_S,
                check=True,
            )
            status = json.loads(done.stdout)["status"]
            return self._read(status), _moment(status.get("expirationTimestamp"))
        except FileNotFoundError as error:
            raise AccessError(f"{self._at}.command: {self._argv[0]} is not installed. {self._hint}".rstrip()) from error
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()[-500:]
            raise AccessError(f"{self._at}.command: {self._argv[0]} failed with {error.returncode}: {said}") from error
        except (subprocess.TimeoutExpired, OSError) as error:
            raise AccessError(f"{self._at}.command: {self._argv[0]}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AccessError(
                f"{self._at}.command: {self._argv[0]} did not print an ExecCredential: {error!r}"
            ) from error

    def _read(self, status: Mapping[str, Any]) -> Presented:
        certificate = None
        if status.get("clientCertificateData"):
            pem, key = str(status["clientCertificateData"]), str(status["clientKeyData"])
            certificate = _Held.with_content(pem.encode()), _Held.with_content(key.encode())
        headers = {"Authorization": f"Bearer {status['token']}"} if status.get("token") else {}
        if not headers and certificate is None:
            raise ValueError("it has neither a token nor a clientCertificateData")
        return Presented(headers, certificate)


def _moment(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else float("inf")


# The kubeconfig's parts


class _Held(str):
    """The path of a key or certificate that came as data: a file in memory, for libraries that read files.

    No folder has it, only we can open it, and it goes with the last who knows the path. So no other gets the same path
    while connections are told apart by it, and a process that is killed leaves nothing.
    """

    __slots__ = ("__weakref__",)

    @classmethod
    def with_content(cls, content: bytes) -> _Held:
        """Hold this. Raises OSError."""
        descriptor = _file_in_memory()
        held = cls(f"/proc/self/fd/{descriptor}")
        closing = weakref.finalize(held, os.close, descriptor)
        closing.atexit = False  # the end of the process closes it, after its threads
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fchmod(descriptor, 0o400)
        return held


def _file_in_memory() -> int:
    name = "matrixinfer-access"  # as it is shown in /proc
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC)  # an older kernel


@dataclass(frozen=True, slots=True)
class _Entry:
    """A mapping of a kubeconfig: where it stands, for messages and for relative paths."""

    value: dict[str, Any]
    at: str
    folder: Path

    def file(self, name: str) -> str | None:
        """Return the file of a field that may come as data instead."""
        if self.value.get(f"{name}-data"):
            try:
                return _Held.with_content(base64.b64decode(self.value[f"{name}-data"], validate=True))
            except (binascii.Error, TypeError, ValueError) as error:
                raise AccessError(f"{self.at}.{name}-data: is not base64: {error}") from None
        if not self.value.get(name):
            return None
        path = self.folder / str(self.value[name])
        if not path.is_file():
            raise AccessError(f"{self.at}.{name}: {path} is no file")
        return str(path)


@dataclass(frozen=True, slots=True)
class _Kubeconfig:
    documents: Sequence[tuple[Path, dict[str, Any]]]
    where: str

    @classmethod
    def read(cls, paths: Sequence[Path]) -> _Kubeconfig:
        where = ":".join(map(str, paths))
        documents = []
        for path in paths:
            if not path.is_file():
                continue  # as kubectl does: $KUBECONFIG may name files that come and go
            try:
                document = yaml.safe_load(path.read_text())
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise AccessError(f"{path}: {error}") from error
            if not isinstance(document, dict):
                raise AccessError(f"{path}: is no kubeconfig: it should be a mapping with clusters, users and contexts")
            documents.append((path, document))
        if not documents:
            raise AccessError(f"{where}: no such file: name a kubeconfig with --kubeconfig or $KUBECONFIG")
        return cls(documents, where)

    @property
    def current(self) -> str:
        return next((str(doc["current-context"]) for _, doc in self.documents if doc.get("current-context")), "")

    @property
    def contexts(self) -> list[str]:
        return [str(item.get("name")) for _, doc in self.documents for item in doc.get("contexts") or ()]

    def entry(self, section: str, name: str, member: str) -> _Entry:
        for path, document in self.documents:
            for index, item in enumerate(document.get(section) or ()):
                at = f"{path}: {section}[{index}].{member}"
                if isinstance(item, dict) and item.get("name") == name:
                    if not isinstance(item.get(member), dict):
                        raise AccessError(f"{at}: must be a mapping")
                    return _Entry(item[member], at, path.parent)
        raise AccessError(f"{self.where}: {section}: there is no {name!r}")


def _authorities(cluster: _Entry) -> str | bool:
    if cluster.value.get("insecure-skip-tls-verify"):
        return False
    return cluster.file("certificate-authority") or True


def _identity(user: _Entry, cluster: _Entry, clock: Callable[[], float]) -> Identity:
    value = user.value
    for member, instead in (("auth-provider", "exec"), ("as-groups", "as"), ("as-user-extra", "as")):
        if value.get(member):
            raise AccessError(f"{user.at}.{member}: is not supported: use {instead}")
    if value.get("exec"):
        return ExecPlugin(_Entry(value["exec"], f"{user.at}.exec", user.folder), cluster, clock)
    if value.get("tokenFile"):
        return TokenFile(user.folder / str(value["tokenFile"]))
    headers = {}
    if value.get("token"):
        headers["Authorization"] = f"Bearer {value['token']}"
    elif value.get("username"):
        pair = f"{value['username']}:{value.get('password', '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    certificate, key = user.file("client-certificate"), user.file("client-key")
    if bool(certificate) != bool(key):
        raise AccessError(f"{user.at}: client-certificate and client-key are needed both")
    return Bearer(headers, (certificate, key) if certificate and key else None)
