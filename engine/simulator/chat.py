"""The chat template: messages to tokens, so that a conversation's next turn begins with exactly the tokens of the last.

Messages come in OpenAI's form; the Anthropic and Responses forms are turned into it by their own modules.
"""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from xxhash import xxh3_128_hexdigest

from engine.simulator import tokenizer

Message = Mapping[str, Any]


def render(
    tokens: tokenizer.Tokenizer, messages: Iterable[Message], *, tools: Any = None, generation_prompt: bool = True
) -> "array[int]":
    """Tokens of a conversation, ending where the assistant begins to speak."""
    out = array("I")
    newline = tokens.encode("\n")
    if tools:
        _append(out, tokens, "tools", orjson.dumps(tools).decode())
        out.extend(newline)
    for message in messages:
        out.append(tokenizer.BEGIN)
        out.extend(tokens.encode(str(message.get("role", "user"))))
        out.extend(newline)
        _content(out, tokens, message.get("content"))
        for key in ("name", "tool_calls", "tool_call_id"):
            if message.get(key):
                out.extend(tokens.encode(f"\n{key}: {orjson.dumps(message[key]).decode()}"))
        out.append(tokenizer.END)
        out.extend(newline)
    if generation_prompt:
        out.append(tokenizer.BEGIN)
        out.extend(tokens.encode("assistant"))
        out.extend(newline)
    return out


def _append(out: "array[int]", tokens: tokenizer.Tokenizer, role: str, text: str) -> None:
    out.append(tokenizer.BEGIN)
    out.extend(tokens.encode(role))
    out.extend(tokens.encode("\n"))
    out.extend(tokens.encode(text))
    out.append(tokenizer.END)


def _content(out: "array[int]", tokens: tokenizer.Tokenizer, content: Any) -> None:
    if isinstance(content, str):
        out.extend(tokens.encode(content))
        return
    for part in content or ():
        if isinstance(part, str):
            out.extend(tokens.encode(part))
        elif isinstance(text := part.get("text") or part.get("refusal"), str):
            out.extend(tokens.encode(text))
        else:
            out.append(tokenizer.IMAGE)
            out.extend(tokens.encode(xxh3_128_hexdigest(orjson.dumps(part))))
