"""Admission by a real API server that asks our webhooks over HTTPS; users are the official client and kubectl."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import subprocess
import sys
from base64 import b64encode
from datetime import UTC, datetime

import pytest
import yaml
from kubernetes import client as official
from prometheus_client import CollectorRegistry

from controllers.__main__ import main, webhooks_loop
from controllers.webhooks.certificates import Terms, renewed
from controllers.webhooks.reconcile import Place
from controllers.webhooks.server import Webhooks
from matrixinfer.api import kinds
from matrixinfer.cluster.apiserver import ApiServer
from matrixinfer.local import ports
from tests.cluster.conformance import eventually
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import access
from tests.webhooks.builders import a_route, a_server, an_infer

DEPLOY = control_plane.ROOT / "charts" / "manifests"
KUBECTL = control_plane.BUILT / "kubectl"


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def a_configuration(name, port, namespace, **annotations):
    """What is deployed, but for one namespace, and asked at an address instead of through a Service."""
    found = next(one for one in documents("webhooks.yaml") if one["kind"] == "ValidatingWebhookConfiguration")
    found["metadata"] |= {"name": name, "annotations": annotations}
    [webhook] = found["webhooks"]
    webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}/validate"}
    webhook["namespaceSelector"]["matchExpressions"].append(
        {"key": "kubernetes.io/metadata.name", "operator": "In", "values": [namespace]}
    )
    webhook["timeoutSeconds"] = 10  # the machine is busy
    return found


# It passes the API server's schema; only our webhook counts how large the expression becomes.
BAD_ROUTE = a_route(
    rules=[{"targetModels": [{"modelServerName": "x"}], "modelMatch": {"uri": {"regex": "[a-z]{600}[0-9]{600}"}}}]
)


class User:
    def __init__(self, look, namespace):
        self.custom = official.CustomObjectsApi(look)
        self.look = look
        self.namespace = namespace
        self.warnings = []

    async def call(self, method, kind, *arguments, **options):
        path = (kind.group, kind.version, self.namespace, kind.plural)
        found, _, headers = await asyncio.to_thread(
            getattr(self.custom, f"{method}_with_http_info"), *path, *arguments, **options
        )
        self.warnings = [value for name, value in headers.items() if name.lower() == "warning"]
        return found

    async def create(self, kind, manifest, **options):
        body = copy.deepcopy(manifest)
        body["metadata"].pop("namespace", None)
        return await self.call("create_namespaced_custom_object", kind, body, **options)

    async def patch(self, kind, name, body, **options):
        return await self.call("patch_namespaced_custom_object", kind, name, body, **options)

    async def delete(self, kind, name):
        await self.call("delete_namespaced_custom_object", kind, name)

    async def refused(self, kind, manifest, **options):
        """Say how the API server refuses; "" if it does not."""
        try:
            await self.create(kind, manifest, **options)
        except official.ApiException as error:
            return json.loads(error.body)["message"]
        return ""


@contextlib.asynccontextmanager
async def webhooks(plane, place, **options):
    """One replica: the server, and the loop that keeps its certificate."""
    async with ApiServer(access(plane)) as cluster:
        server = Webhooks(CollectorRegistry())
        loop = webhooks_loop(cluster, place, server, **options)
        task = asyncio.create_task(loop.run())
        try:
            async with server.serve("127.0.0.1", 0) as port:
                yield server, port
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def user(look, namespace):
    return User(look, namespace)


@pytest.fixture
def admission(look):
    return official.AdmissionregistrationV1Api(look)


@pytest.fixture
async def configured(admission):
    """Makes configurations, and takes them away again."""
    made = []

    async def make(configuration):
        await asyncio.to_thread(admission.create_validating_webhook_configuration, configuration)
        made.append(configuration["metadata"]["name"])

    yield make
    for name in made:
        await asyncio.to_thread(admission.delete_validating_webhook_configuration, name)


@pytest.fixture
async def asked(plane, user, other_namespace, configured):
    """Webhooks that the API server asks about the user's namespace."""
    place = Place(other_namespace, f"webhooks-{user.namespace}")
    async with webhooks(plane, place) as (server, port):
        await configured(a_configuration(place.name, port, user.namespace))
        await in_force(user)
        yield server


async def in_force(user):
    """Wait until the API server asks, and trusts whom it asks."""

    async def holds():
        return "modelMatch" in await user.refused(kinds.MODEL_ROUTE, BAD_ROUTE, dry_run="All")

    await eventually(holds)


async def test_what_the_schema_lets_pass_is_refused_with_all_problems_at_once(user, asked):
    bad = an_infer(name="demo", plugins=[{"name": "demo-pod-tweaks", "scope": {"roles": ["ghost"]}}])
    bad["spec"]["rolloutStrategy"] = {"rollingUpdateConfiguration": {"maxUnavailable": 0, "maxSurge": 0}}
    said = await user.refused(kinds.MODEL_INFER, bad)

    assert 'admission webhook "validate.matrixinfer.ai" denied the request' in said
    assert "spec.rolloutStrategy.rollingUpdateConfiguration.maxUnavailable" in said
    assert "spec.plugins" in said


