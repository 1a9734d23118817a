"""The baselines: Envoy alone, round robin over the same engines, as lean as the gateway's listener can be; and the same asking.

What asks is the ext_proc filter: for headers only, and nothing is done with the answer.
"""

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
EXT_PROC = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
HTTP2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def _address(host: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, addresses: list[dict[str, object]]) -> dict[str, object]:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [{"max_connections": 20000, "max_requests": 20000}]},
    }


def _asker() -> dict[str, object]:
    config = {
        "@type": EXT_PROC,
        "grpc_service": {"envoy_grpc": {"cluster_name": "asked", "skip_envoy_headers": True}},
        "processing_mode": {"request_header_mode": "SEND", "response_header_mode": "SKIP"},
        "message_timeout": "5s",  # a busy machine is slow, not broken
    }
    return {"name": "envoy.filters.http.ext_proc", "typed_config": config}


def _asked(socket: Path) -> dict[str, object]:
    speaks = {"@type": HTTP2, "explicit_http_config": {"http2_protocol_options": {}}}
    return _cluster("asked", [{"pipe": {"path": str(socket)}}]) | {
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": speaks}
    }


def bootstrap(port: int, engines: list[tuple[str, int]], asked: Path | None = None) -> dict[str, object]:
    """Bootstrap of a plain proxy on 127.0.0.1:`port`, which asks on the socket `asked` before each request."""
    router = {"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}
    manager = {
        "@type": HTTP,
        "stat_prefix": "plain",
        "http_filters": [_asker(), router] if asked else [router],
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
                _cluster("engines", [_address(host, port_) for host, port_ in engines]),
                *([_asked(asked)] if asked else []),
            ],
        }
    }


@contextmanager
def running(port: int, engines: list[tuple[str, int]], folder: Path, *, asked: Path | None = None) -> Iterator[int]:
    """Run it with one worker; gives its process id."""
    config = folder / f"plain-envoy-{port}.json"
    config.write_text(json.dumps(bootstrap(port, engines, asked)))
    beside = Path(sys.executable).parent / "envoy"
    binary = str(beside) if beside.exists() else shutil.which("envoy")
    if binary is None:
        raise SystemExit("no envoy beside this Python or on PATH: make run installs it")
    command = [binary, "-c", str(config), "--concurrency", "1", "-l", "error", "--use-dynamic-base-id"]
    with (folder / f"plain-envoy-{port}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(10)
