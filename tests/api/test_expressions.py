"""Expressions are RE2's; what it lacks is refused in words, and Envoy accepts what we accept."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrixinfer.api.expressions import MAX_PROGRAM, ExpressionError, compile_expression, occurs

ENVOY = Path(sys.executable).parent / "envoy"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
ACCEPTED = ["", "^/v1/(chat|completions)$", "(?i)premium", "(?P<name>a)|(?:b)", "[]a-]", "x{300}", r"\A\bchat\B\z"]


@pytest.mark.parametrize(
    ("text", "value", "found"),
    [
        ("", "", True),
        ("b", "abc", True),
        ("^b", "abc", False),
        ("c$", "abc\n", False),
        ("a.c", "a\nc", False),
        ("(?i)premium", "PreMium", True),
        (r"^\d{2,3}$", "1234", False),
        ("^(a+)+$", "a" * 5000 + "b", False),
    ],
)
def test_an_expression_occurs(text, value, found):
    assert occurs(text, value) is found


@pytest.mark.parametrize("text", ["a(?=b)", "(?<!a)b", r"(a)\1", "(?>a)", "a**", "*a", "(a", "[z-a]", "a{1001}", "\\"])
def test_what_re2_does_not_have_is_refused(text):
    with pytest.raises(ExpressionError, match=r"\w"):
        compile_expression(text)


def test_a_program_that_envoy_would_refuse_is_refused():
    with pytest.raises(ExpressionError, match=f"over {MAX_PROGRAM}"):
        compile_expression("a{1000}b{1000}")


@given(st.text(st.sampled_from("ab()[]{}|*+?^$\\.:-,12Qi<>=!dwpPE\udcff"), max_size=12), st.text(max_size=6))
@settings(max_examples=300)
def test_any_text_is_an_expression_or_refused(text, value):
    with contextlib.suppress(ExpressionError):
        assert occurs(text, value) in {True, False}


@pytest.mark.envoy
def test_envoy_accepts_what_we_accept(tmp_path):
    routes = [
        {"match": {"safe_regex": {"regex": f"(?s).*(?:{text}).*"}}, "direct_response": {"status": 200}}
        for text in ACCEPTED
        if compile_expression(text)
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
    runtime = {"re2.max_program_size.error_level": MAX_PROGRAM + 100}
    config = {
        "static_resources": {"listeners": [listener]},
        "layered_runtime": {"layers": [{"name": "static", "static_layer": runtime}]},
    }
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(config), encoding="utf-8")

    result = subprocess.run(
        [ENVOY, "--mode", "validate", "-l", "error", "-c", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode == 0, result.stderr
