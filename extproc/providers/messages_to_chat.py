"""A request of /v1/messages as one of /v1/chat/completions.

What OpenAI's API cannot be told is refused, and the message names the field. Passed over are hints that change no answer's
meaning: DROPPED, `cache_control`, and the thinking of earlier answers, which no other model can use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from extproc.providers import fields
from extproc.providers.fields import Json, an_object, objects, refusal, text

if TYPE_CHECKING:
    from collections.abc import Iterator

API: Final = "OpenAI"
DROPPED: Final = ("cache_control", "cache_salt", "service_tier")
_READ: Final = (
    "max_tokens",
    "messages",
    "metadata",
    "model",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_p",
)
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_THOUGHT: Final = ("thinking", "redacted_thinking")
_FAILED: Final = "Error: "  # how a model is told that a tool's result is one: OpenAI's API has no field for it


def translated(body: Json, *, model: str) -> Json:
    """Return the request. Raises BadRequest."""
    fields.known(body, (*_READ, *DROPPED), API)
    thinking = body.get("thinking")
    if thinking is not None and an_object(thinking, "thinking").get("type") != "disabled":
        raise refusal("thinking", f"cannot be asked of a provider of the {API} API: leave it out")
    messages = list(_system(body.get("system")))
    given = objects(body.get("messages"), "messages")
    for number, message in enumerate(given):
        messages += _taken(message, f"messages[{number}]")
    if given and given[-1].get("role") == "assistant":
        raise refusal("messages", f"a provider of the {API} API cannot continue an answer: end with the user's message")
    if body.get("max_tokens") is None:
        raise refusal("max_tokens", "is required")
    made: Json = {"model": model, "messages": messages}
    keys = {
        "max_tokens": "max_completion_tokens",
        "temperature": "temperature",
        "top_p": "top_p",
        "stop_sequences": "stop",
    }
    fields.copied(body, made, keys)
    user = an_object(body.get("metadata") or {}, "metadata").get("user_id")
    if user:
        made["user"] = text(user, "metadata.user_id")
    if body.get("stream"):
        made |= {"stream": True, "stream_options": {"include_usage": True}}
    _tools(body, made)
    return made


def _system(given: Any) -> Iterator[Json]:
    if given:
        yield {"role": "system", "content": given if isinstance(given, str) else list(_texts(given, "system"))}


def _texts(given: Any, field: str) -> Iterator[Json]:
    """Yield blocks as text parts."""
    for number, block in enumerate(objects(given, field)):
        if block.get("type") != "text":
            kind = block.get("type")
            raise refusal(f"{field}[{number}].type", f"{kind!r} cannot be translated for a provider of the {API} API")
        yield {"type": "text", "text": text(block.get("text"), f"{field}[{number}].text")}


# ---- messages


def _taken(message: Json, field: str) -> list[Json]:
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise refusal(f"{field}.role", f"{role!r} is not known: write user or assistant")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = objects(content, f"{field}.content")
    if role == "assistant":
        return [_said(blocks, f"{field}.content")]
    if role == "system":
        return [{"role": role, "content": list(_texts(blocks, f"{field}.content"))}]
    return list(_asked(blocks, f"{field}.content"))


def _asked(blocks: list[Json], field: str) -> Iterator[Json]:
    """Yield the results of tools, each a message of its own, and then what the user says."""
    parts: list[Json] = []
    for number, block in enumerate(blocks):
        if block.get("type") == "tool_result":
            if parts:
                raise refusal(f"{field}[{number}]", "results of tools must come before the text of their message")
            yield _result(block, f"{field}[{number}]")
        else:
            parts.append(_part(block, f"{field}[{number}]"))
    if parts:
        yield {"role": "user", "content": parts}


def _part(block: Json, field: str) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": text(block.get("text"), f"{field}.text")}
    if kind == "image":
        source = an_object(block.get("source"), f"{field}.source")
        if source.get("type") == "url":
            url = text(source.get("url"), f"{field}.source.url")
        elif source.get("type") == "base64":
            data, media = source.get("data"), source.get("media_type")
            url = f"data:{text(media, f'{field}.source.media_type')};base64,{text(data, f'{field}.source.data')}"
        else:
            raise refusal(f"{field}.source.type", f"cannot be translated for a provider of the {API} API")
        return {"type": "image_url", "image_url": {"url": url}}
    raise refusal(f"{field}.type", f"{kind!r} cannot be translated for a provider of the {API} API")


def _result(block: Json, field: str) -> Json:
    content = block.get("content")
    told: str | list[Json] = (
        (content or "") if isinstance(content, str | None) else list(_texts(content, f"{field}.content"))
    )
    if block.get("is_error"):
        told = _FAILED + told if isinstance(told, str) else [{"type": "text", "text": _FAILED}, *told]
    return {"role": "tool", "tool_call_id": text(block.get("tool_use_id"), f"{field}.tool_use_id"), "content": told}


def _said(blocks: list[Json], field: str) -> Json:
    texts: list[str] = []
    calls: list[Json] = []
    for number, block in enumerate(blocks):
        kind = block.get("type")
        if kind == "text":
            texts.append(text(block.get("text"), f"{field}[{number}].text"))
        elif kind == "tool_use":
            calls.append(_call(block, f"{field}[{number}]"))
        elif kind not in _THOUGHT:
            raise refusal(f"{field}[{number}].type", f"{kind!r} cannot be translated for a provider of the {API} API")
    made: Json = {"role": "assistant", "content": "".join(texts) if texts or not calls else None}
    return made | ({"tool_calls": calls} if calls else {})


def _call(block: Json, field: str) -> Json:
    arguments = fields.encode(an_object(block.get("input") or {}, f"{field}.input")).decode()
    name = text(block.get("name"), f"{field}.name")
    return {
        "id": text(block.get("id"), f"{field}.id"),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


# ---- tools


def _tools(body: Json, made: Json) -> None:
    tools = [_tool(one, f"tools[{number}]") for number, one in enumerate(objects(body.get("tools") or [], "tools"))]
    given = body.get("tool_choice")
    choice = an_object(given, "tool_choice") if given is not None else {}
    kind = choice.get("type")
    if kind == "tool":
        name = text(choice.get("name"), "tool_choice.name")
        made["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif isinstance(kind, str) and kind in _CHOICES:
        made["tool_choice"] = _CHOICES[kind]
    elif given is not None:
        raise refusal("tool_choice.type", f"{kind!r} cannot be translated for a provider of the {API} API")
    if not tools:
        if made.pop("tool_choice", "auto") not in ("auto", "none"):
            raise refusal("tool_choice", "there are no tools")
        return
    made["tools"] = tools
    if choice.get("disable_parallel_tool_use") is True:
        made["parallel_tool_calls"] = False


def _tool(tool: Json, field: str) -> Json:
    if tool.get("type", "custom") != "custom":
        raise refusal(f"{field}.type", f"{tool['type']!r} cannot be translated for a provider of the {API} API")
    function: Json = {"name": text(tool.get("name"), f"{field}.name")}
    if tool.get("description"):
        function["description"] = tool["description"]
    function["parameters"] = an_object(tool.get("input_schema"), f"{field}.input_schema")
    return {"type": "function", "function": function}
