"""Pods and Services as others write them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from matrixinfer.api import core
from matrixinfer.api.kinds import KINDS


def a_pod(**parts):
    return core.Pod.model_validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}} | parts)


def test_a_pod_is_ready_by_its_condition_alone():
    ready = {"type": "Ready", "status": "True"}

    assert a_pod(status={"conditions": [{"type": "Initialized", "status": "True"}, ready]}).ready
    assert not a_pod(status={"conditions": [ready | {"status": "False"}]}).ready
    assert not a_pod(status={"phase": "Running"}).ready
    assert not a_pod().ready


def test_a_pod_with_a_deletion_date_is_terminating():
    assert a_pod(metadata={"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}).terminating
    assert not a_pod().terminating


def test_fields_that_nobody_here_reads_are_passed_over():
    pod = a_pod(
        metadata={"name": "p", "creationTimestamp": None, "managedFields": [{"manager": "kubectl"}]},
        spec={"tolerations": [{}], "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]},
        status={"qosClass": "Burstable", "podIP": "10.0.0.1", "containerStatuses": [{"name": "c", "state": {}}]},
    )

    assert pod.status.pod_ip == "10.0.0.1"
    assert pod.spec.containers[0].name == "c"


def test_a_container_has_the_defaults_of_kubernetes():
    probe = a_pod(
        spec={"containers": [{"name": "c", "readinessProbe": {"httpGet": {"port": "http"}}}]}
    ).spec.containers[0]
    readiness = probe.readiness_probe

    assert (readiness.initial_delay_seconds, readiness.period_seconds, readiness.timeout_seconds) == (0, 10, 1)
    assert (readiness.success_threshold, readiness.failure_threshold) == (1, 3)
    assert (readiness.http_get.path, readiness.http_get.scheme) == ("/", "HTTP")


def test_a_pod_has_the_defaults_of_kubernetes():
    spec = a_pod(spec={"containers": [{"name": "c"}]}).spec

    assert (spec.restart_policy, spec.termination_grace_period_seconds) == ("Always", 30)


def test_a_port_is_named_or_numbered():
    container = core.Container.model_validate({"name": "c", "ports": [{"name": "http", "containerPort": 8000}]})

    assert container.port(9000) == 9000
    assert container.port("http") == 8000
    assert container.port("grpc") is None


def test_a_number_that_names_no_port_is_refused():
    with pytest.raises(ValidationError):
        core.HttpGet.model_validate({"port": True})


def test_a_headless_service_says_so():
    service = core.Service.model_validate(
        {"spec": {"clusterIP": "None", "ports": [{"port": 80, "targetPort": "http"}]}}
    )

    assert service.spec.cluster_ip == "None"
    assert service.spec.ports[0].target_port == "http"


def test_every_kind_is_known_by_its_version_and_name():
    assert {f"{version} {name}" for version, name in KINDS} >= {
        "v1 Pod",
        "v1 Service",
        "events.k8s.io/v1 Event",
        "coordination.k8s.io/v1 Lease",
        "networking.matrixinfer.ai/v1alpha1 ModelServer",
        "networking.matrixinfer.ai/v1alpha1 ModelRoute",
    }
    assert all(key == (kind.api_version, kind.kind) for key, kind in KINDS.items())
