"""A request of /v1/chat/completions as one of /v1/messages.

What Anthropic's API cannot be told is refused, and the message names the field. Passed over are hints that change no answer's
meaning: DROPPED, and within messages `name`, `annotations`, and the reasoning of earlier answers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from extproc.providers import fields
from extproc.providers.fields import Json, an_object, objects, refusal, text

if TYPE_CHECKING:
    from collections.abc import Iterator

API: Final = "Anthropic"
# How answers are stored, priced, cached or sped up; `seed` and `strict` are best effort where they exist.
DROPPED: Final = (
    "cache_salt",
    "metadata",
    "prediction",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "seed",
    "service_tier",
    "store",
)
_READ: Final = (
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "modalities",
    "model",
    "n",
    "parallel_tool_calls",
    "presence_penalty",
    "response_format",
    "safety_identifier",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "user",
)
# Fields that say nothing with one of these values, and cannot be said with another.
_NOTHING: Final[dict[str, tuple[Any, ...]]] = {
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "top_logprobs": (0,),
}
_HOTTEST: Final = 1  # Anthropic's scale ends where OpenAI's goes on to 2
_DATA_URL: Final = re.compile(r"data:(?P<type>[^;,]+)(?:;[^;,]+)*;base64,(?P<data>.*)", re.DOTALL)


def translated(body: Json, *, model: str, max_tokens: int) -> Json:
    """Return the request; `max_tokens` bounds the answer where the client does not. Raises BadRequest."""
    fields.known(body, (*_READ, *DROPPED), API)
    for key, values in _NOTHING.items():
        if body.get(key) is not None and body[key] not in values:
            raise refusal(
                key, f"{fields.encode(body[key])[:80].decode()} cannot be asked of a provider of the {API} API"
            )
    system, messages = _conversation(objects(body.get("messages"), "messages"))
    made: Json = {"model": model, "max_tokens": _bound(body, max_tokens), "messages": messages}
    if system:
        made["system"] = system
    fields.copied(body, made, {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"})
    temperature = body.get("temperature")
    if isinstance(temperature, int | float) and temperature > _HOTTEST:
        raise refusal("temperature", f"at most 1 can be asked of a provider of the {API} API")
    if body.get("stream"):
        made["stream"] = True
    stop = body.get("stop")
    if stop is not None:
        made["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    user = body.get("safety_identifier") or body.get("user")
    if user:
        made["metadata"] = {"user_id": text(user, "user")}
    _tools(body, made)
    return made


def _bound(body: Json, otherwise: int) -> int:
    for key in ("max_completion_tokens", "max_tokens"):
        if body.get(key) is not None:
            return int(body[key])
    return otherwise


# ---- messages


def _conversation(given: list[Json]) -> tuple[list[Json], list[Json]]:
    """Return the system prompt's blocks and the turns; results of tools belong to the user's turn that follows."""
    system: list[Json] = []
    turns: list[Json] = []
    for number, message in enumerate(given):
        field = f"messages[{number}]"
        role = message.get("role")
        if role in ("system", "developer"):
            if turns:
                raise refusal(
                    f"{field}.role", f"{role!r} after other messages cannot be told to a provider of the {API} API"
                )
            system += _blocks(message.get("content"), f"{field}.content")
        elif role == "user":
            _turn(turns, "user", _blocks(message.get("content"), f"{field}.content"))
        elif role == "tool":
            _turn(turns, "user", [_result(message, field)])
        elif role == "assistant":
            _turn(turns, "assistant", list(_said(message, field)))
        else:
            raise refusal(f"{field}.role", f"{role!r} is not known to a provider of the {API} API")
    if not turns:
        raise refusal("messages", "a user's message is required")
    return system, turns


def _turn(turns: list[Json], role: str, blocks: list[Json]) -> None:
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    elif blocks:
        turns.append({"role": role, "content": blocks})


def _blocks(content: Any, field: str) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [_block(part, f"{field}[{number}]") for number, part in enumerate(objects(content, field))]


def _block(part: Json, field: str) -> Json:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": text(part.get("text"), f"{field}.text")}
    if kind == "image_url":
        return {"type": "image", "source": _image(an_object(part.get("image_url"), f"{field}.image_url"), field)}
    raise refusal(f"{field}.type", f"{kind!r} cannot be translated for a provider of the {API} API")


def _image(image: Json, field: str) -> Json:
    url = text(image.get("url"), f"{field}.image_url.url")
    found = _DATA_URL.fullmatch(url)
    if found is not None:
        return {"type": "base64", "media_type": found["type"], "data": found["data"]}
    if url.startswith("data:"):
        raise refusal(f"{field}.image_url.url", "a data URL must be in base64")
    return {"type": "url", "url": url}


def _result(message: Json, field: str) -> Json:
    call = text(message.get("tool_call_id"), f"{field}.tool_call_id")
    content = message.get("content")
    told = content if isinstance(content, str) else _blocks(content, f"{field}.content")
    return {"type": "tool_result", "tool_use_id": call, "content": told}


def _said(message: Json, field: str) -> Iterator[Json]:
    if message.get("function_call") is not None:
        raise refusal(f"{field}.function_call", "is out of date: write tool_calls")
    if message.get("audio") is not None:
        raise refusal(f"{field}.audio", f"cannot be translated for a provider of the {API} API")
    content = message.get("content")
    if isinstance(content, list):
        parts = objects(content, f"{field}.content")
        content = [
            {"type": "text", "text": part.get("refusal")} if part.get("type") == "refusal" else part for part in parts
        ]
    if content is not None:
        yield from _blocks(content, f"{field}.content")
    if message.get("refusal"):
        yield {"type": "text", "text": text(message["refusal"], f"{field}.refusal")}
    for number, call in enumerate(objects(message.get("tool_calls") or [], f"{field}.tool_calls")):
        yield _call(call, f"{field}.tool_calls[{number}]")


def _call(call: Json, field: str) -> Json:
    function = an_object(call.get("function"), f"{field}.function")
    arguments = function.get("arguments") or "{}"
    try:
        told = fields.decoded(text(arguments, f"{field}.function.arguments"))
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise refusal(f"{field}.function.arguments", "must be a JSON object, as a string")
    return {
        "type": "tool_use",
        "id": text(call.get("id"), f"{field}.id"),
        "name": text(function.get("name"), f"{field}.function.name"),
        "input": told,
    }


# ---- tools


def _tools(body: Json, made: Json) -> None:
    tools = [_tool(one, f"tools[{number}]") for number, one in enumerate(objects(body.get("tools") or [], "tools"))]
    choice = _choice(body.get("tool_choice"))
    if not tools:
        if choice is not None and choice["type"] not in ("auto", "none"):
            raise refusal("tool_choice", "there are no tools")
        return
    made["tools"] = tools
    if body.get("parallel_tool_calls") is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    if choice is not None:
        made["tool_choice"] = choice


def _tool(tool: Json, field: str) -> Json:
    if tool.get("type") != "function":
        raise refusal(f"{field}.type", f"{tool.get('type')!r} cannot be translated for a provider of the {API} API")
    function = an_object(tool.get("function"), f"{field}.function")
    made: Json = {"name": text(function.get("name"), f"{field}.function.name")}
    if function.get("description"):
        made["description"] = function["description"]
    made["input_schema"] = function.get("parameters") or {"type": "object", "properties": {}}
    return made


def _choice(choice: Any) -> Json | None:
    if choice is None:
        return None
    if isinstance(choice, str) and choice in ("auto", "none", "required"):
        return {"type": "any" if choice == "required" else choice}
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = an_object(choice.get("function"), "tool_choice.function").get("name")
        return {"type": "tool", "name": text(name, "tool_choice.function.name")}
    raise refusal("tool_choice", f"cannot be translated for a provider of the {API} API")
