"""ExternalModelProvider: what its types refuse, with words that say what to write."""

import pytest

from matrixinfer.api import networking, validation

AUTH = {"secretRef": {"name": "keys", "key": "openai"}}


def a_provider(**spec):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ExternalModelProvider",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"baseURL": "https://api.example.com/v1", **spec},
    }


def a_route(*targets):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": "r"},
        "spec": {"modelName": "m", "rules": [{"targetModels": list(targets)}]},
    }


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"baseURL": "ftp://a/"}, "baseURL"),
        ({"baseURL": "https://user:word@a/"}, "baseURL"),
        ({"baseURL": "https://a/?key=1"}, "baseURL"),
        ({"baseURL": "https://a:99999"}, "names no host and port"),
        ({"baseURL": "https://"}, "baseURL"),
        ({"baseURL": "http://a", "auth": AUTH}, "a credential is sent over https only"),
        ({"providerType": "Gemini"}, "providerType"),
        ({"auth": {}}, "secretRef"),
        ({"auth": {"secretRef": {"name": "keys"}}}, "key"),
        ({"headers": {"Authorization": "Bearer x"}}, "a credential goes into `auth`"),
        ({"headers": {"x-matrixinfer-target": "a/b"}}, "is the gateway's to set"),
        ({"headers": {"a b": "c"}}, "is not a header name"),
        ({"headers": {"x-org": "a\nb"}}, "printable ASCII"),
        ({"defaultMaxTokens": 0}, "defaultMaxTokens"),
        ({"insecureSkipVerify": True, "caSecretRef": {"name": "a", "key": "b"}}, "contradict each other"),
        ({"baseUrl": "https://a"}, "did you mean baseURL"),
    ],
)
def test_a_provider_with_a_mistake_is_refused(spec, word):
    assert word in " ".join(map(str, validation.validate(a_provider(**spec))))


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"auth": AUTH, "providerType": "Anthropic", "headers": {"anthropic-version": "2023-06-01"}},
        {"baseURL": "http://127.0.0.1:8001"},
        {"baseURL": "https://[::1]:8443/openai/v1/"},
    ],
)
def test_a_provider_without_one_is_taken(spec):
    assert not validation.validate(a_provider(**spec))


def test_the_port_follows_from_the_protocol():
    spec = networking.ExternalModelProvider.model_validate(a_provider()).spec

    assert spec.address == ("api.example.com", 443)


def test_what_a_provider_names_and_is_not_here_is_said():
    said = [str(finding.problem) for finding in validation.validate_set([a_provider(auth=AUTH)])]

    assert len(said) == 1
    assert "no Secret 'keys'" in said[0]


def test_a_route_to_a_provider_that_is_not_here_is_an_error():
    target = {"externalModelProviderName": "p"}

    assert not validation.validate_set([a_provider(), a_route(target)])
    assert "no ExternalModelProvider 'p'" in str(validation.validate_set([a_route(target)])[0])


def test_a_rule_has_a_target_that_overflows():
    target = {"externalModelProviderName": "p", "overflow": True}

    assert "overflow of what?" in " ".join(map(str, validation.validate(a_route(target))))
