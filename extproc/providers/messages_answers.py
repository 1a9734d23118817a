"""Answers of OpenAI's chat API for clients of /v1/messages: whole ones, and streams chunk by chunk.

Prompt tokens are told at a stream's end, as OpenAI does not know them before. Reasoning is left out: without a signature it
is none that Anthropic's clients could send back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from extproc.providers import events, fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from extproc.providers.fields import Json

_REASONS: Final[Mapping[str, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def answer(body: Json) -> Json:
    """Return a whole answer. Raises KeyError, IndexError, TypeError, ValueError for what is none."""
    choice = body["choices"][0]
    message = choice["message"]
    blocks: list[Json] = [
        {"type": "text", "text": text} for text in (message.get("content"), message.get("refusal")) if text
    ]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        blocks.append(
            {"type": "tool_use", "id": call["id"], "name": function["name"], "input": _input(function["arguments"])}
        )
    reason, sequence = _stopped(choice)
    return {
        "id": _id(body["id"]),
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": _usage(body["usage"]),
    }


def _id(theirs: str) -> str:
    return "msg_" + theirs.removeprefix("chatcmpl-")


def _input(arguments: str) -> Json:
    told = fields.decoded(arguments or "{}")
    if not isinstance(told, dict):
        raise TypeError("arguments are no object")
    return told


def _stopped(choice: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the reason, and the stop sequence that was met, which vLLM tells beside OpenAI's fields."""
    sequence = choice.get("stop_reason")
    if choice["finish_reason"] == "stop" and isinstance(sequence, str):
        return "stop_sequence", sequence
    return _REASONS.get(choice["finish_reason"], "end_turn"), None


def _usage(usage: Mapping[str, Any]) -> Json:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {
        "input_tokens": (usage.get("prompt_tokens") or 0) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.get("completion_tokens") or 0,
    }


class Stream:
    """A stream's state: which block is open, and what is known of the end."""

    def __init__(self) -> None:
        self.over = False  # all was told
        self._begun = False
        self._blocks = 0  # that have begun
        self._open = ""  # kind of the block that has not ended
        self._call: int | None = None  # index of the last tool call
        self._end: tuple[str, str | None] | None = None
        self._usage: Json = {"input_tokens": 0, "output_tokens": 0}

    def take(self, chunk: Json) -> Iterator[bytes]:
        """Yield what a chunk becomes. Raises KeyError, IndexError, TypeError, AttributeError, ValueError for what is none."""
        if not self._begun:
            self._begun = True
            yield events.named({"type": "message_start", "message": self._message(chunk)})
        if chunk.get("usage"):
            self._usage = _usage(chunk["usage"])
        if not chunk["choices"]:
            return
        choice = chunk["choices"][0]
        delta = choice["delta"]
        for text in (delta.get("content"), delta.get("refusal")):
            if text:
                if self._open != "text":
                    yield from self._begin({"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            yield from self._called(call)
        if choice.get("finish_reason"):
            self._end = _stopped(choice)

    def end(self) -> Iterator[bytes]:
        """Yield what is left to say when the provider says no more."""
        if self._end is None or self.over:
            return
        self.over = True
        yield from self._close()
        reason, sequence = self._end
        yield events.named(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": self._usage,
            }
        )
        yield events.named({"type": "message_stop"})

    def _message(self, chunk: Json) -> Json:
        return {
            "id": _id(chunk["id"]),
            "type": "message",
            "role": "assistant",
            "model": chunk["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage,
        }

    def _called(self, call: Json) -> Iterator[bytes]:
        function = call.get("function") or {}
        index = call.get("index", 0)
        if index != self._call:
            if self._call is not None and index < self._call:
                raise ValueError("tool calls whose pieces are mixed")
            self._call = index
            yield from self._begin({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
        elif self._open != "tool_use":
            raise ValueError("a tool call goes on after another block")
        if function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _begin(self, block: Json) -> Iterator[bytes]:
        yield from self._close()
        self._open = block["type"]
        self._blocks += 1
        yield events.named({"type": "content_block_start", "index": self._blocks - 1, "content_block": block})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = ""
            yield events.named({"type": "content_block_stop", "index": self._blocks - 1})

    def _delta(self, delta: Json) -> bytes:
        return events.named({"type": "content_block_delta", "index": self._blocks - 1, "delta": delta})
