"""What the control plane makes of providers: Envoy's resources, and conditions."""

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from google.protobuf import any_pb2

from controllers import ir
from controllers.gateway import status
from controllers.gateway.translate import translate
from controllers.xds.snapshot import CDS, RDS, SDS, Builder
from tests.xds.issuer import Authority

GATEWAY = ir.Gateway((ir.Listener("gateway", "127.0.0.1", 8080),), ir.Picker(ir.Address(path="/run/picker.sock")))
NAME = ("default", "outside")


def a_provider(**spec):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ExternalModelProvider",
        "metadata": {"name": "outside", "namespace": "default", "generation": 1},
        "spec": {"baseURL": "https://api.example.com/v1", **spec},
    }


def a_secret(**entries):
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys", "namespace": "default"},
        "stringData": entries,
    }


def a_route(*targets):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "demo", "namespace": "default", "generation": 1},
        "spec": {"modelName": "demo", "rules": [{"targetModels": list(targets)}]},
    }


def made(*providers, routes=(), secrets=(), gateway=GATEWAY):
    return translate(gateway, servers=(), routes=routes, pods=(), providers=providers, secrets=secrets)


def auth(key="openai", **more):
    return {"auth": {"secretRef": {"name": "keys", "key": key}, **more}}


def resources(translation, type_url, kind):
    snapshot = Builder().build(translation.config)
    found = {}
    for name, resource in snapshot.resources[type_url].items():
        packed = any_pb2.Any.FromString(resource.encoded)
        found[name] = kind.FromString(packed.value)
    return found


def conditions(translation):
    _, findings = status.of_provider(NAME, translation, ir.Delivery())
    return {one.type: (one.holds, one.reason, one.message) for one in findings}


@pytest.mark.parametrize(
    ("spec", "header", "prefix"),
    [
        (auth(), "authorization", "Bearer "),
        ({"providerType": "Anthropic", **auth()}, "x-api-key", ""),
        ({"providerType": "Anthropic", **auth(scheme="Bearer")}, "authorization", "Bearer "),
        (auth(scheme="APIKey"), "x-api-key", ""),
    ],
)
def test_the_scheme_follows_from_the_type_unless_it_is_said(spec, header, prefix):
    [provider] = made(a_provider(**spec), secrets=[a_secret(openai="sk-1")]).config.providers

    assert provider.credential == ir.Credential(header, "sk-1", prefix)


def test_a_credential_is_a_secret_of_its_own_and_stands_nowhere_else():
    translation = made(a_provider(**auth()), secrets=[a_secret(openai="sk-hidden")])

    secrets = resources(translation, SDS, secret_pb2.Secret)
    snapshot = Builder().build(translation.config)

    assert secrets["provider/default/outside"].generic_secret.secret.inline_string == "sk-hidden"
    others = [one for type_url, named in snapshot.resources.items() if type_url != SDS for one in named.values()]
    assert not any(b"sk-hidden" in one.encoded for one in others)
    assert "sk-hidden" not in repr(translation.config)


def test_a_rotated_credential_changes_its_secret_only():
    builder = Builder()
    before = builder.build(made(a_provider(**auth()), secrets=[a_secret(openai="one")]).config).resources
    after = builder.build(made(a_provider(**auth()), secrets=[a_secret(openai="two")]).config).resources

    assert {type_url for type_url in before if before[type_url] != after[type_url]} == {SDS}


def test_a_provider_has_a_cluster_and_a_route():
    translation = made(a_provider(), routes=[a_route({"externalModelProviderName": "outside"})])

    clusters = resources(translation, CDS, cluster_pb2.Cluster)
    table = resources(translation, RDS, route_pb2.RouteConfiguration)["gateway"]

    address = clusters["provider/default/outside"].load_assignment.endpoints[0].lb_endpoints[0].endpoint.address
    assert (address.socket_address.address, address.socket_address.port_value) == ("api.example.com", 443)
    assert "translator" in clusters
    assert "provider/default/outside" in table.virtual_hosts[0].matcher.matcher_tree.exact_match_map.map
    assert "matrixinfer.answers" in table.typed_per_filter_config


def test_without_providers_there_is_nothing_of_them():
    translation = made(routes=[a_route({"modelServerName": "engines"})])

    assert set(resources(translation, CDS, cluster_pb2.Cluster)) == {"picker"}
    table = resources(translation, RDS, route_pb2.RouteConfiguration)["gateway"]
    assert "matrixinfer.answers" not in table.typed_per_filter_config


def test_a_picker_that_does_not_speak_with_providers_has_none():
    gateway = ir.Gateway(GATEWAY.listeners, ir.Picker(ir.Address(host="127.0.0.1", port=9002)))

    assert set(resources(made(a_provider(), gateway=gateway), CDS, cluster_pb2.Cluster)) == {"picker"}


@pytest.mark.parametrize(
    ("spec", "secrets", "word"),
    [
        (auth(), [], "no Secret 'keys' in namespace default"),
        (auth(), [a_secret(other="x")], "Secret 'keys' has no entry 'openai'"),
        (auth(), [a_secret(openai="  ")], "is empty"),
        (auth(), [a_secret(openai="sk\nsecond")], "must be one line"),
        ({"caSecretRef": {"name": "keys", "key": "ca"}}, [a_secret(ca="no pem")], "holds no certificate"),
    ],
)
def test_what_is_missing_is_said_and_never_what_is_there(spec, secrets, word):
    translation = made(a_provider(**spec), secrets=secrets)

    found = conditions(translation)

    assert not translation.config.providers
    assert found["ResolvedRefs"][:2] == (False, "SecretNotUsable")
    assert word in found["ResolvedRefs"][2]
    assert "second" not in found["ResolvedRefs"][2]
    assert found["Ready"][0] is False


def test_a_provider_that_can_be_used_is_ready():
    ca = Authority().pem.decode()
    found = conditions(made(a_provider(caSecretRef={"name": "keys", "key": "ca"}), secrets=[a_secret(ca=ca)]))

    assert {type_: holds for type_, (holds, _, _) in found.items()} == {
        "Accepted": True,
        "ResolvedRefs": True,
        "Programmed": None,
        "Ready": True,
    }


def test_a_provider_with_a_mistake_is_left_out_and_others_are_served():
    translation = made(
        a_provider(baseURL="ftp://x"), {**a_provider(), "metadata": {"name": "b", "namespace": "default"}}
    )

    assert [one.name for one in translation.config.providers] == ["b"]
    assert conditions(translation)["Accepted"][:2] == (False, "Invalid")


def test_a_route_is_ready_by_its_provider():
    ready = made(a_provider(), routes=[a_route({"externalModelProviderName": "outside"})])
    missing = made(routes=[a_route({"externalModelProviderName": "outside"})])

    findings = [status.of_route(("default", "demo"), one, ir.Delivery())[1] for one in (ready, missing)]
    first, second = ({one.type: (one.holds, one.reason) for one in found} for found in findings)

    assert (first["ResolvedRefs"][0], first["Ready"][0]) == (True, True)
    assert second["ResolvedRefs"] == (False, "BackendNotFound")
    assert second["Ready"][0] is False


def test_without_the_picker_a_model_of_a_provider_is_unavailable_rather_than_unknown():
    [model] = made(a_provider(), routes=[a_route({"externalModelProviderName": "outside"})]).config.models

    assert (model.rules, model.outside) == ((), True)
