"""The form of OpenAI's responses, and their input turned into messages."""

import secrets
import time
from collections.abc import Iterable
from typing import Any

import orjson

from engine.simulator import batch, bodies
from engine.simulator.answer import Answer
from engine.simulator.errors import invalid, missing


def as_messages(body: bodies.Body) -> list[dict[str, Any]]:
    """Give the conversation that `instructions` and `input` describe."""
    given = body.get("input")
    if "input" not in body:
        raise missing("input", {**body, "request_id": None})  # vLLM adds a field before it validates, and counts it
    messages: list[dict[str, Any]] = []
    instructions = bodies.text(body, "instructions")
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise invalid("string_type", "body.input", "Input should be a valid string", given)
    for item in given:
        content = item.get("content", item.get("output", item.get("arguments")))
        messages.append({"role": item.get("role", "tool"), "content": content})
    return bodies.messages({"messages": messages})


class Response:
    """One answer of /v1/responses."""

    def __init__(self, body: bodies.Body, *, model: str) -> None:
        self.request_id = f"resp_{secrets.token_hex(8)}"
        self._message_id = f"msg_{secrets.token_hex(8)}"
        self._created = int(time.time())
        self._model = model
        self._body = body
        self._number = 0
        ids = {"item_id": self._message_id, "logprobs": [], "output_index": 0}
        self._delta_tail = orjson.dumps(ids)[1:-1]

    def opening(self, answer: Answer) -> Iterable[bytes]:
        """Give the frames of response, item and part."""
        started = self._response(answer, "in_progress")
        yield self._event("response.created", {"response": started})
        yield self._event("response.in_progress", {"response": started})
        yield self._event("response.output_item.added", {"item": self._item("in_progress", []), "output_index": 0})
        yield self._event("response.content_part.added", {**self._place(), "part": _part("", [])})

    def token(self, answer: Answer, sequence: batch.Sequence, words: bytes) -> bytes | None:  # noqa: ARG002 (the form's signature)
        """Give new words."""
        if words == b'""':
            return None
        number = self._next_number()
        return (
            b'event: response.output_text.delta\ndata: {"content_index":0,"delta":%b,%b,"sequence_number":%d,'
            b'"type":"response.output_text.delta"}\n\n' % (words, self._delta_tail, number)
        )

    def closing(self, answer: Answer) -> Iterable[bytes]:
        """Give the ends of part, item and response, with usage."""
        text = answer.text_of(answer.sequences[0])
        place = self._place()
        done = {"content_index": 0, "item_id": self._message_id, "logprobs": [], "output_index": 0}
        yield self._event("response.output_text.done", done, {"text": text})
        yield self._event("response.content_part.done", {**place, "part": _part(text, None)})
        item = self._item("completed", [_part(text, None)])
        yield self._event("response.output_item.done", {"item": item, "output_index": 0})
        yield self._event("response.completed", {"response": self._finished(answer, item)})

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        text = answer.text_of(answer.sequences[0])
        return orjson.dumps(self._finished(answer, self._item("completed", [_part(text, None)])))

    def _finished(self, answer: Answer, item: dict[str, Any]) -> dict[str, Any]:
        incomplete = answer.sequences[0].finish == "length"
        response = self._response(answer, "incomplete" if incomplete else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if incomplete else None
        response["output"] = [item]
        prompt, completion = answer.prompt_tokens, answer.generated_tokens
        response["usage"] = {
            "input_tokens": prompt,
            "input_tokens_details": {
                "cached_tokens": answer.cached_tokens,
                "cache_write_tokens": answer.stored_tokens,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": completion,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": prompt + completion,
        }
        return response

    def _response(self, answer: Answer, status: str) -> dict[str, Any]:
        body = self._body
        return {
            "id": self.request_id,
            "created_at": self._created,
            "incomplete_details": None,
            "instructions": body.get("instructions"),
            "metadata": body.get("metadata"),
            "model": self._model,
            "object": "response",
            "output": [],
            "parallel_tool_calls": True,
            "temperature": _given(body, "temperature", 1.0),
            "tool_choice": "none",
            "tools": [],
            "top_p": _given(body, "top_p", 1.0),
            "background": False,
            "max_output_tokens": answer.sequences[0].max_tokens,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": None,
            "user": body.get("user"),
            "presence_penalty": _given(body, "presence_penalty", 0.0),
            "frequency_penalty": _given(body, "frequency_penalty", 0.0),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "input_messages": None,
            "output_messages": None,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "content": content,
            "role": "assistant",
            "status": status,
            "type": "message",
            "phase": None,
        }

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, "item_id": self._message_id, "output_index": 0}

    def _event(self, name: str, data: dict[str, Any], after: dict[str, Any] | None = None) -> bytes:
        numbered = {**data, "sequence_number": self._next_number(), **(after or {}), "type": name}
        return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(numbered))

    def _next_number(self) -> int:
        number = self._number
        self._number += 1
        return number


def _part(text: str, logprobs: list[Any] | None) -> dict[str, Any]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": logprobs}


def _given(body: bodies.Body, name: str, default: float) -> float:
    value = bodies.number(body, name)
    return default if value is None else float(value)
