"""The picker's two gRPC transports and its codec, side by side: CPU of the serving process per exchange.

A server process with a trivial asker stands behind a grpcio client that plays Envoy (headers and body in, answer out,
then a reset), closed loop. A third row pays for the codec and the session only: what no transport can save.

    python -m bench.transport [--seconds 3] [--clients 16] [--body 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio  # type: ignore[import-untyped]  # grpcio ships no types
import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from bench.processes import cpu_s, rss_mib
from bench.table import show
from extproc.adapters.transport import ext_proc
from extproc.adapters.transport.serving import serve
from extproc.protocol import codec
from extproc.protocol.session import Session
from extproc.types import Decision, HttpRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DECISION = Decision("a1b2c3d4-1f", ("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000"), "default/demo")
HEADERS = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":authority": "127.0.0.1:8080",
    ":scheme": "http",
    "content-type": "application/json",
    "content-length": "1000",
    "user-agent": "OpenAI/Python 2.8.1",
    "authorization": "Bearer sk-0123456789abcdef0123456789abcdef",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "x-request-id": "0f7c1f9e-6a0f-4f0f-9e53-5a4f0c9b5a11",
    "x-forwarded-proto": "http",
    "x-stainless-lang": "python",
    "x-stainless-os": "Linux",
    "x-stainless-arch": "x64",
    "x-stainless-runtime": "CPython",
    "x-stainless-runtime-version": "3.11.7",
    "x-stainless-package-version": "2.8.1",
    "x-stainless-async": "false",
    "x-stainless-retry-count": "0",
}
ROUNDS = 3


class Trivial:
    """Decides at no cost."""

    def decide(self, request: HttpRequest) -> Decision:  # noqa: ARG002 - the asker's interface
        """Return the same decision for every request."""
        return DECISION


def messages(body_bytes: int) -> tuple[bytes, bytes]:
    """Return both messages of one buffered exchange, as Envoy sends them."""
    head = pb.ProcessingRequest()
    for name, value in HEADERS.items():
        head.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    head.protocol_config.request_body_mode = 2
    body = pb.ProcessingRequest(request_body=pb.HttpBody(body=b"x" * body_bytes, end_of_stream=True))
    return head.SerializeToString(), body.SerializeToString()


def codec_us(head: bytes, body: bytes, seconds: float) -> float:
    """Return µs of CPU for decoding, session and answer of one exchange."""
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        for _ in range(500):
            session = Session(1 << 24)
            session.step(codec.decode(head))
            session.step(codec.decode(body))
            session.step(DECISION)
        count += 500
    return (time.process_time() - start) / count * 1e6


async def serve_until_closed(path: str, transport: str) -> None:
    """Serve until stdin ends."""
    service = ext_proc.ExtProcService(Trivial())
    server = await serve(f"unix:{path}", {ext_proc.METHOD: service}, transport=transport)  # type: ignore[arg-type]
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1)


@contextlib.asynccontextmanager
async def a_server(transport: str) -> AsyncIterator[tuple[int, str]]:
    """Start a server process; yields its pid and address."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "s.sock")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.transport", "--serve", path, "--transport", transport),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        assert process.stdin is not None  # noqa: S101 - asked for
        assert process.stdout is not None  # noqa: S101 - asked for
        await process.stdout.readline()
        try:
            yield process.pid, f"unix:{path}"
        finally:
            process.stdin.close()
            await process.wait()


async def load(address: str, head: bytes, body: bytes, *, clients: int, seconds: float) -> int:
    """Keep `clients` exchanges under way; returns how many were answered."""
    done = 0
    async with grpc.aio.insecure_channel(address) as channel:
        process = channel.stream_stream(ext_proc.METHOD)
        until = time.perf_counter() + seconds

        async def client() -> None:
            nonlocal done
            while time.perf_counter() < until:
                call = process()
                await call.write(head)
                await call.read()
                await call.write(body)
                await call.read()
                call.cancel()
                done += 1

        await asyncio.gather(*(client() for _ in range(clients)))
    return done


async def measure(
    transport: str, head: bytes, body: bytes, *, clients: int, seconds: float
) -> tuple[float, float, float]:
    """Return µs of CPU per exchange, exchanges a second and MiB of one server."""
    async with a_server(transport) as (pid, address):
        await load(address, head, body, clients=clients, seconds=0.5)
        before, start = cpu_s(pid), time.perf_counter()
        done = await load(address, head, body, clients=clients, seconds=seconds)
        return (cpu_s(pid) - before) / done * 1e6, done / (time.perf_counter() - start), rss_mib(pid)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.transport", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--body", type=int, default=1000)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--transport", default="ngh2", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve_until_closed(options.serve, options.transport))
        return
    head, body = messages(options.body)
    rows: dict[str, list[tuple[float, float, float]]] = {"ngh2": [], "grpc": []}
    for _ in range(ROUNDS):  # alternating, so that the machine's moods meet both
        for transport, found in rows.items():
            found.append(uvloop.run(measure(transport, head, body, clients=options.clients, seconds=options.seconds)))
    lines = []
    for transport, found in rows.items():
        cpu, rate, memory = (sorted(column)[ROUNDS // 2] for column in zip(*found, strict=True))
        lines.append((transport, f"{cpu:.0f}", f"{rate:.0f}", f"{memory:.0f}"))
    lines.append(("codec and session only", f"{codec_us(head, body, 1.0):.1f}", "", ""))
    show(
        f"Buffered exchange, body {options.body} bytes, {options.clients} clients, median of {ROUNDS} rounds",
        ("", "CPU µs/exchange", "exchanges/s", "MiB"),
        lines,
    )


if __name__ == "__main__":
    main()
