import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.api import core
from matrixinfer.local import environment
from matrixinfer.local.environment import BadEnvironment, expand


def a_pod(*env, **metadata):
    return core.Pod.model_validate(
        {
            "metadata": {"name": "demo-0", "namespace": "team", "uid": "u1", **metadata},
            "spec": {"containers": [{"name": "engine", "env": list(env)}]},
        }
    )


def built(pod, *, initial=None, sources=None):
    return environment.build(
        pod, pod.spec.containers[0], address="127.10.0.1", initial=initial or {}, sources=sources or {}
    )


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("--host=$(POD_IP)", "--host=127.10.0.1"),
        ("$(POD_IP):$(PORT)", "127.10.0.1:8000"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(POD_IP)", "$(POD_IP)"),
        ("$$$(POD_IP)", "$127.10.0.1"),
        ("$POD_IP ${POD_IP}", "$POD_IP ${POD_IP}"),
        ("cost: 5$", "cost: 5$"),
        ("$(unclosed", "$(unclosed"),
    ],
)
def test_references_expand_as_kubernetes_does(text, expanded):
    assert expand(text, {"POD_IP": "127.10.0.1", "PORT": "8000"}) == expanded


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_a_doubled_text_expands_to_itself(text, variables):
    assert expand(text.replace("$", "$$"), variables) == text


def test_an_entry_sees_the_entries_before_it_and_not_those_after():
    pod = a_pod({"name": "A", "value": "$(B)-$(POD_IP)"}, {"name": "B", "value": "$(A)!"})

    assert built(pod)["A"] == "$(B)-127.10.0.1"
    assert built(pod)["B"] == "$(B)-127.10.0.1!"


def test_the_pod_overrides_what_is_inherited():
    assert built(a_pod({"name": "HF_HOME", "value": "/models"}), initial={"HF_HOME": "/root"})["HF_HOME"] == "/models"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "demo-0"),
        ("metadata.namespace", "team"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "demo"),
        ("metadata.labels['none']", ""),
        ("metadata.annotations['example.com/note']", "hello"),
        ("spec.nodeName", "local"),
        ("status.podIP", "127.10.0.1"),
    ],
)
def test_the_downward_api_gives_fields_of_the_pod(path, value):
    pod = a_pod(
        {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}},
        labels={"app": "demo"},
        annotations={"example.com/note": "hello"},
    )

    assert built(pod)["X"] == value


def test_a_field_that_the_downward_api_does_not_give_is_named():
    with pytest.raises(BadEnvironment, match=r"'spec\.hostname' is not one of metadata\.name"):
        built(a_pod({"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "spec.hostname"}}}))


def test_values_come_from_config_maps_and_secrets():
    pod = a_pod(
        {"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "sizes", "key": "engine"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
        {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "none", "key": "token", "optional": True}}},
    )
    secret = environment.keys({"kind": "Secret", "data": {"token": base64.b64encode(b"s3cret").decode()}})
    sizes = environment.keys({"kind": "ConfigMap", "data": {"engine": "7b"}})

    env = built(pod, sources={("ConfigMap", "sizes"): sizes, ("Secret", "hub"): secret})

    assert (env["SIZE"], env["TOKEN"], "MAYBE" in env) == ("7b", "s3cret", False)
    assert list(environment.references(pod.spec.containers[0])) == [
        ("ConfigMap", "sizes"),
        ("Secret", "hub"),
        ("Secret", "none"),
    ]


def test_a_missing_key_is_named():
    with pytest.raises(BadEnvironment, match="env TOKEN: there is no Secret hub with a key 'token'"):
        built(a_pod({"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}))