async def test_warnings_reach_the_user(user, asked):
    await user.create(kinds.MODEL_SERVER, a_server(kvConnector={"type": "nixl"}))

    assert "spec.kvConnector: has no effect" in user.warnings[0]


async def test_a_dry_run_is_judged_and_stores_nothing(user, asked):
    assert "RE2" in await user.refused(kinds.MODEL_ROUTE, BAD_ROUTE, dry_run="All")
    await user.create(kinds.MODEL_ROUTE, a_route(), dry_run="All")
    with pytest.raises(official.ApiException) as missing:
        await user.call("get_namespaced_custom_object", kinds.MODEL_ROUTE, "demo")
    assert missing.value.status == 404


async def test_what_was_invalid_before_is_edited_scaled_and_deleted(plane, user, other_namespace, configured):
    await user.create(kinds.MODEL_ROUTE, BAD_ROUTE)
    infer = an_infer(name="demo", plugins=[{"name": "demo-pod-tweaks", "scope": {"roles": ["ghost"]}}])
    await user.create(kinds.MODEL_INFER, infer)
    place = Place(other_namespace, f"webhooks-{user.namespace}")
    async with webhooks(plane, place) as (_, port):
        await configured(a_configuration(place.name, port, user.namespace))
        await in_force(user)
        await user.patch(kinds.MODEL_ROUTE, "demo", {"metadata": {"labels": {"team": "blue"}}})
        warned = user.warnings
        status = {"status": {"observedGeneration": 1, "conditions": []}}
        await user.call("patch_namespaced_custom_object_status", kinds.MODEL_ROUTE, "demo", status)
        await user.call("patch_namespaced_custom_object_scale", kinds.MODEL_INFER, "demo", {"spec": {"replicas": 2}})
        rules = [*BAD_ROUTE["spec"]["rules"], *BAD_ROUTE["spec"]["rules"]]
        with pytest.raises(official.ApiException) as second:
            await user.patch(kinds.MODEL_ROUTE, "demo", {"spec": {"rules": rules}})
        finalizer = {"metadata": {"finalizers": ["example.com/wait"]}}
        await user.patch(kinds.MODEL_ROUTE, "demo", finalizer)
        await user.delete(kinds.MODEL_ROUTE, "demo")
        await user.patch(kinds.MODEL_ROUTE, "demo", {"metadata": {"finalizers": []}})
        await user.delete(kinds.MODEL_INFER, "demo")

    assert "was wrong before and still is" in warned[0]
    assert "spec.rules[1].modelMatch.uri.regex" in second.value.body


async def test_nobody_is_locked_out_while_no_webhook_answers(user, configured):
    configuration = a_configuration(f"webhooks-{user.namespace}", 9, user.namespace)  # nobody listens there
    await configured(configuration)

    assert await user.refused(kinds.MODEL_ROUTE, BAD_ROUTE) == ""
    await user.delete(kinds.MODEL_ROUTE, "demo")


async def test_other_namespaces_and_kinds_are_not_asked_about(look, user, asked, namespaces):
    elsewhere = User(look, await namespaces())

    assert await elsewhere.refused(kinds.MODEL_ROUTE, BAD_ROUTE) == ""


async def test_the_secret_deleted_or_broken_comes_back_and_every_replica_takes_it_up(
    plane, core, user, other_namespace, configured
):
    place = Place(other_namespace, f"webhooks-{user.namespace}")
    async with (
        webhooks(plane, place, may_write=lambda: False) as (follower, port),
        webhooks(plane, place),
    ):
        await configured(a_configuration(place.name, port, user.namespace))  # the follower is asked
        await in_force(user)
        first = follower._shown
        await asyncio.to_thread(core.delete_namespaced_secret, place.name, place.namespace)

        async def another():
            return follower._shown != first

        await eventually(another)
        await in_force(user)
        second = follower._shown
        await asyncio.to_thread(core.patch_namespaced_secret, place.name, place.namespace, {"data": {"ca.key": None}})

        async def a_third():
            return follower._shown != second

        await eventually(a_third)
        await in_force(user)
    secret = await asyncio.to_thread(core.read_namespaced_secret, place.name, place.namespace)

    assert secret.type == "kubernetes.io/tls"
    assert {entry.manager for entry in secret.metadata.managed_fields if "f:tls.crt" in str(entry.fields_v1)} == {
        "matrixinfer-webhooks"
    }


async def test_a_configuration_applied_again_keeps_its_bundle_or_gets_it_back(user, asked, admission):
    name = f"webhooks-{user.namespace}"
    before = await asyncio.to_thread(admission.read_validating_webhook_configuration, name)
    await asyncio.to_thread(
        admission.patch_validating_webhook_configuration,
        name,
        {"webhooks": [{"name": "validate.matrixinfer.ai", "clientConfig": {"caBundle": None}}]},
    )

    async def back():
        found = await asyncio.to_thread(admission.read_validating_webhook_configuration, name)
        return found.webhooks[0].client_config.ca_bundle == before.webhooks[0].client_config.ca_bundle

    await eventually(back)
    after = await asyncio.to_thread(admission.read_validating_webhook_configuration, name)
    [webhook] = after.webhooks
    assert (webhook.failure_policy, webhook.side_effects, webhook.rules) == ("Ignore", "None", before.webhooks[0].rules)
    await in_force(user)


