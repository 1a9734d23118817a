"""The form of Anthropic's messages, and its bodies turned into OpenAI's messages."""

from collections.abc import Iterable
from typing import Any

import orjson

from engine.simulator import batch, bodies, errors
from engine.simulator.answer import Answer

_STOP_REASONS = {"length": "max_tokens", "stop": "end_turn"}


def as_messages(body: bodies.Body) -> list[dict[str, Any]]:
    """Give the conversation, the system prompt first."""
    messages = bodies.messages(body)
    system = body.get("system")
    spoken = [
        {**message, "content": _content(message.get("content"), f"body.messages.{number}.content")}
        for number, message in enumerate(messages)
    ]
    return [{"role": "system", "content": _content(system, "body.system")}, *spoken] if system else spoken


def _content(content: Any, where: str) -> Any:
    if content is None or isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in _blocks(content, where):
        if part.get("type") == "tool_result":
            inner = part.get("content")
            parts += _blocks(inner, where) if isinstance(inner, list) else [{"type": "text", "text": str(inner)}]
        elif part.get("type") == "tool_use":
            parts.append({"type": "text", "text": orjson.dumps([part.get("name"), part.get("input")]).decode()})
        else:
            parts.append({key: value for key, value in part.items() if key != "cache_control"})
    return parts


def _blocks(content: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        raise errors.invalid("string_type", where, "Input should be a valid string", content)
    for number, block in enumerate(content):
        if not isinstance(block, dict):
            raise errors.invalid("model_type", f"{where}.{number}", "Input should be a valid dictionary", block)
    return content


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


class Messages:
    """One answer of /v1/messages."""

    def __init__(self, request_key: str, *, model: str) -> None:
        self.request_id = f"chatcmpl-{request_key}"
        self._model = model

    def opening(self, answer: Answer) -> Iterable[bytes]:
        """Give the message's frame and that of its one block."""
        message: dict[str, Any] = {
            "id": self.request_id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self._model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": 0},
        }
        yield _event("message_start", {"message": message})
        yield _event("content_block_start", {"content_block": {"type": "text", "text": ""}, "index": 0})

    def token(self, answer: Answer, sequence: batch.Sequence, words: bytes) -> bytes | None:  # noqa: ARG002 (the form's signature)
        """Give new words."""
        if words == b'""':
            return None
        return (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","delta":{"type":"text_delta","text":%b},"index":0}\n\n' % words
        )

    def closing(self, answer: Answer) -> Iterable[bytes]:
        """Give the ends of block and message, with usage."""
        yield _event("content_block_stop", {"index": 0})
        reason, sequence = self._stop(answer)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield _event("message_delta", {"delta": delta, "usage": self._usage(answer)})
        yield _event("message_stop", {})

    def body(self, answer: Answer) -> bytes:
        """Give the whole answer."""
        reason, stop_sequence = self._stop(answer)
        message = {
            "id": self.request_id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": answer.text_of(answer.sequences[0])}],
            "model": self._model,
            "stop_reason": reason,
            **({"stop_sequence": stop_sequence} if stop_sequence is not None else {}),
            "usage": self._usage(answer),
        }
        return orjson.dumps(message)

    def _stop(self, answer: Answer) -> tuple[str, str | None]:
        sequence = answer.sequences[0]
        if isinstance(sequence.stop_reason, str):
            return "stop_sequence", sequence.stop_reason
        return _STOP_REASONS.get(sequence.finish or "", "end_turn"), None

    def _usage(self, answer: Answer) -> dict[str, int]:
        return {
            "input_tokens": answer.prompt_tokens - answer.stored_tokens - answer.cached_tokens,
            "output_tokens": answer.generated_tokens,
            "cache_creation_input_tokens": answer.stored_tokens,
            "cache_read_input_tokens": answer.cached_tokens,
        }
