"""AccessPolicies in, grants out: the narrowest kind decides, mistakes and contradictions let nobody in."""

from __future__ import annotations

import base64

from controllers import ir
from controllers.gateway.translate import translate
from tests.gateway.test_translate import GATEWAY

INLINE = '{"keys": [{"kty": "EC"}]}'


def a_policy(name, *refs, born="2026-01-01T00:00:00Z", **spec):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": {"name": name, "namespace": "default", "creationTimestamp": born},
        "spec": {"targetRefs": list(refs) or [{"kind": "Gateway"}], **spec},
    }


def keys_of(secret):
    return {"secretRefs": [{"name": secret}]}


def a_secret(name, **keys):
    data = {client: base64.b64encode(key.encode()).decode() for client, key in keys.items()}
    return {"kind": "Secret", "metadata": {"name": name, "namespace": "default"}, "data": data}


def a_route(name, *adapters):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "modelName": name,
            **({"loraAdapters": list(adapters)} if adapters else {}),
            "rules": [{"targetModels": [{"modelServerName": "demo"}]}],
        },
    }


def made(*policies, secrets=(), routes=()):
    return translate(GATEWAY, servers=(), routes=routes, pods=(), policies=policies, secrets=secrets)


def issuer(jwks=INLINE, **more):
    return {"issuer": "https://issuer.test", "jwks": {"inline": jwks}, **more}


def test_without_policies_nobody_is_asked():
    assert made(routes=[a_route("demo")]).config.access is None


def test_the_narrowest_kind_of_policy_decides_and_equals_add_up():
    config = made(
        a_policy("all", apiKeys=keys_of("keys")),
        a_policy("route", {"kind": "ModelRoute", "name": "gold"}, apiKeys=keys_of("keys")),
        a_policy("one", {"kind": "Model", "name": "lora"}, apiKeys=keys_of("keys"), rules=[{"tenants": ["a"]}]),
        a_policy("two", {"kind": "Model", "name": "lora"}, jwt=[issuer()]),
        secrets=[a_secret("keys", alice="sk-1")],
        routes=[a_route("gold", "lora"), a_route("demo")],
    ).config.access

    by_name = {name: [grant.policy for grant in grants] for name, grants in config.models}
    assert by_name == {"demo": ["default/all"], "gold": ["default/route"], "lora": ["default/one", "default/two"]}
    assert [grant.policy for grant in config.otherwise] == ["default/all"]


def test_a_rule_grants_the_models_that_it_names():
    config = made(a_policy("p", apiKeys=keys_of("keys"), rules=[{"tenants": ["alice"], "models": ["gold"]}]))

    access = config.config.access
    assert dict(access.models) == {"gold": (ir.Grant("default/p", keys=True, tenants=("alice",)),)}
    assert access.otherwise == ()


def test_keys_come_from_secrets_and_a_missing_secret_is_said():
    translation = made(
        a_policy("p", apiKeys={"secretRefs": [{"name": "keys"}, {"name": "gone"}]}),
        secrets=[a_secret("keys", **{"alice": "sk-1\n", "bob": "", ",default/other,|x": "sk-2"})],
    )

    assert translation.config.access.keys == (ir.ApiKey("sk-1", "alice", ("default/p",)),)
    assert "gone" in translation.access.missing["default", "p"]


def test_of_two_policies_that_contradict_the_younger_lets_nobody_in():
    for older, younger in (
        ({"jwt": [issuer()]}, {"jwt": [issuer('{"keys": [{"kty": "RSA"}]}')]}),
        ({"jwt": [issuer()]}, {"jwt": [issuer(tenantClaim="email")]}),
        ({"apiKeys": keys_of("one")}, {"apiKeys": keys_of("two")}),
    ):
        translation = made(
            a_policy("younger", {"kind": "Model", "name": "gold"}, born="2026-02-01T00:00:00Z", **younger),
            a_policy("older", born="2026-01-01T00:00:00Z", **older),
            secrets=[a_secret("one", alice="sk-1"), a_secret("two", bob="sk-1")],
        )

        assert list(translation.access.conflicts) == [("default", "younger")]
        assert dict(translation.config.access.models)["gold"] == ()
        assert [grant.policy for grant in translation.config.access.otherwise] == ["default/older"]


def test_a_policy_that_cannot_be_read_keeps_closed_what_it_was_to_protect():
    gold = a_policy("p", {"kind": "Model", "name": "gold"}, jwt="x")
    lost = a_policy("p", {"kind": "?"}, apiKeys=keys_of("keys"))

    assert dict(made(gold).config.access.models) == {"gold": ()}
    assert made(gold).config.access.otherwise is None
    assert made(lost).config.access.otherwise == ()
    assert "spec.jwt" in made(gold).invalid["AccessPolicy", "default", "p"]
