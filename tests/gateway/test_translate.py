"""Manifests in, IR out: each pair of files in `golden` is a case. `UPDATE_GOLDEN=1` writes what is."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import Enum
from pathlib import Path

import pytest
import yaml

from controllers import ir
from controllers.gateway.translate import translate

GOLDEN = Path(__file__).parent / "golden"
GATEWAY = ir.Gateway((ir.Listener("gateway", "127.0.0.1", 8080),), ir.Picker(ir.Address(path="/run/picker.sock")))


def of_kind(manifests, kind):
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def plain(value):
    """IR as YAML writes it; what is empty or absent is left out."""
    if isinstance(value, dict):
        items = {key: plain(item) for key, item in value.items()}
        return {key: item for key, item in items.items() if item not in (None, [], {})}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("case", sorted(path.name.removesuffix(".in.yaml") for path in GOLDEN.glob("*.in.yaml")))
def test_golden(case):
    manifests = list(yaml.safe_load_all((GOLDEN / f"{case}.in.yaml").read_text()))

    made = translate(
        GATEWAY,
        servers=of_kind(manifests, "ModelServer"),
        routes=of_kind(manifests, "ModelRoute"),
        pods=of_kind(manifests, "Pod"),
    )

    found = {
        "backends": [plain(asdict(backend)) for backend in made.config.backends],
        "models": [plain(asdict(model)) for model in made.config.models],
        "handlings": [plain(asdict(handling)) for handling in made.config.handlings],
        "invalid": [" ".join(key) for key in made.invalid],
    }
    expected = GOLDEN / f"{case}.out.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(yaml.safe_dump(found, sort_keys=False, width=120))
    assert found == yaml.safe_load(expected.read_text())
