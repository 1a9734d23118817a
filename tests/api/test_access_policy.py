"""AccessPolicy: what its types refuse, with words that say what to write."""

import pytest

from matrixinfer.api import validation

KEYS = {"secretRefs": [{"name": "keys"}]}


def a_policy(**spec):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": {"name": "p"},
        "spec": {"targetRefs": [{"kind": "Gateway"}], **spec},
    }


def issuer(**jwks):
    return {"issuer": "https://x", "jwks": jwks}


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({}, "nobody could come in"),
        ({"apiKeys": {"secretRefs": []}}, "secretRefs"),
        ({"apiKeys": KEYS, "targetRefs": []}, "targetRefs"),
        ({"apiKeys": KEYS, "targetRefs": [{"kind": "Model"}]}, "name the ModelRoute or the Model"),
        ({"apiKeys": KEYS, "rules": [{"tenant": ["a"]}]}, "did you mean tenants"),
        ({"jwt": [issuer()]}, "exactly one of inline, file and url"),
        ({"jwt": [issuer(url="https://a/", file="/b")]}, "exactly one of inline, file and url"),
        ({"jwt": [issuer(inline="{}")]}, "is not a JSON Web Key Set"),
        ({"jwt": [issuer(url="ftp://a/")]}, "url"),
        ({"jwt": [issuer(file="keys.json")]}, "file"),
    ],
)
def test_a_policy_with_a_mistake_is_refused(spec, word):
    assert word in " ".join(map(str, validation.validate(a_policy(**spec))))


def test_a_policy_without_one_is_taken():
    assert not validation.validate(a_policy(apiKeys=KEYS, jwt=[issuer(url="http://localhost:1/keys")]))


def test_what_a_policy_names_and_is_not_here_is_said():
    policy = a_policy(apiKeys=KEYS, targetRefs=[{"kind": "ModelRoute", "name": "gone"}])

    said = [str(finding.problem) for finding in validation.validate_set([policy])]

    assert len(said) == 2
    assert "no Secret 'keys'" in said[0]
    assert "no ModelRoute 'gone'" in said[1]
