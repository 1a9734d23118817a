"""What a configuration of access says, and how its mistakes are told."""

from __future__ import annotations

import base64
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver_wire import Wire
from matrixinfer.cluster.credentials import AccessError

PEM = b"-----BEGIN CERTIFICATE-----\n"


def a_kubeconfig(folder, name="config", *, cluster=None, user=None, context=None, current="c"):
    document = {
        "clusters": [{"name": "k", "cluster": {"server": "https://k:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": user or {}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"} | (context or {})}],
        "current-context": current,
    }
    path = folder / name
    path.write_text(yaml.safe_dump(document))
    return str(path)


def headers(access):
    return access.identity.present().headers


def test_a_token_and_a_namespace_come_from_the_context(tmp_path):
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, user={"token": "t"}, context={"namespace": "n"}))

    assert (access.server, access.namespace, headers(access)) == ("https://k:6443", "n", {"Authorization": "Bearer t"})


def test_of_several_files_the_first_that_has_a_name_counts(tmp_path):
    first = a_kubeconfig(tmp_path, "first", user={"token": "first"})
    second = a_kubeconfig(tmp_path, "second", user={"token": "second"}, current="other")
    path = os.pathsep.join([str(tmp_path / "absent"), first, second])

    assert headers(credentials.kubeconfig(path)) == {"Authorization": "Bearer first"}


def test_certificates_given_as_data_lie_in_files_that_only_we_can_read(tmp_path):
    data = base64.b64encode(PEM).decode()
    user = {"client-certificate-data": data, "client-key-data": data}
    access = credentials.kubeconfig(
        a_kubeconfig(tmp_path, user=user, cluster={"certificate-authority-data": data}), context="c"
    )

    certificate, key = access.identity.present().certificate
    for path in (certificate, key, access.verify):
        assert open(path, "rb").read() == PEM  # noqa: PTH123, SIM115
        assert os.stat(os.path.dirname(path)).st_mode & 0o077 == 0  # noqa: PTH116, PTH120


def test_a_process_that_is_killed_leaves_nothing_of_what_came_as_data(tmp_path):
    data, scratch = base64.b64encode(PEM).decode(), tmp_path / "scratch"
    scratch.mkdir()
    user = {"client-certificate-data": data, "client-key-data": data}
    path = a_kubeconfig(tmp_path, user=user, cluster={"certificate-authority-data": data})
    reads = (
        "import sys; from matrixinfer.cluster import credentials; access = credentials.kubeconfig(sys.argv[1]);"
        "print(*access.identity.present().certificate, access.verify, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", reads, path],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        paths = [Path(one.replace("/self/", f"/{process.pid}/")) for one in process.stdout.readline().split()]
        held = [one.read_bytes() for one in paths]
        modes = {one.stat().st_mode & 0o777 for one in paths}
        process.kill()

    assert (held, modes) == ([PEM] * 3, {0o400})
    assert list(scratch.iterdir()) == []
    assert not any(one.exists() for one in paths)


def a_renewed_certificate(folder, now):
    """An access whose plugin gives a certificate until 2030."""
    status = {
        "clientCertificateData": PEM.decode(),
        "clientKeyData": PEM.decode(),
        "expirationTimestamp": "2030-01-01T00:00:00Z",
    }
    spec = {"apiVersion": credentials.EXEC_VERSIONS[0], "command": "echo", "args": [json.dumps({"status": status})]}
    path = a_kubeconfig(folder, user={"exec": spec})
    return credentials.kubeconfig(path, clock=lambda: now[0])


def open_files():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_certificates_that_were_renewed_are_let_go(tmp_path):
    access = a_renewed_certificate(tmp_path, [2e9])
    access.identity.present()
    before = open_files()

    for _ in range(20):
        certificate, key = access.identity.present().certificate
        assert open(certificate, "rb").read() == open(key, "rb").read() == PEM  # noqa: PTH123, SIM115

    assert open_files() <= before + 2  # ours


def test_a_renewed_certificate_has_other_connections_than_the_one_before(tmp_path):
    access = a_renewed_certificate(tmp_path, [2e9])
    wire = Wire(access, user_agent="test", pool=1)

    pools = [wire._find(access.identity.present().certificate)[0] for _ in range(5)]

    assert len({id(pool) for pool in pools}) == 5
    assert len({pool.cert_file for pool in pools}) == 5
    wire.close()


def test_a_host_whose_kernel_knows_no_seal_is_served(tmp_path, monkeypatch):
    make = os.memfd_create

    def older(name, flags):
        if flags & credentials._NOEXEC_SEAL:
            raise OSError(errno.EINVAL, "Invalid argument")
        return make(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    data = base64.b64encode(PEM).decode()
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, cluster={"certificate-authority-data": data}))

    assert Path(access.verify).read_bytes() == PEM


