"""What we accept as an expression, Envoy accepts, too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from matrixinfer.api.re2 import compile_pattern

ENVOY = Path(sys.executable).parent / "envoy"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
ACCEPTED = [
    "",
    "^/v1/(chat|completions)$",
    "(?i)premium",
    "a(?i)b(?-i)c",
    "(?P<name>a)|(?<other>b)",
    "[[:^digit:]x]",
    "[]a-]",
    "a{,2}",
    "(x{31}){32}",
    "x{1000}",
    r"\pL{100}",
    r"[^\p{Lu}\d]",
    r"\x{ff}\x41\101",
    r"\Qa.b\E+",
    r"\A\bchat\B\z",
]


def a_configuration(patterns):
    routes = [
        {"match": {"safe_regex": {"regex": f"(?s).*(?:{pattern}).*"}}, "direct_response": {"status": 200}}
        for pattern in patterns
    ]
    manager = {
        "@type": HCM,
        "stat_prefix": "test",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    listener = {
        "name": "test",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    runtime = {"re2.max_program_size.error_level": 1_000_000}
    return {
        "static_resources": {"listeners": [listener]},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
    }


def validated(folder, patterns):
    path = folder / "envoy.json"
    path.write_text(json.dumps(a_configuration(patterns)), encoding="utf-8")
    return subprocess.run(
        [ENVOY, "--mode", "validate", "-l", "error", "-c", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.envoy
def test_envoy_accepts_what_we_accept(tmp_path):
    for pattern in ACCEPTED:
        compile_pattern(pattern)

    result = validated(tmp_path, ACCEPTED)

    assert result.returncode == 0, result.stderr


@pytest.mark.envoy
def test_envoy_refuses_what_we_refuse(tmp_path):
    result = validated(tmp_path, ["a(?=b)"])

    assert result.returncode != 0
    assert "invalid perl operator" in result.stdout + result.stderr
