"""Bodies of /v1/messages (Anthropic) as the chat requests that vLLM makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from extproc.tokens import conversation
from extproc.tokens.conversation import Chat
from extproc.tokens.template import TemplateFault

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from extproc.tokens.template import Message

_BILLING: Final = "x-anthropic-billing-header"
_NO_PART: Final = frozenset({"thinking", "redacted_thinking", "tool_use", "tool_result", "tool_reference"})


def chat(body: Mapping[str, Any], *, leading_system: bool, no_thinking: str) -> Chat:
    """Return the chat request for `body`.

    `leading_system`: the template refuses system messages that come later, so they are put first; `no_thinking`: the
    reasoning effort by which thinking is switched off in the template. Raises TemplateFault.
    """
    given = conversation.members(body.get("messages"), "messages")
    messages: list[Message] = []
    system = list(_texts(body.get("system")))
    if leading_system:
        system += [
            text for one in given if one.get("role") == "system" and (text := "".join(_texts(one.get("content"))))
        ]
    if system:
        messages.append({"role": "system", "content": "".join(system)})
    for message in given:
        if message.get("role") != "system":
            _take(message, messages)
        elif not leading_system and (text := "".join(_texts(message.get("content")))):
            messages.append({"role": "system", "content": text})
    effort = (body.get("output_config") or {}).get("effort")
    if (body.get("thinking") or {}).get("type") == "disabled":
        effort = no_thinking
    own = {"add_generation_prompt": True, "continue_final_message": False, "reasoning_effort": effort}
    return Chat(messages, _tools(body), conversation.arguments(body.get("chat_template_kwargs"), own))


def _texts(content: Any) -> Iterable[str]:
    """Yield the texts of a system prompt, without the one that changes with each request."""
    for block in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
        text = block.get("text") if block.get("type") == "text" else None
        if text and not text.startswith(_BILLING):
            yield text


def _take(message: Message, messages: list[Message]) -> None:
    """Append what `message` becomes: results of tools are messages of their own, before it."""
    made: Message = {"role": message.get("role")}
    content = message.get("content")
    if isinstance(content, str):
        made["content"] = content
    else:
        _take_blocks(conversation.members(content, "content"), made, messages)
    if made["role"] != "user" or "content" in made:
        messages.append(made)


def _take_blocks(blocks: list[dict[str, Any]], made: Message, messages: list[Message]) -> None:
    parts = [part for block in blocks if (part := _part(block, made["role"]))]
    if made["role"] == "user":
        for block in blocks:
            messages += _results(block) if block.get("type") == "tool_result" else ()
    reasoning = [block["thinking"] for block in blocks if block.get("type") == "thinking" and block.get("thinking")]
    if reasoning or any(block.get("type") == "thinking" and block.get("thinking") == "" for block in blocks):
        made["reasoning"] = "".join(reasoning)
    if calls := [_call(block) for block in blocks if block.get("type") == "tool_use"]:
        made["tool_calls"] = calls
    if parts:
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        made["content"] = parts[0]["text"] if alone else parts


def _part(block: Mapping[str, Any], role: str) -> dict[str, Any] | None:
    """Return the part of a content that a block becomes; None if it becomes something else, or nothing."""
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": block["text"]} if block.get("text") else None
    if kind == "image":
        return _image(block["source"]) if block.get("source") else None
    if kind == "tool_result" and role != "user":
        content = block.get("content")
        return {"type": "text", "text": f"Tool result: {str(content) if content else ''}"}
    if kind not in _NO_PART:
        raise TemplateFault(f"unknown content block {kind!r}")
    return None


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"arguments": json.dumps(block.get("input") or {}), "name": block.get("name") or ""}
    return {"id": block.get("id") or "call", "function": function, "type": "function"}


def _results(block: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a tool's result: its text, its images, the tools that it names."""
    content = block.get("content")
    call = block.get("tool_use_id") or ""
    items = [one for one in content if isinstance(one, dict)] if isinstance(content, list) else []
    text = (
        content if isinstance(content, str) else "\n".join(i.get("text", "") for i in items if i.get("type") == "text")
    )
    images = [_image(one.get("source") or {}) for one in items if one.get("type") == "image"]
    names = [one.get("tool_name") or one.get("name") for one in items if one.get("type") == "tool_reference"]
    made: list[Message] = [{"role": "tool", "tool_call_id": call, "content": text or ""}]
    if images := [one for one in images if one["image_url"]["url"]]:
        made.append({"role": "user", "content": images})
    if references := [{"type": "tool_reference", "name": name} for name in names if name]:
        made.append({"role": "tool", "tool_call_id": call, "content": references})
    return made


def _image(source: Mapping[str, Any]) -> dict[str, Any]:
    if source.get("type") == "url":
        url = source.get("url", "")
    else:
        url = f"data:{source.get('media_type', 'image/jpeg')};base64,{source.get('data', '')}"
    return {"type": "image_url", "image_url": {"url": url}}


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the tools in effect at the end: messages may add tools and take them away."""
    given = body.get("tools")
    declared = None if given is None else conversation.members(given, "tools")
    changes = [
        block
        for message in body["messages"]
        if isinstance(message.get("content"), list)
        for block in message["content"]
        if block.get("type") in ("tool_addition", "tool_removal")
    ]
    if changes:
        raise TemplateFault("tools that change within the conversation are not followed")
    return None if declared is None else [_tool(one) for one in declared]


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise TemplateFault("tools: input_schema is missing")
    schema = schema if "type" in schema else {**schema, "type": "object"}
    return {"type": "function", "function": conversation.function_definition({**tool, "parameters": schema})}
