"""Our CRDs in the hands of kubectl on a real API server: applied, explained, listed, scaled, and refusals that can be read."""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess

import pytest
import yaml
from kubernetes import client as official

from matrixinfer.api import crds, kinds
from tests.gateway.test_reconcile import a_route, a_server
from tests.kubernetes import control_plane
from tests.modelinfer.village import a_role, an_infer, rolling

KUBECTL = control_plane.BUILT / "kubectl"
APPLIED_ANNOTATION_BYTES = 256 * 1024  # what `kubectl apply` writes beside the object may not be longer


@pytest.fixture
def kubectl(plane):
    if not KUBECTL.exists():
        pytest.skip("kubectl is not there: `make kubetest` brings it")

    def run(*arguments, manifest=None, fails=False):
        done = subprocess.run(
            [KUBECTL, "--kubeconfig", plane.kubeconfig, *map(str, arguments)],
            input=None if manifest is None else json.dumps(manifest),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stderr if fails else done.stdout

    return run


def placed(manifest, namespace, name="demo"):
    return copy.deepcopy(manifest) | {"metadata": {"name": name, "namespace": namespace}}


@pytest.mark.parametrize("path", control_plane.OUR_CRDS, ids=lambda path: path.stem)
def test_a_crd_is_applied_by_the_client_and_applied_again(path, kubectl, look):
    first = kubectl("apply", "-f", path)
    again = kubectl("apply", "-f", path)
    name = yaml.safe_load(path.read_text())["metadata"]["name"]
    stands = official.ApiextensionsV1Api(look).read_custom_resource_definition(name)

    assert path.stat().st_size < APPLIED_ANNOTATION_BYTES
    assert (
        len(stands.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"]) < APPLIED_ANNOTATION_BYTES
    )
    assert name in first
    assert "unchanged" in again
    conditions = {one.type: one.status for one in stands.status.conditions}
    assert conditions["Established"] == conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize("crd", crds.CRDS, ids=lambda crd: crd.kind.kind)
def test_every_field_is_explained(crd, kubectl):
    said = kubectl("explain", f"{crd.kind.plural}.{crd.kind.group}", "--recursive")
    spec = kubectl("explain", f"{crd.kind.plural}.{crd.kind.group}.spec")

    assert crd.model.model_json_schema()["description"].split(".")[0][:40] in said.replace("\n", " ").replace(
        "    ", ""
    )
    assert "<no description>" not in spec
    assert "status" in said


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("modelserver.spec.workloadSelector.pdGroup", "prefill and decode"),
        ("modelroute.spec.rules.targetModels.weight", "Share of the rule's requests"),
        ("modelinfer.spec.rolloutStrategy.rollingUpdateConfiguration.partition", "stay at their revision"),
        ("modelinfer.spec.template.roles", "The roles of a group"),
    ],
)
def test_fields_are_explained_in_depth(field, text, kubectl):
    assert text in " ".join(kubectl("explain", field).split())


def test_short_names_and_the_category_list_everything_with_columns(kubectl, namespace):
    for manifest in (a_server(), a_route(), an_infer(name="demo", replicas=2)):
        kubectl("apply", "-f", "-", manifest=placed(manifest, namespace))
    listed = {short: kubectl("get", short, "-n", namespace, "-o", "wide") for short in ("ms", "mr", "mi")}
    everything = kubectl("get", "matrixinfer", "-n", namespace, "-o", "name")

    assert set(everything.split()) == {
        "modelinfer.workload.matrixinfer.ai/demo",
        "modelroute.networking.matrixinfer.ai/demo",
        "modelserver.networking.matrixinfer.ai/demo",
    }
    for crd in crds.CRDS:
        if (short := crd.short_names[0]) in listed:
            header, row = listed[short].splitlines()
            assert header.split() == ["NAME", *(column.name.upper() for column in crd.columns)]
            assert row.startswith("demo ")
    assert "vLLM" in listed["ms"]
    assert "8000" in listed["ms"]


def test_scale_and_status_are_apart_from_the_spec(kubectl, namespace):
    kubectl("apply", "-f", "-", manifest=placed(an_infer(replicas=1), namespace))
    kubectl("scale", "mi/demo", "--replicas=3", "-n", namespace)
    status = {"status": {"replicas": 2, "labelSelector": "app=demo"}, "spec": {"replicas": 7}}
    kubectl("patch", "mi", "demo", "-n", namespace, "--subresource=status", "--type=merge", "-p", json.dumps(status))
    kubectl("patch", "mi", "demo", "-n", namespace, "--type=merge", "-p", json.dumps({"status": {"replicas": 9}}))
    scale = json.loads(kubectl("get", "mi", "demo", "-n", namespace, "--subresource=scale", "-o", "json"))
    stands = json.loads(kubectl("get", "mi", "demo", "-n", namespace, "-o", "json"))
    refused = kubectl("scale", "mi/demo", "--replicas=1000001", "-n", namespace, fails=True)

    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "app=demo"}
    assert stands["metadata"]["generation"] == 2
    assert "1000000" in refused


