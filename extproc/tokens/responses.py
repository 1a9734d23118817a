"""Bodies of /v1/responses as the chat requests that vLLM makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from extproc.tokens import conversation
from extproc.tokens.conversation import Chat
from extproc.tokens.template import TemplateFault

if TYPE_CHECKING:
    from collections.abc import Mapping

    from extproc.tokens.template import Message

_UNFINISHED: Final = ("in_progress", "incomplete")
_OUTPUTS: Final = ("function_call_output", "custom_tool_call_output")


def chat(body: Mapping[str, Any]) -> Chat:
    """Return the chat request for `body`. Raises TemplateFault, also where the engine alone knows what came before."""
    if body.get("previous_response_id"):
        raise TemplateFault("previous_response_id: the engine alone knows what came before")
    messages: list[Message] = []
    if instructions := body.get("instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    goes_on = False
    if isinstance(given, str):
        messages.append({"role": "user", "content": given})
    else:
        items = conversation.members(given, "input")
        goes_on = bool(items) and _unfinished(items[-1])
        seen: list[Message] = []
        for item in items:
            _take(item, seen)
        messages += seen
    own = {
        "add_generation_prompt": not goes_on,
        "continue_final_message": goes_on,
        "reasoning_effort": (body.get("reasoning") or {}).get("effort"),
    }
    return Chat(messages, _tools(body.get("tools")), conversation.arguments(body.get("chat_template_kwargs"), own))


def _unfinished(item: Mapping[str, Any]) -> bool:
    return item.get("type", "message") in ("message", "reasoning") and item.get("status") in _UNFINISHED


def _take(item: dict[str, Any], messages: list[Message]) -> None:
    """Append the item's message, or add it to the assistant's message before it: text, reasoning and calls are one."""
    last = messages[-1] if messages and messages[-1].get("role") == "assistant" else None
    kind = item.get("type")
    if kind in ("function_call", "custom_tool_call"):
        call = _call(item)
        if last is not None:
            last.setdefault("tool_calls", []).append(call)
        else:
            messages.append({"role": "assistant", "tool_calls": [call]})
    elif kind == "reasoning":
        _add(messages, last, "reasoning", _reasoning(item))
    elif kind in _OUTPUTS:
        messages.append({"role": "tool", "content": item.get("output"), "tool_call_id": item.get("call_id")})
    elif item.get("role") == "assistant" and (text := _first_text(item.get("content"))) is not None:
        _add(messages, last, "content", text)
    elif "role" in item:
        messages.append({key: value for key, value in item.items() if key not in ("type", "id", "status")})
    else:
        raise TemplateFault(f"unknown input item {kind!r}")


def _add(messages: list[Message], last: Message | None, key: str, value: str) -> None:
    if last is not None and last.get(key) is None:
        last[key] = value
    else:
        messages.append({"role": "assistant", key: value})


def _call(item: Mapping[str, Any]) -> dict[str, Any]:
    name, given = item.get("name"), item.get("arguments")
    if item.get("type") == "custom_tool_call":
        given = json.dumps({"input": item.get("input") or ""}, ensure_ascii=False)
    elif item.get("namespace"):
        name = f"{item['namespace']}__{name}"
    return {"id": item.get("call_id"), "function": {"name": name, "arguments": given}, "type": "function"}


def _reasoning(item: Mapping[str, Any]) -> str:
    if item.get("encrypted_content"):
        raise TemplateFault("encrypted reasoning cannot be read")
    parts = item.get("content") or item.get("summary") or ()
    return next((str(part.get("text")) for part in parts), "")


def _first_text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    return content[0].get("text") if isinstance(content, list) and content else None


def _tools(given: Any) -> list[dict[str, Any]] | None:
    """Return the functions among the tools; the engine serves others itself, or not at all."""
    if not given:
        return None
    made = []
    for tool in conversation.members(given, "tools"):
        if tool.get("type") == "function":
            made.append({"type": "function", "function": conversation.function_definition(tool)})
        elif tool.get("type") in ("namespace", "custom"):
            raise TemplateFault(f"tools of type {tool['type']} are put into words by the engine alone")
    return made
