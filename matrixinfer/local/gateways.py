"""The gateways of a stack: pairs of Envoy and picker. Each has ports and sockets of its own; the cluster is one for all.

The first has the ports that were asked for, each further one those that follow. What concerns one pair is written here;
starting it and keeping it running is the stack's.
"""

from __future__ import annotations

import os
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controllers import ir
from matrixinfer.local import envoy, ports
from matrixinfer.local.processes import Command

if TYPE_CHECKING:
    from contextlib import ExitStack

    from matrixinfer.local.stack import Config

# Where distributions of Linux keep it: Debian and Alpine, Red Hat, SUSE.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
ENVOY_LOG_LEVELS = {"debug": "debug", "info": "warning", "warning": "warning", "error": "error"}


@dataclass(frozen=True, slots=True)
class Gateway:
    """Where one pair is reached."""

    number: int  # from 1
    host: str  # by which this machine reaches what listens on `bind`
    port: int
    tls_port: int  # 0: no TLS
    admin_port: int
    metrics_port: int
    sockets: envoy.Sockets

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://{'127.0.0.1' if self.tls_port else self.host}:{self.port}"

    @property
    def admin_url(self) -> str:
        """Where the picker's admin pages are."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def metrics_url(self) -> str:
        """Where the picker's metrics are."""
        return f"http://{self.host}:{self.metrics_port}/metrics"

    def named(self, part: str) -> str:
        """Name a part of it among all processes and logs of the stack: `picker`, `picker-2`."""
        return part if self.number == 1 else f"{part}-{self.number}"


def claim(config: Config, number: int, folder: Path, held: ExitStack) -> Gateway:
    """Find the ports of gateway `number`, and make its folder; those of clients are kept by `held`. Raises PortInUse."""
    further = number - 1
    plain = "127.0.0.1" if config.tls is not None else config.bind  # with TLS, not from other machines

    def wanted(port: int) -> int:
        return port + further if port else 0

    clear = ports.hold(wanted(config.port), option="--port", host=plain)
    held.callback(clear.close)
    tls_port = 0
    if config.tls is not None:
        secure = ports.hold(wanted(config.tls_port), option="--tls-port", host=config.bind)
        held.callback(secure.close)
        tls_port = secure.getsockname()[1]
    own = folder if number == 1 else folder / str(number)
    own.mkdir(exist_ok=True)
    return Gateway(
        number,
        _host(config.bind),
        clear.getsockname()[1],
        tls_port,
        ports.choose(wanted(config.admin_port), option="--admin-port"),
        ports.choose(wanted(config.metrics_port), option="--metrics-port", host=config.bind),
        envoy.Sockets(own),
    )


def settings(config: Config, one: Gateway, tls: ir.Tls | None) -> ir.Gateway:
    """Write what its Envoy is told beside models and endpoints."""
    plain = ir.Listener("gateway", "127.0.0.1" if tls is not None else config.bind, one.port)
    secure = (ir.Listener("gateway-tls", config.bind, one.tls_port, tls),) if tls is not None else ()
    return ir.Gateway(
        listeners=(plain, *secure),
        picker=ir.Picker(ir.Address(path=str(one.sockets.picker)), fail_open=config.fail_open),
        limits=ir.Limits(body_bytes=config.max_body_bytes),
        module=envoy.has_module(),
        authorities=_authorities(),
    )


def _authorities() -> str:
    """Find the file of those whom this machine trusts to sign certificates."""
    usual = ssl.get_default_verify_paths()
    for path in (usual.cafile or "", *_BUNDLES):
        if path and Path(path).is_file():
            return path
    return _BUNDLES[0]


def picker(config: Config, one: Gateway, *, feed: Path, counter: Path | None, logs: Path) -> Command:
    """Write the command line of its picker; `counter` says how Redis is entered."""
    argv = [
        *(sys.executable, "-m", "extproc"),
        *("--socket", str(one.sockets.picker)),
        *("--cluster-socket", str(feed)),
        *("--envoy-admin", str(one.sockets.admin)),
        *("--metrics-host", config.bind),
        *("--admin-port", str(one.admin_port)),
        *("--metrics-port", str(one.metrics_port)),
        *("--max-body-bytes", str(config.max_body_bytes)),
        *("--log-level", config.log_level),
    ]
    if config.scheduling is not None:
        argv += ["--config", str(config.scheduling.absolute())]
    if config.decision_log is not None:
        log = config.decision_log.absolute()
        argv += ["--decision-log", str(log.with_name(one.named(log.stem) + log.suffix))]
    if counter is not None:
        argv += ["--redis", str(counter)]
    return Command(argv, dict(os.environ), logs / f"{one.named('picker')}.log")


def proxy(binary: str, config: Config, one: Gateway, *, logs: Path) -> Command:
    """Write the command line of its Envoy."""
    return envoy.command(
        binary,
        sockets=one.sockets,
        log=logs / f"{one.named('envoy')}.log",
        log_level=ENVOY_LOG_LEVELS[config.log_level],
        workers=config.envoy_workers,
    )


def _host(bind: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)
    return f"[{host}]" if ":" in host else host
