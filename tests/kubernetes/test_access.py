"""The ways to be somebody to a real API server: tokens, certificates, plugins, a pod's account."""

from __future__ import annotations

import asyncio
import json
import stat

import pytest
import yaml
from kubernetes import client as official

from matrixinfer.api import kinds
from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.cluster.protocol import Forbidden, Unavailable
from tests.kubernetes.conftest import access


def kubeconfig_with(plane, folder, user) -> str:
    document = yaml.safe_load(plane.kubeconfig.read_text())
    name = document["current-context"]
    document["contexts"] = [{"name": "mine", "context": context_of(document, name) | {"user": "me"}}]
    document |= {"users": [{"name": "me", "user": user}], "current-context": "mine"}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def context_of(document, name) -> dict:
    return next(item["context"] for item in document["contexts"] if item["name"] == name)


def admin_token(plane) -> str:
    document = yaml.safe_load(plane.kubeconfig.read_text())
    user = context_of(document, document["current-context"])["user"]
    token = next(item["user"].get("token") for item in document["users"] if item["name"] == user)
    return token or pytest.skip("the kubeconfig given has no token")


async def may_list(access_: credentials.Access) -> bool:
    async with ApiServer(access_) as server:
        return bool((await server.list(kinds.NAMESPACE)).items)


async def test_a_client_certificate_is_somebody(plane):
    contexts = yaml.safe_load(plane.kubeconfig.read_text())["contexts"]
    if "certificate" not in [item["name"] for item in contexts]:
        pytest.skip("the kubeconfig given has no context with a certificate")

    assert await may_list(access(plane, context="certificate"))


async def test_a_plugin_is_asked_once_and_again_when_its_token_has_run_out(plane, tmp_path):
    asked = tmp_path / "asked"
    plugin = tmp_path / "plugin"
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": admin_token(plane), "expirationTimestamp": "2030-01-01T00:00:00Z"},
    }
    plugin.write_text(
        f'#!/bin/sh\necho "$WHO $KUBERNETES_EXEC_INFO" >> {asked}\ncat <<END\n{json.dumps(answer)}\nEND\n'
    )
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    spec = {"apiVersion": answer["apiVersion"], "command": "./plugin", "env": [{"name": "WHO", "value": "me"}]}
    now = [0.0]
    path = kubeconfig_with(plane, tmp_path, {"exec": spec | {"provideClusterInfo": True}})
    somebody = credentials.kubeconfig(path, clock=lambda: now[0])

    assert await may_list(somebody)
    assert await may_list(somebody)
    assert len(asked.read_text().splitlines()) == 1
    assert asked.read_text().startswith("me ")
    assert '"server": "https://' in asked.read_text()
    now[0] = 1893456000.0 - 10
    assert await may_list(somebody)
    assert len(asked.read_text().splitlines()) == 2


async def test_a_plugin_that_fails_is_told_with_what_it_said(plane, tmp_path):
    spec = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": "sh",
        "args": ["-c", "echo no login >&2; exit 3"],
    }

    with pytest.raises(Unavailable, match="failed with 3: no login"):
        await may_list(credentials.kubeconfig(kubeconfig_with(plane, tmp_path, {"exec": spec})))


async def test_an_account_of_a_pod_follows_its_token(plane, core, look, namespace, tmp_path):
    account = f"system:serviceaccount:{namespace}:default"
    rbac = official.RbacAuthorizationV1Api(look)
    rules = [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list"]}]
    await asyncio.to_thread(rbac.create_cluster_role, {"metadata": {"name": namespace}, "rules": rules})
    binding = {
        "metadata": {"name": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": account}],
    }
    await asyncio.to_thread(rbac.create_cluster_role_binding, binding)
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": None}}
    made = await asyncio.to_thread(core.create_namespaced_service_account_token, "default", namespace, request)
    document = yaml.safe_load(plane.kubeconfig.read_text())
    cluster = document["clusters"][0]["cluster"]
    authority = credentials.kubeconfig(str(plane.kubeconfig))
    if not isinstance(authority.verify, str):
        pytest.skip("the kubeconfig given names no authority")
    (tmp_path / "ca.crt").write_bytes(open(authority.verify, "rb").read())  # noqa: ASYNC230, PTH123, SIM115
    (tmp_path / "token").write_text("old\n")
    (tmp_path / "namespace").write_text(namespace)
    host, _, port = cluster["server"].removeprefix("https://").rpartition(":")
    environ = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    pod = credentials.in_cluster(tmp_path, environ, clock=lambda: 0.0)
    assert pod.namespace == namespace

    async with ApiServer(pod) as server:
        with pytest.raises(Unavailable, match="Unauthorized"):
            await server.list(kinds.NAMESPACE)
        (tmp_path / "token").write_text(made.status.token)  # not yet time to look again, but it was refused

        assert (await server.list(kinds.NAMESPACE)).items
        with pytest.raises(Forbidden):
            await server.list(kinds.SECRET)