def test_paths_are_relative_to_the_file_that_names_them(tmp_path):
    (tmp_path / "ca.pem").write_bytes(PEM)
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, cluster={"certificate-authority": "ca.pem"}))

    assert access.verify == str(tmp_path / "ca.pem")


def test_a_password_and_a_proxy_and_another_name(tmp_path):
    cluster = {"proxy-url": "http://p:1", "tls-server-name": "kube", "insecure-skip-tls-verify": True}
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, cluster=cluster, user={"username": "a", "password": "b"}))

    assert (access.proxy, access.server_name, access.verify) == ("http://p:1", "kube", False)
    assert headers(access) == {"Authorization": "Basic YTpi"}


def test_a_token_in_a_file_is_read_again_after_a_while_and_kept_while_it_is_gone(tmp_path):
    now = [0.0]
    file = tmp_path / "token"
    file.write_text("one\n")
    token = credentials.TokenFile(file, clock=lambda: now[0])

    assert token.present().headers == {"Authorization": "Bearer one"}
    file.write_text("two\n")
    assert token.present().headers == {"Authorization": "Bearer one"}
    now[0] = credentials.TOKEN_READ_EVERY_S
    assert token.present().headers == {"Authorization": "Bearer two"}
    file.unlink()
    assert not token.refused()
    assert token.present().headers == {"Authorization": "Bearer two"}


def test_outside_a_pod_there_is_no_account(tmp_path):
    with pytest.raises(AccessError, match="KUBERNETES_SERVICE_HOST"):
        credentials.in_cluster(tmp_path, {})
    with pytest.raises(AccessError, match="automountServiceAccountToken"):
        credentials.in_cluster(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current": ""}, r"current-context is not set.*: c$"),
        ({"current": "x"}, r"contexts: there is no 'x'"),
        ({"context": {"cluster": "x"}}, r"clusters: there is no 'x'"),
        ({"context": {"user": "x"}}, r"users: there is no 'x'"),
        ({"cluster": {"server": "k:6443"}}, r"clusters\[0\]\.cluster\.server: must be an http"),
        ({"cluster": {"certificate-authority": "none.pem"}}, r"certificate-authority: .*none\.pem is no file"),
        ({"cluster": {"certificate-authority-data": "?"}}, r"certificate-authority-data: is not base64"),
        ({"user": {"client-certificate-data": "YQ=="}}, r"client-certificate and client-key are needed both"),
        ({"user": {"auth-provider": {"name": "gcp"}}}, r"auth-provider: is not supported: use exec"),
        ({"user": {"exec": {"apiVersion": "v0"}}}, r"users\[0\]\.user\.exec\.apiVersion: 'v0' is not one of"),
        ({"user": {"exec": {"apiVersion": credentials.EXEC_VERSIONS[0]}}}, r"exec\.command: the program to run"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, changes, message):
    with pytest.raises(AccessError, match=message):
        credentials.kubeconfig(a_kubeconfig(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"), [("[", "expected the node"), ("- a", "should be a mapping"), (None, "no such file")]
)
def test_what_is_no_kubeconfig_is_told_by_its_name(tmp_path, text, message):
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)

    with pytest.raises(AccessError, match=f"{path}.*") as told:
        credentials.kubeconfig(str(path))
    assert message in str(told.value)


@pytest.mark.parametrize(
    ("printed", "message"),
    [("nonsense", "did not print an ExecCredential"), ("{}", "ExecCredential"), ('{"status": {}}', "neither a token")],
)
def test_a_plugin_that_prints_nonsense_is_told(tmp_path, printed, message):
    spec = {"apiVersion": credentials.EXEC_VERSIONS[0], "command": "echo", "args": [printed]}
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, user={"exec": spec}))

    with pytest.raises(AccessError, match=message):
        access.identity.present()


def test_a_plugin_that_is_not_there_is_told_with_how_to_get_it(tmp_path):
    spec = {"apiVersion": credentials.EXEC_VERSIONS[0], "command": "no-such-plugin", "installHint": "ask Ann"}
    access = credentials.kubeconfig(a_kubeconfig(tmp_path, user={"exec": spec}))

    with pytest.raises(AccessError, match=r"no-such-plugin is not installed\. ask Ann"):
        access.identity.present()