def test_defaults_are_written_into_the_object(kubectl, namespace):
    kubectl("apply", "-f", "-", manifest=placed(a_server(trafficPolicy={"retry": {"attempts": 1}}), namespace))
    spec = json.loads(kubectl("get", "ms", "demo", "-n", namespace, "-o", "json"))["spec"]

    assert spec["workloadPort"]["protocol"] == "http"
    assert spec["trafficPolicy"]["retry"]["retryInterval"] == "100ms"


TARGET = {"modelServerName": "x"}
MIRROR = {"modelServerName": "y"}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (a_server(workloadPort={"port": 0}), ("spec.workloadPort.port", "greater than or equal to 1")),
        (a_server(inferenceEngine="TGI"), ("spec.inferenceEngine", '"vLLM"', '"SGLang"')),
        (a_server(workloadSelector={"matchLabels": {"-a": "b"}}), ("spec.workloadSelector.matchLabels", "a label key")),
        (a_server(trafficPolicy={"timeout": "0s"}), ("spec.trafficPolicy.timeout", "must be longer than zero")),
        (a_route(rules=[]), ("spec.rules", "at least 1")),
        (a_route(modelName=""), ("modelName and loraAdapters cannot both be empty",)),
        (
            a_route(rules=[{"targetModels": [TARGET | {"externalModelProviderName": "y"}]}]),
            ("spec.rules[0].targetModels[0]", "exactly one of modelServerName or externalModelProviderName"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET | {"weight": 0}]}]),
            ("spec.rules[0].targetModels", "at least one target needs a weight above 0"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "modelMatch": {"uri": {"exact": "a", "prefix": "b"}}}]),
            ("spec.rules[0].modelMatch.uri", "set only one of exact, prefix and regex"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "modelMatch": {"headers": {"a b": {"exact": "c"}}}}]),
            ("modelMatch.headers", "every key must be a header name"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "stickyBy": {"header": "x-user", "cookie": "session"}}]),
            ("spec.rules[0].stickyBy", "set exactly one of header, cookie and caller"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "stickyBy": {"header": "x user"}}]),
            ("spec.rules[0].stickyBy.header", "should match"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "mirrors": [MIRROR, MIRROR | {"percent": 5}]}]),
            ("spec.rules[0].mirrors", "must not mirror to the same ModelServer twice"),
        ),
        (
            a_route(rules=[{"targetModels": [TARGET], "mirrors": [MIRROR | {"percent": 101}]}]),
            ("spec.rules[0].mirrors[0].percent", "less than or equal to 100"),
        ),
        (a_route(trafficPolicy={"idleTimeout": "0s"}), ("spec.trafficPolicy.idleTimeout", "must be longer than zero")),
        (
            a_route(trafficPolicy={"retry": {"attempts": 1, "retryOn": ["404"]}}),
            ("spec.trafficPolicy.retry.retryOn[0]", "should match"),
        ),
        (an_infer(a_role("a"), a_role("a")), ("two roles have the same name",)),
        (an_infer(rolloutStrategy=rolling(maxUnavailable="101%")), ("maxUnavailable",)),
        (
            an_infer(recoveryPolicy="InferGroupRecreate", rolloutStrategy={"type": "RoleRollingUpdate"}),
            ("spec.recoveryPolicy", "use RoleRecreate or None"),
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_a_refusal_says_which_field_and_what_to_write(manifest, words, kubectl, namespace):
    said = kubectl("apply", "-f", "-", manifest=placed(manifest, namespace), fails=True)

    assert [word for word in words if word not in said] == [], said


def test_a_field_that_cannot_change_says_so(kubectl, namespace):
    kubectl("apply", "-f", "-", manifest=placed(a_route(), namespace))
    said = kubectl("apply", "-f", "-", manifest=placed(a_route(modelName="next"), namespace), fails=True)

    assert "modelName is immutable: delete the object and create it anew to change it" in said


async def test_an_unknown_field_is_refused_by_name(look, namespace):
    custom = official.CustomObjectsApi(look)
    kind = kinds.MODEL_SERVER
    with pytest.raises(official.ApiException) as refused:
        await asyncio.to_thread(
            custom.create_namespaced_custom_object, kind.group, kind.version, namespace, kind.plural,
            placed(a_server(workloadPorts={}), namespace), field_validation="Strict",
        )  # fmt: skip
    assert 'unknown field \\"spec.workloadPorts\\"' in refused.value.body
