"""Defaults are the schema's alone: what a real API server stores means the same to us as what the user wrote, so no webhook fills in more."""

from __future__ import annotations

import pytest
import yaml
from kubernetes import client as official

from matrixinfer.api import kinds, validation
from matrixinfer.api.validation.objects import TYPES
from tests.kubernetes import control_plane

OURS = {kind for kind in TYPES if kind.group in (kinds.NETWORKING_GROUP, kinds.WORKLOAD_GROUP)}
FILES = sorted(
    path
    for folder in ("examples", "tests/gateway/golden", "tests/api/golden")
    for path in (control_plane.ROOT / folder).rglob("*.yaml")
)


def a_provider():
    return {
        "apiVersion": kinds.EXTERNAL_MODEL_PROVIDER.api_version,
        "kind": kinds.EXTERNAL_MODEL_PROVIDER.kind,
        "metadata": {"name": "elsewhere"},
        "spec": {
            "providerType": "OpenAI",
            "baseURL": "https://api.example/v1",
            "auth": {"secretRef": {"name": "k", "key": "k"}},
        },
    }


def manifests():
    """Give every valid manifest of our kinds that examples and tests have, each once."""
    provider = a_provider()
    found = {"a provider": (validation.kind_of(provider), provider)}
    for path in FILES:
        for document in yaml.safe_load_all(path.read_text()):
            kind = validation.kind_of(document) if isinstance(document, dict) else None
            if kind in OURS and not any(one.severity == "error" for one in validation.validate(document)):
                where = f"{path.relative_to(control_plane.ROOT)} {kind.kind} {document['metadata']['name']}"
                found[where] = (kind, document)
    return found


MANIFESTS = manifests()


def test_there_are_manifests_of_every_kind():
    assert {kind for kind, _ in MANIFESTS.values()} == OURS


@pytest.mark.parametrize("where", MANIFESTS)
def test_what_is_stored_means_what_was_written(where, look, namespace_of_defaults):
    kind, written = MANIFESTS[where]
    body = written | {"metadata": {**written["metadata"], "namespace": namespace_of_defaults}}
    body.pop("status", None)
    stored = official.CustomObjectsApi(look).create_namespaced_custom_object(
        kind.group, kind.version, namespace_of_defaults, kind.plural, body, dry_run="All"
    )
    model = TYPES[kind]

    assert model.model_validate(stored).spec == model.model_validate(body).spec


@pytest.fixture(scope="module")
def namespace_of_defaults(look):
    return official.CoreV1Api(look).create_namespace({"metadata": {"generateName": "defaults-"}}).metadata.name