async def test_what_cert_manager_looks_after_is_shown_and_not_written(plane, core, user, other_namespace, configured):
    place = Place(other_namespace, f"webhooks-{user.namespace}")
    injected = {"cert-manager.io/inject-ca-from": f"{place.namespace}/{place.name}"}
    await configured(a_configuration(place.name, 9, user.namespace, **injected))  # who asks is not the question here
    async with webhooks(plane, place) as (server, _):
        made = a_tls_secret(place)
        await asyncio.to_thread(core.create_namespaced_secret, place.namespace, made)

        async def taken_up():
            return server.problem() == ""

        await eventually(taken_up)
    stands = await asyncio.to_thread(core.read_namespaced_secret, place.name, place.namespace)

    assert stands.data == made["data"]


def a_tls_secret(place):
    chest = renewed(None, ["127.0.0.1"], datetime.now(UTC), Terms())
    data = {"tls.crt": chest.serving.certificate_pem, "tls.key": chest.serving.key_pem, "ca.crt": chest.bundle}
    return {
        "metadata": {"name": place.name},
        "type": "kubernetes.io/tls",
        "data": {name: b64encode(text).decode() for name, text in data.items()},
    }


async def test_the_deployed_rights_are_enough_and_the_process_is_asked(plane, look, user, configured, tmp_path):
    await asyncio.to_thread(applied, plane, DEPLOY / "access.yaml")
    config = yaml.safe_load(plane.kubeconfig.read_text())
    for one in config["users"]:
        one["user"]["as"] = "system:serviceaccount:matrixinfer-system:matrixinfer-controllers"
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    port = ports.choose(0, option="port")
    argv = [
        "--kubeconfig",
        str(kubeconfig),
        "--lease-namespace",
        "matrixinfer-system",
        "--webhooks",
        f"127.0.0.1:{port}",
    ]
    configuration = a_configuration("matrixinfer-webhooks", port, user.namespace)
    await user.create(kinds.MODEL_ROUTE, a_route())
    infer = an_infer(name="demo", replicas=1)
    await user.create(kinds.MODEL_INFER, infer)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "controllers", *argv, "--metrics-host", "127.0.0.1", "--metrics-port", "0",
        cwd=control_plane.ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await configured(configuration)
        await in_force(user)

        async def both_have_a_status():
            route = await user.call("get_namespaced_custom_object", kinds.MODEL_ROUTE, "demo")
            made = await user.call("get_namespaced_custom_object", kinds.MODEL_INFER, "demo")
            pods = await asyncio.to_thread(official.CoreV1Api(look).list_namespaced_pod, user.namespace)
            revisions = await asyncio.to_thread(
                official.AppsV1Api(look).list_namespaced_controller_revision, user.namespace
            )
            return "status" in route and "status" in made and len(pods.items) == 1 == len(revisions.items)

        await eventually(both_have_a_status)
        await user.delete(kinds.MODEL_INFER, "demo")
    finally:
        process.terminate()
        _, said = await process.communicate()

    assert process.returncode == 0, said.decode()
    assert "orbidden" not in said.decode()
    assert "cannot" not in said.decode()


def test_the_deployed_webhook_is_one_that_the_api_server_takes_and_locks_nobody_out(plane):
    applied(plane, DEPLOY / "access.yaml")
    said = applied(plane, DEPLOY / "webhooks.yaml", "--dry-run=server", "-o", "json")
    [configuration] = [one for one in json.loads(said)["items"] if one["kind"] == "ValidatingWebhookConfiguration"]
    [webhook] = configuration["webhooks"]

    assert webhook["failurePolicy"] == "Ignore"
    assert webhook["timeoutSeconds"] <= 5
    assert {group for rule in webhook["rules"] for group in rule["apiGroups"]} == {
        "networking.matrixinfer.ai",
        "workload.matrixinfer.ai",
    }
    assert {name for rule in webhook["rules"] for name in rule["operations"]} == {"CREATE", "UPDATE"}
    [expression] = webhook["namespaceSelector"]["matchExpressions"]
    assert "matrixinfer-system" in expression["values"]


def test_an_address_that_is_none_is_said(plane, capsys):
    assert main(["--kubeconfig", str(plane.kubeconfig), "--webhooks", "9443"]) == 1
    assert "--webhooks 9443: must be HOST:PORT" in capsys.readouterr().err


def applied(plane, path, *options):
    if not KUBECTL.exists():
        pytest.skip("kubectl is not there: `make kubetest` brings it")
    return subprocess.run(
        [KUBECTL, "--kubeconfig", plane.kubeconfig, "apply", "-f", path, *options],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
