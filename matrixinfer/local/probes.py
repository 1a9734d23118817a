"""Probes: asking a container whether it has started, lives and is ready.

`Verdict` counts answers against the thresholds (pure); `ask` performs one attempt.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.local.processes import Command, Process, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matrixinfer.api import core

HTTP_OK = range(200, 400)
MAX_STATUS_LINE = 8192


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the answers so far mean. A threshold's number of equal answers in a row settles it."""

    passing: bool
    last: bool | None = None
    run: int = 0  # answers in a row that equal `last`
    settled: bool = False  # the run has reached its threshold

    def after(self, probe: core.Probe, *, success: bool) -> Verdict:
        """Return the verdict after one more answer."""
        run = self.run + 1 if success == self.last else 1
        settled = run >= (probe.success_threshold if success else probe.failure_threshold)
        return Verdict(success if settled else self.passing, success, run, settled)


def describe(probe: core.Probe, container: core.Container, address: str) -> str:
    """Say what the probe does, for messages."""
    if get := probe.http_get:
        return f"GET {get.scheme.lower()}://{get.host or address}:{container.port(get.port)}{get.path}"
    if tcp := probe.tcp_socket:
        return f"connect to {tcp.host or address}:{container.port(tcp.port)}"
    return f"exec {' '.join(probe.exec.command)}" if probe.exec else "no probe"


async def ask(probe: core.Probe, container: core.Container, *, address: str, env: Mapping[str, str]) -> str:
    """Ask once; returns "" for success, else what went wrong."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            return await _attempt(probe, container, address, env)
    except TimeoutError:
        return f"no answer within {probe.timeout_seconds} s"
    except ConnectionRefusedError:
        return "connection refused"
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


async def _attempt(probe: core.Probe, container: core.Container, address: str, env: Mapping[str, str]) -> str:
    if get := probe.http_get:
        return await _http_get(get, get.host or address, _port(container, get.port))
    if tcp := probe.tcp_socket:
        _, writer = await asyncio.open_connection(tcp.host or address, _port(container, tcp.port))
        writer.close()
        return ""
    if probe.exec:
        return await _exec(probe.exec.command, env)
    return "the probe has none of httpGet, tcpSocket and exec"


def _port(container: core.Container, reference: int | str) -> int:
    port = container.port(reference)
    if port is None:
        names = ", ".join(port.name for port in container.ports if port.name) or "none"
        raise ValueError(f"port {reference!r} is not a name under the container's ports ({names})")
    return port


async def _http_get(get: core.HttpGet, host: str, port: int) -> str:
    context = None
    if get.scheme == "HTTPS":  # as the kubelet: the certificate is not verified
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(host, port, ssl=context, limit=MAX_STATUS_LINE)
    try:
        headers = {"Host": f"{host}:{port}", "User-Agent": "matrixinfer-probe", "Connection": "close"}
        headers |= {header.name: header.value for header in get.http_headers}
        path = get.path if get.path.startswith("/") else f"/{get.path}"
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        writer.write("\r\n".join(lines).encode())
        status = (await reader.readline()).split()
        if len(status) < 2 or not status[0].startswith(b"HTTP/") or not status[1].isdigit():  # noqa: PLR2004 - two words
            return "the answer is not HTTP" if status else "the connection was closed without an answer"
        return "" if int(status[1]) in HTTP_OK else f"status {int(status[1])}"
    finally:
        writer.close()


async def _exec(command: tuple[str, ...], env: Mapping[str, str]) -> str:
    try:
        process = await Process.start(Command(command, env, Path(os.devnull)))
    except StartError as error:
        return str(error)
    try:
        code = await process.wait()
    finally:
        process.kill()
    return f"exit code {code}" if code else ""
