"""Two versions of the picker side by side: the CPU of whole exchanges in memory, HTTP/2 and settlement included.

    python -m bench.pairs OTHER_TREE [--prompt short|long] [--batches 80]

A worker of each tree, and a second one of the other tree, take turns batch by batch, so that all see the same weather: on
a busy machine two workers of one tree differ by less than a hundredth, where two runs differ by a tenth and more.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import ngh2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.wrappers_pb2 import BytesValue

from bench import pick, table
from extproc.adapters.transport import access_log, ext_proc, framing
from extproc.adapters.transport.calls import Limits
from extproc.adapters.transport.ngh2_connection import Connection
from extproc.adapters.transport.ngh2_server import NgServer
from matrixinfer.api import dataplane

_BATCH, _TOGETHER, _RECORDS = 200, 4, 8  # exchanges of a batch, of one read, records in a message
_WORDS: Final = "words of a long document that many share " * 1000
_TEXTS: Final = {"short": _WORDS[:800], "long": _WORDS[:40_000]}


# Short bodies come along with the headers; a tree that is older than that is sent two messages.
_ALONG: Final = getattr(dataplane, "BODY_METADATA", "")


def _with(head: bytes, body: bytes) -> bytes:
    """Put the body beside the headers, as Envoy does with our module."""
    message = pb.ProcessingRequest.FromString(head)
    what = pb.ProcessingRequest.FromString(body).request_body.body
    message.metadata_context.typed_filter_metadata[_ALONG].Pack(BytesValue(value=what))
    name = f"b2018a2c8acda196-{next(_NAMES):x}"
    message.metadata_context.filter_metadata[dataplane.METADATA].update({dataplane.OFFERED: name})
    return bytes(message.SerializeToString())


_NAMES: Final = itertools.count()


class _Wire(asyncio.Transport):
    """Where a connection writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return False


class _Peer:
    """Envoy's end of a connection. `spent_s` is the CPU that the picker's end took."""

    def __init__(self, server: NgServer) -> None:
        self.spent_s = 0.0
        self._wire, self._connection = _Wire(), Connection(server)
        self._connection.connection_made(self._wire)
        self.http2: Any = ngh2.Connection(ngh2.Role.CLIENT)
        self.http2.initiate_connection({})

    def call(self, method: str) -> int:
        """Open a call."""
        head = (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "picker")
        more = ("te", "trailers"), ("content-type", "application/grpc"), ("x-forwarded-for", "192.0.2.2")
        stream: int = self.http2.send_request([(name.encode(), value.encode()) for name, value in (*head, *more)])
        return stream

    def exchange(self) -> None:
        """Hand over what is to be sent, and take the answers."""
        while data := self.http2.data_to_send():
            start = time.process_time()
            self._connection.data_received(data)
            self.spent_s += time.process_time() - start
            for answer in self._wire.written:
                self.http2.receive_data(answer)
            self._wire.written.clear()
            self.http2.events()


class _Worker:
    def __init__(self, prompt: str) -> None:
        self._picker = pick.Picker(4)
        desk: Any = self._picker.exchanges.asker
        services: dict[str, Any] = {
            ext_proc.METHOD: self._picker.exchanges,
            access_log.METHOD: access_log.AccessLogService(desk.settle),
        }
        server = NgServer(services, Limits())
        self._peer, self._log = _Peer(server), _Peer(server)
        self._stream = self._log.call(access_log.METHOD)
        self._text, self._fresh, self._numbers = _TEXTS[prompt], prompt == "short", itertools.count()

    def batch(self) -> tuple[float, float]:
        """Return µs of an exchange and of a settlement."""
        peer, log = self._peer, self._log
        peer.spent_s = log.spent_s = 0.0
        head = pick._headers()  # noqa: SLF001 - the messages are made there
        for _ in range(_BATCH // _TOGETHER):
            streams = [peer.call(ext_proc.METHOD) for _ in range(_TOGETHER)]
            texts = [f"{next(self._numbers)} {self._text}" if self._fresh else self._text for _ in streams]
            bodies = [pick._body(text) for text in texts]  # noqa: SLF001 - as above
            for stream, body in zip(streams, bodies, strict=True):
                first = _with(head, body) if self._fresh and _ALONG else head
                peer.http2.send_data(stream, framing.frame(first))
            peer.exchange()
            if first is head:
                for stream, body in zip(streams, bodies, strict=True):
                    peer.http2.send_data(stream, framing.frame(body))
                peer.exchange()
            for stream in streams:
                peer.http2.reset_stream(stream)
            peer.exchange()
        tickets = list(self._picker.director.recent)[-_BATCH:]
        for at in range(0, _BATCH, _RECORDS):
            records = b"".join(pick._record(ticket) for ticket in tickets[at : at + _RECORDS])  # noqa: SLF001 - as above
            log.http2.send_data(self._stream, framing.frame(records))  # messages of protobuf add up where they meet
            log.exchange()
        return peer.spent_s / _BATCH * 1e6, log.spent_s / _BATCH * 1e6


async def _work(prompt: str) -> None:
    """Run a batch for every line that comes."""
    worker = _Worker(prompt)
    for _ in range(3):
        worker.batch()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    for _line in sys.stdin:
        print(json.dumps(worker.batch()), flush=True)


def _start(tree: Path, prompt: str) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, __file__, "--work", "--prompt", prompt],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
    )
    assert worker.stdout is not None  # noqa: S101 - a pipe was asked for
    if worker.stdout.readline() != "ready\n":
        raise SystemExit(f"{tree}: its worker did not start")
    return worker


def _batch(worker: subprocess.Popen[str]) -> tuple[float, float]:
    assert worker.stdin is not None and worker.stdout is not None  # noqa: S101, PT018 - as above
    worker.stdin.write("\n")
    worker.stdin.flush()
    exchange, settlement = json.loads(worker.stdout.readline())
    return exchange, settlement


def _compare(other: Path, prompt: str, batches: int) -> None:
    here = Path(__file__).resolve().parents[1]
    workers = [_start(tree, prompt) for tree in (other, other, here)]
    took: list[list[tuple[float, float]]] = [[], [], []]
    for number in range(batches):
        order = list(zip(workers, took, strict=True))
        for worker, mine in reversed(order) if number % 2 else order:
            mine.append(_batch(worker))
    for worker in workers:
        worker.kill()
        worker.wait()
    rows = []
    for name, mine in zip(("other tree", "other tree again", "this tree"), took, strict=True):
        ratios = [
            statistics.median(one[part] / first[part] for one, first in zip(mine, took[0], strict=True))
            for part in (0, 1)
        ]
        best = [statistics.quantiles((each[part] for each in mine), n=10)[0] for part in (0, 1)]
        rows.append((name, f"{best[0]:.0f}", f"{ratios[0]:.3f}", f"{best[1]:.0f}", f"{ratios[1]:.3f}"))
    table.show(
        f"CPU of exchanges in memory, {prompt} prompts: the tenth quickest of {batches} batches, and the median of ratios",
        ("", "exchange us", "ratio", "settlement us", "ratio"),
        rows,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.pairs", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("other", nargs="?", type=Path, help="a tree of another version, to compare this one with")
    parser.add_argument("--prompt", choices=_TEXTS, default="short")
    parser.add_argument("--batches", type=int, default=80)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        asyncio.run(_work(options.prompt))
    elif options.other is None:
        parser.error("name the other tree")
    else:
        _compare(options.other.resolve(), options.prompt, options.batches)


if __name__ == "__main__":
    main()
