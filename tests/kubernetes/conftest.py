"""Fixtures of the tests against a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client as official
from kubernetes import config as official_config

from matrixinfer.cluster import credentials
from matrixinfer.cluster.apiserver import ApiServer
from tests.cluster.conformance import WIDGET_CRD
from tests.kubernetes import control_plane, stage

FOLDER = Path(__file__).parent
numbers = itertools.count()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker(pytest.mark.kubernetes)


def leave_out(reason: str) -> None:
    """Skip, for want of an API server; CI has one, or is wrong."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI runs the Kubernetes tests: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def crd_files(tmp_path_factory):
    widget = tmp_path_factory.mktemp("crds") / "widget.yaml"
    widget.write_text(yaml.safe_dump(WIDGET_CRD))
    return [widget, *control_plane.OUR_CRDS]


@pytest.fixture(scope="session")
def plane(crd_files):
    """An API server for all tests: nobody stops it, and everybody has a namespace of their own."""
    try:
        with control_plane.any_control_plane(crd_files) as plane:
            look = official_client(plane)
            _install(look, crd_files)
            yield plane
    except control_plane.Missing as missing:
        leave_out(str(missing))


@contextlib.contextmanager
def own_control_plane(*options, crds=()):
    """Run an API server that a test may stop; skips where there is none."""
    try:
        with control_plane.kubetest(*options, crds=crds) as plane:
            yield plane
    except control_plane.Missing as missing:
        leave_out(str(missing))


@pytest.fixture
def own_plane():
    with own_control_plane() as plane:
        yield plane


def official_client(plane) -> official.ApiClient:
    return official_config.new_client_from_config(str(plane.kubeconfig))


def _install(look: official.ApiClient, files) -> None:
    definitions = official.ApiextensionsV1Api(look)
    for path in files:
        for document in yaml.safe_load_all(path.read_text()):
            try:
                definitions.create_custom_resource_definition(document)
            except official.ApiException as error:
                if error.status != 409:
                    raise


@pytest.fixture(scope="session")
def look(plane) -> official.ApiClient:
    """The official client: what our own wrote is looked at through another's eyes."""
    return official_client(plane)


@pytest.fixture
def core(look) -> official.CoreV1Api:
    return official.CoreV1Api(look)


@pytest.fixture
async def namespaces(core):
    """Makes namespaces in which pods can be created."""

    async def make() -> str:
        created = await asyncio.to_thread(core.create_namespace, {"metadata": {"generateName": f"t{next(numbers)}-"}})
        name: str = created.metadata.name
        with contextlib.suppress(official.ApiException):  # the controller-manager was faster
            await asyncio.to_thread(core.create_namespaced_service_account, name, {"metadata": {"name": "default"}})
        return name

    return make


@pytest.fixture
async def namespace(namespaces) -> str:
    return await namespaces()


@pytest.fixture
async def other_namespace(namespaces) -> str:
    return await namespaces()


def access(plane, *, context: str = "", **changes: Any) -> credentials.Access:
    return replace(credentials.kubeconfig(str(plane.kubeconfig), context=context), **changes)


@pytest.fixture
async def cluster(plane):
    async with ApiServer(access(plane)) as server:
        yield server


@pytest.fixture(scope="session")
def staged():
    """A control plane whose pods all are for the hollow node of the test that runs."""
    with own_control_plane(crds=control_plane.OUR_CRDS) as plane:
        yield plane


@pytest.fixture
async def node(staged):
    async with stage.noded(staged):
        yield


@pytest.fixture
async def controller(staged, node):
    async with stage.controlling(staged) as loop:
        yield loop


@pytest.fixture
def customer(staged, request):
    """Somebody with a ModelInfer that is named after the test; it goes with the test."""
    name = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[-20:].strip("-")
    name = f"{name}-{next(numbers)}"  # what was of this name before may still be going
    user = stage.User(official_client(staged), name)
    yield user
    with contextlib.suppress(official.ApiException):
        user.custom.delete_namespaced_custom_object(*stage.KIND, name)
