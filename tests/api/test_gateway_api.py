"""The example Gateway belongs to our class, and lets our routes in."""

from __future__ import annotations

from pathlib import Path

import yaml

from matrixinfer.api import kinds

FOLDER = Path(__file__).parents[2] / "gateway-api"


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def test_the_class_is_ours():
    assert read("gatewayclass.yaml")["spec"]["controllerName"] == "matrixinfer.ai/gateway"


def test_the_example_is_of_the_class_and_allows_model_routes():
    gateway = read("gateway.yaml")
    allowed = gateway["spec"]["listeners"][0]["allowedRoutes"]["kinds"]

    assert gateway["spec"]["gatewayClassName"] == read("gatewayclass.yaml")["metadata"]["name"]
    assert {"group": kinds.MODEL_ROUTE.group, "kind": kinds.MODEL_ROUTE.kind} in allowed
