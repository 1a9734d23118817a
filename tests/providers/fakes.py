"""Providers as they are documented, over TLS, with a certificate of the tests' own authority: what they got, and how they fail."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.xds.issuer import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

KEY = "sk-the-gateways-own-0123456789"
TEXT = ["The ", "sea ", "is ", "wide", "."]
CALL = {"name": "weather", "arguments": ['{"ci', 'ty": "Oslo"}']}


@dataclass
class Got:
    """A request as the provider got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Provider:
    """A running provider."""

    port: int
    ca: str  # PEM
    key: str = KEY
    got: list[Got] = field(default_factory=list)
    behave: Callable[[web.Request, Got], Awaitable[web.StreamResponse | None]] | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def answer(self, request: web.Request) -> web.StreamResponse:
        got = Got(request.path, {k.lower(): v for k, v in request.headers.items()}, await request.json())
        self.got.append(got)
        shown = got.headers.get("x-api-key") or got.headers.get("authorization", "").removeprefix("Bearer ")
        messages = request.path.endswith("/messages")
        if shown != self.key:
            told = f"Incorrect API key provided: {shown[:8]}***."
            error = {"type": "authentication_error", "message": told}
            return web.json_response({"type": "error", "error": error} if messages else {"error": error}, status=401)
        if self.behave is not None:
            behaved = await self.behave(request, got)
            if behaved is not None:
                return behaved
        events = messages_events(got.body) if messages else chat_events(got.body)
        if got.body.get("stream"):
            return await streamed(request, events)
        return web.json_response(messages_answer(got.body) if messages else chat_answer(got.body))


async def streamed(
    request: web.Request, events: list[bytes], *, cut: bool = False, pause_s: float = 0
) -> web.StreamResponse:
    """Send events, one at a time."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", "set-cookie": "a=b"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
        await asyncio.sleep(0)
    await asyncio.sleep(pause_s)
    if cut and request.transport is not None:
        request.transport.abort()
    return response


def chat_answer(body: dict[str, Any]) -> dict[str, Any]:
    """What OpenAI answers; with tools, a call of the first."""
    message: dict[str, Any] = {"role": "assistant", "content": "".join(TEXT), "refusal": None}
    finish = "stop"
    if body.get("tools"):
        function = {"name": CALL["name"], "arguments": "".join(CALL["arguments"])}
        message |= {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
        finish = "tool_calls"
    return {
        "id": "chatcmpl-abc",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": CHAT_USAGE,
    }


CHAT_USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 5,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
}
MESSAGES_USAGE = {
    "input_tokens": 8,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 0,
    "output_tokens": 5,
}


def chat_events(body: dict[str, Any]) -> list[bytes]:
    """What OpenAI streams; with tools, a call of the first."""
    head = {"id": "chatcmpl-abc", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"

    made = [chunk({"role": "assistant", "content": "", "refusal": None})]
    if body.get("tools"):
        call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": CALL["name"], "arguments": ""}}
        made.append(chunk({"tool_calls": [call]}))
        made += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": one}}]}) for one in CALL["arguments"]]
        made.append(chunk({}, "tool_calls"))
    else:
        made += [chunk({"content": word}) for word in TEXT]
        made.append(chunk({}, "stop"))
    if (body.get("stream_options") or {}).get("include_usage"):
        made.append(b"data: " + json.dumps({**head, "choices": [], "usage": CHAT_USAGE}).encode() + b"\n\n")
    return [*made, b"data: [DONE]\n\n"]


def messages_answer(body: dict[str, Any]) -> dict[str, Any]:
    """What Anthropic answers; with tools, a call of the first."""
    content: list[dict[str, Any]] = [{"type": "text", "text": "".join(TEXT)}]
    if body.get("tools"):
        content = [{"type": "tool_use", "id": "toolu_1", "name": CALL["name"], "input": {"city": "Oslo"}}]
    return {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": "tool_use" if body.get("tools") else "end_turn",
        "stop_sequence": None,
        "usage": MESSAGES_USAGE,
    }


def messages_events(body: dict[str, Any]) -> list[bytes]:
    """What Anthropic streams; with tools, a call of the first."""
    whole = messages_answer(body)
    first = {"input_tokens": 8, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 0, "output_tokens": 1}
    made: list[dict[str, Any]] = [
        {"type": "message_start", "message": whole | {"content": [], "stop_reason": None, "usage": first}},
        {"type": "ping"},
    ]
    if body.get("tools"):
        made.append({"type": "content_block_start", "index": 0, "content_block": whole["content"][0] | {"input": {}}})
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *CALL["arguments"])]
    else:
        made.append({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})
        deltas = [{"type": "text_delta", "text": word} for word in TEXT]
    made += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
    made += [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": whole["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 5},
        },
        {"type": "message_stop"},
    ]
    return [b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode()) for one in made]


@asynccontextmanager
async def provider(folder: Path, authority: Authority | None = None) -> AsyncIterator[Provider]:
    """Run one on a free port."""
    authority = authority or Authority()
    certificate, key = authority.issue("localhost")
    (folder / "provider.pem").write_bytes(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "provider.pem")
    made = Provider(0, authority.pem.decode())
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{path:.*}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()
