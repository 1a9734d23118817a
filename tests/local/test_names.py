"""Names of headless Services where there is no DNS."""

import pytest

from matrixinfer.local.addresses import Addresses
from matrixinfer.local.names import Names


def a_service(name="entry", *, namespace="default", cluster_ip="None", **selector):
    spec = {"clusterIP": cluster_ip, "selector": selector or {"app": name}}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def a_pod(name="demo", *words, env=(), **labels):
    container = {"name": "c", "args": list(words), "env": list(env)}
    return {
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"containers": [container], "initContainers": [container]},
    }


@pytest.fixture
def names():
    addresses = Addresses()
    yield Names(addresses)
    addresses.close()


def said(names, *words, services=()):
    [container] = names.resolved(a_pod("demo", *words), services or [a_service()])["spec"]["containers"]
    return container["args"]


@pytest.mark.parametrize("name", ["entry.default", "entry.default.svc", "entry.default.svc.cluster.local"])
def test_a_name_is_the_address_of_the_pod_that_its_service_selects(name, names):
    address = names.take(a_pod(app="entry"), [a_service()])

    assert said(names, name, f"--master={name}:5000", f"tcp://{name}:80/x") == [
        address,
        f"--master={address}:5000",
        f"tcp://{address}:80/x",
    ]


def test_a_name_has_its_address_before_and_after_its_pod(names):
    before = said(names, "entry.default")
    first = names.take(a_pod(app="entry"), [a_service()])
    names.give_back(first)
    second = names.take(a_pod("another", app="entry"), [a_service()])

    assert before == [first] == [second]


def test_of_two_pods_that_a_service_selects_the_first_has_its_address(names):
    first = names.take(a_pod("a", app="entry"), [a_service()])
    second = names.take(a_pod("b", app="entry"), [a_service()])

    assert first != second
    assert said(names, "entry.default") == [first]


def test_an_address_goes_back_when_its_service_is_gone(names):
    [address] = said(names, "entry.default")
    taken = {names.take(a_pod(str(number)), []) for number in range(300)}

    assert address in taken


@pytest.mark.parametrize(
    "word",
    [
        "entry",  # a model may be called so
        "entry.elsewhere",
        "other.default",
        "my-entry.default",
        "entry.default.com",
        "entry.default-2",
        "x.entry.default",
        "meta-llama/Llama-3.1",
    ],
)
def test_other_words_stay_as_they_are(word, names):
    assert said(names, word) == [word]


def test_a_service_with_an_address_of_its_own_is_not_meant(names):
    assert said(names, "entry.default", services=[a_service(cluster_ip="10.0.0.1")]) == ["entry.default"]


def test_variables_of_all_containers_are_told(names):
    env = [{"name": "A", "value": "entry.default"}, {"name": "B", "valueFrom": {}}]
    pod = names.resolved(a_pod(env=env), [a_service()])
    [address] = said(names, "entry.default")

    for member in ("containers", "initContainers"):
        assert pod["spec"][member][0]["env"] == [{"name": "A", "value": address}, {"name": "B", "valueFrom": {}}]
