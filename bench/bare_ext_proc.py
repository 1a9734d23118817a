"""The least that an external processor can cost: it is told the headers of each request, and lets it pass.

What Envoy takes with it over Envoy alone is what no picker in another process can save; what it takes itself is HTTP/2 and gRPC of
the picker's own transport.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from bench import processes
from extproc.adapters.transport import ext_proc
from extproc.adapters.transport.serving import serve

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from extproc.adapters.transport.calls import Call, Listener

_PASS: Final = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()


class _Passing:
    """Answers the first message of a call, and waits for its end."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def on_message(self, data: bytes) -> None:  # noqa: ARG002 - whatever it says
        self._call.send(_PASS)

    def on_end(self) -> None:
        self._call.finish()

    def on_cancel(self) -> None:
        pass

    def on_drain(self) -> None:
        pass


class _Service:
    def open(self, call: Call) -> Listener:
        return _Passing(call)


async def _serve(path: str) -> None:
    await serve(f"unix:{path}", {ext_proc.METHOD: _Service()})
    print("ready", flush=True)
    await asyncio.Event().wait()


def running(socket: Path) -> AbstractContextManager[int]:
    """Run it on a Unix socket; gives its process id."""
    return processes.serving("bench.bare_ext_proc", str(socket))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("socket")
    uvloop.run(_serve(parser.parse_args().socket))
