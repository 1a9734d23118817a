"""Stub engines: the cheapest upstream that still looks like vLLM to a gateway, many addresses in one process.

Used where the gateway's own cost is measured, so that the engines' cost does not drown it. Each address answers
`/health`, `/v1/models`, `/metrics` (an engine-sized page) and any POST: JSON, or with `"stream":true` in the body
`chunks` events, `gap_ms` apart, a usage chunk and `[DONE]`.

    python -m bench.stub --host 127.9.0.1 --host 127.9.0.2 --port 8000 --chunks 100 --gap-ms 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from typing import cast

import uvloop

PAD = "# HELP vllm:pad_{n} One of the many lines of an engine's page that a picker does not need.\nvllm:pad_{n} 0.0\n"
METRICS = (
    "# TYPE vllm:num_requests_running gauge\n"
    'vllm:num_requests_running{engine="0",model_name="demo"} 1.0\n'
    'vllm:num_requests_waiting{engine="0",model_name="demo"} 0.0\n'
    'vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25\n'
) + "".join(PAD.format(n=n) for n in range(520))
MODELS = '{"object":"list","data":[{"id":"demo","object":"model","created":1,"owned_by":"vllm","root":"demo"}]}'
USAGE = '"usage":{"prompt_tokens":200,"total_tokens":300,"completion_tokens":%d,"prompt_tokens_details":{"cached_tokens":0}}'
ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"demo","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"ok"},"finish_reason":"stop"}],' + USAGE % 1 + "}"
)
CHUNK = (
    'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"demo","choices":[{"index":0,'
    '"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]%s}\n\n'
)
FINAL = 'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"demo","choices":[],%s}\n\n'


def _plain(body: str, kind: str = "application/json") -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


def _chunk(data: str) -> bytes:
    return f"{len(data):x}\r\n{data}\r\n".encode()


HEALTH, MODELS_PAGE, PAGE, JSON = _plain(""), _plain(MODELS), _plain(METRICS, "text/plain"), _plain(ANSWER)
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


SERVED: Counter[str] = Counter()  # POST requests by the address that they came to; GET /served tells


class Engine(asyncio.Protocol):
    """One connection from the gateway."""

    def __init__(self, *, chunks: int, gap_s: float) -> None:
        self._chunks, self._gap, self._buffer = chunks, gap_s, b""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop a stream under way."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer every complete request; bodies come with a length or in chunks."""
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            if at >= 0:
                size = int(head[at + 15 :].split(b"\r\n", 1)[0])
                if len(self._buffer) < end + 4 + size:
                    return
                body = self._buffer[end + 4 : end + 4 + size]
                self._buffer = self._buffer[end + 4 + size :]
            elif b"transfer-encoding: chunked" in head:
                stop = self._buffer.find(b"0\r\n\r\n", end + 4)
                if stop < 0:
                    return
                body, self._buffer = self._buffer[end + 4 : stop], self._buffer[stop + 5 :]
            else:
                body, self._buffer = b"", self._buffer[end + 4 :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - data came over it
        if head.startswith(b"post"):
            SERVED[self._transport.get_extra_info("sockname")[0]] += 1
            if b'"stream":true' in body or b'"stream": true' in body:
                self._transport.write(STREAM)
                self._running = b"continuous_usage_stats" in body
                self._final = b"include_usage" in body
                self._step(0)
            else:
                self._transport.write(JSON)
        elif head.startswith(b"get /served"):
            self._transport.write(_plain(json.dumps(SERVED)))
        else:
            pages = {b"/health": HEALTH, b"/metrics": PAGE, b"/v1/models": MODELS_PAGE}
            self._transport.write(pages.get(head.split(b" ", 2)[1], HEALTH))

    def _step(self, sent: int) -> None:
        if self._transport is None:
            return
        if sent < self._chunks:
            usage = "," + USAGE % (sent + 1) if self._running else ""
            self._transport.write(_chunk(CHUNK % usage))
            self._timer = asyncio.get_running_loop().call_later(self._gap, self._step, sent + 1)
            return
        final = _chunk(FINAL % (USAGE % sent)) if self._final else b""
        self._transport.write(final + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n")


async def serve(hosts: list[str], port: int, *, chunks: int, gap_s: float) -> None:
    """Listen on every host until the process is stopped."""
    loop = asyncio.get_running_loop()
    for host in hosts:
        await loop.create_server(lambda: Engine(chunks=chunks, gap_s=gap_s), host, port, backlog=512)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.stub", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--host", action="append", required=True)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    options = parser.parse_args()
    uvloop.run(serve(options.host, options.port, chunks=options.chunks, gap_s=options.gap_ms / 1000))


if __name__ == "__main__":
    main()
