"""The baseline: Envoy alone, round robin over the same engines, as lean as the gateway's listener can be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


def bootstrap(port: int, engines: list[tuple[str, int]]) -> dict[str, object]:
    """Bootstrap of a plain proxy on 127.0.0.1:`port`."""
    manager = {
        "@type": HTTP,
        "stat_prefix": "plain",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}],
                }
            ]
        },
    }
    endpoints = [{"endpoint": {"address": _address(host, port_)}} for host, port_ in engines]
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "plain",
                    "address": _address("127.0.0.1", port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
                    "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_requests": 20000}]},
                }
            ],
        }
    }


@contextmanager
def running(port: int, engines: list[tuple[str, int]], folder: Path) -> Iterator[int]:
    """Run it with one worker; gives its process id."""
    config = folder / "plain-envoy.json"
    config.write_text(json.dumps(bootstrap(port, engines)))
    beside = Path(sys.executable).parent / "envoy"
    binary = str(beside) if beside.exists() else shutil.which("envoy")
    if binary is None:
        raise SystemExit("no envoy beside this Python or on PATH: make run installs it")
    command = [binary, "-c", str(config), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    with (folder / "plain-envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)
