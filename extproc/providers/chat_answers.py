"""Answers of Anthropic's API for clients of /v1/chat/completions: whole ones, and streams event by event.

Thinking is left out: OpenAI's API has no place for it. Tokens read from and written to a cache count as prompt tokens, as
OpenAI counts them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from extproc.providers import events, fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from extproc.providers.fields import Json

_REASONS: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


def answer(body: Json, *, now: int) -> Json:
    """Return a whole answer; `now` is seconds since the epoch. Raises KeyError, TypeError, ValueError for what is none."""
    if body["type"] != "message":
        raise ValueError("no message")
    content = [one["text"] for one in body["content"] if one["type"] == "text"]
    calls = [_call(one) for one in body["content"] if one["type"] == "tool_use"]
    message: Json = {
        "role": "assistant",
        "content": "".join(content) if content or not calls else None,
        "refusal": None,
    }
    if calls:
        message["tool_calls"] = calls
    finish = _REASONS.get(body["stop_reason"], "stop")
    return {
        "id": _id(body["id"]),
        "object": "chat.completion",
        "created": now,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": _usage(body["usage"]),
    }


def _id(theirs: str) -> str:
    return "chatcmpl-" + theirs.removeprefix("msg_")


def _call(block: Json) -> Json:
    function = {"name": block["name"], "arguments": fields.encode(block["input"]).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def _usage(usage: Mapping[str, Any]) -> Json:
    cached = usage.get("cache_read_input_tokens") or 0
    prompt = (usage.get("input_tokens") or 0) + cached + (usage.get("cache_creation_input_tokens") or 0)
    completion = usage.get("output_tokens") or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Stream:
    """A stream's state. Its last chunk tells usage: where the client did not ask for it, Envoy's filters hide it."""

    def __init__(self, now: int) -> None:
        self.over = False  # all was told
        self._head: Json = {"id": "chatcmpl-", "object": "chat.completion.chunk", "created": now, "model": ""}
        self._usage: Json = {}
        self._finish = "stop"
        self._calls = -1  # index of the last tool call
        self._argued = True  # it has arguments, or is none

    def take(self, event: Json) -> Iterator[bytes]:
        """Yield what an event becomes. Raises KeyError, TypeError, AttributeError, ValueError for what is none."""
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
            self._head |= {"id": _id(message["id"]), "model": message["model"]}
            self._usage |= _set(message.get("usage"))
            yield self._delta({"role": "assistant", "content": "", "refusal": None})
        elif kind == "content_block_start":
            yield from self._begin(event["content_block"])
        elif kind == "content_block_delta":
            yield from self._go_on(event["delta"])
        elif kind == "content_block_stop":
            if not self._argued:  # a tool without arguments
                self._argued = True
                yield self._arguments("{}")
        elif kind == "message_delta":
            self._usage |= _set(event.get("usage"))
            self._finish = _REASONS.get(event["delta"].get("stop_reason"), self._finish)
        elif kind == "message_stop":
            self.over = True
            yield self._delta({}, finish=self._finish)
            yield events.chunk({**self._head, "choices": [], "usage": _usage(self._usage)})
            yield events.DONE

    def _begin(self, block: Json) -> Iterator[bytes]:
        if block["type"] == "text" and block.get("text"):
            yield self._delta({"content": block["text"]})
        elif block["type"] == "tool_use":
            self._calls += 1
            self._argued = False
            function = {"name": block["name"], "arguments": ""}
            call = {"index": self._calls, "id": block["id"], "type": "function", "function": function}
            yield self._delta({"tool_calls": [call]})
            if block.get("input"):
                self._argued = True
                yield self._arguments(fields.encode(block["input"]).decode())

    def _go_on(self, delta: Json) -> Iterator[bytes]:
        if delta["type"] == "text_delta":
            yield self._delta({"content": delta["text"]})
        elif delta["type"] == "input_json_delta" and delta["partial_json"]:
            self._argued = True
            yield self._arguments(delta["partial_json"])

    def _arguments(self, piece: str) -> bytes:
        return self._delta({"tool_calls": [{"index": self._calls, "function": {"arguments": piece}}]})

    def _delta(self, delta: Json, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return events.chunk({**self._head, "choices": [choice]})

    def end(self) -> Iterator[bytes]:
        """Yield what is left to say when the provider says no more; only a message that was stopped is whole."""
        yield from ()


def _set(usage: Any) -> Json:
    """Return the figures that are told; a later event tells some of them only."""
    return {key: value for key, value in (usage or {}).items() if value is not None}
