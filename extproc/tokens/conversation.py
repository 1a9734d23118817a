"""A chat request as a template sees it: messages, tools and arguments in vLLM's form.

Contents become one string or a list of parts, as the template wants them; the arguments of tool calls become objects; the
role "developer" becomes "system" for templates that do not know it. Parts that are no text (images, audio, ...) stand in
the text as a digest of their content: prompts that differ in an image differ from that place on, though the ids from
there on are not the engine's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from xxhash import xxh3_128_hexdigest

from extproc.tokens.template import TemplateFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from extproc.tokens.template import ChatTemplate, Format, Message

_TEXTS: Final = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# Keys of a part that mean something; what else a client puts there (cache_control, ...) reaches the template.
_PART_KEYS: Final = frozenset(
    {
        "type",
        "text",
        "refusal",
        "thinking",
        "closed",
        "name",
        "uuid",
        "file",
        "detail",
        "data",
        "image_url",
        "input_image",
        "image_pil",
        "image_embeds",
        "audio_url",
        "input_audio",
        "audio_embeds",
        "video_url",
        "video_embeds",
    }
)
_SKIPPED_EMPTY: Final = frozenset({"text", "refusal"})
_MEDIA: Final = (
    "image_url",
    "input_image",
    "image_pil",
    "image_embeds",
    "audio_url",
    "input_audio",
    "audio_embeds",
    "video_url",
    "video_embeds",
    "prompt_embeds",
)
_BILLING: Final = "x-anthropic-billing-header"  # a value that changes with each request, which engines leave out
_UNSET: Final = (None, "auto")
_FUNCTION: Final = ("name", "description", "parameters")
_FUNCTION_IF_SET: Final = ("strict", "defer_loading")


class Chat(NamedTuple):
    """What a chat request asks to be rendered."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    arguments: dict[str, Any]
    template: str | None = None  # the request's own


class Conversation(NamedTuple):
    """Messages as a template takes them."""

    messages: list[Message]
    media: bool  # some part is no text


def chat(body: Mapping[str, Any]) -> Chat:
    """Read a body of /v1/chat/completions. Raises TemplateFault for what an engine would refuse."""
    effort = body.get("reasoning_effort")
    own = {
        "add_generation_prompt": _flag(body, "add_generation_prompt", default=True),
        "continue_final_message": _flag(body, "continue_final_message", default=False),
        "documents": body.get("documents"),
        "reasoning_effort": effort,
    }
    if own["continue_final_message"] and body.get("add_generation_prompt") is None:
        own["add_generation_prompt"] = True  # the default stays, and the two exclude each other
    return Chat(
        messages=[_typed(one) for one in members(body.get("messages"), "messages")],
        tools=tools(body.get("tools")),
        arguments=arguments(body.get("chat_template_kwargs"), own),
        template=body.get("chat_template") or None,
    )


def arguments(asked: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `chat_template_kwargs` with what the request's own fields say, which count where they are set."""
    if asked is not None and not isinstance(asked, dict):
        raise TemplateFault("chat_template_kwargs: expected an object")
    merged = dict(asked or {})
    effort = own.get("reasoning_effort")
    if effort is not None and "enable_thinking" not in merged:
        merged["enable_thinking"] = effort != "none"
    merged.update({key: value for key, value in own.items() if value not in _UNSET})
    return merged


def tools(given: Any) -> list[dict[str, Any]] | None:
    """Return tools with the keys that engines give to templates, in their order."""
    if given is None:
        return None
    made = []
    for tool in members(given, "tools"):
        function = tool.get("function")
        if not isinstance(function, dict):
            raise TemplateFault("tools: expected functions")
        entry: dict[str, Any] = {"type": tool.get("type", "function"), "function": function_definition(function)}
        if (deferred := tool.get("defer_loading")) is not None:
            entry["defer_loading"] = deferred
            entry["function"].setdefault("defer_loading", deferred)
        made.append(entry)
    return made


def function_definition(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function's definition: what is not given is null, but for what is left out then."""
    made = {key: function.get(key) for key in _FUNCTION}
    made.update({key: function[key] for key in _FUNCTION_IF_SET if function.get(key) is not None})
    return made


def conversation(messages: list[Message], template: ChatTemplate) -> Conversation:
    """Return the messages as `template` takes them. Raises TemplateFault for what an engine would refuse."""
    contents = _Contents(template.format)
    made = [_message(one, contents) for one in messages]
    if not template.developer and any(one["role"] == "developer" for one in made):
        made = _one_system_message([_as_system(one) for one in made])
    return Conversation(made, contents.media)


def members(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of objects. Raises TemplateFault if it is none."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise TemplateFault(f"{name}: expected an array of objects")
    return value


class _Contents:
    """Turns contents into the form that a template wants."""

    def __init__(self, form: Format) -> None:
        self.media = False
        self._parts = form == "openai"

    def of(self, message: Message) -> Any:
        """Return the message's content: a string, or a list of parts."""
        content = message.get("content")
        if isinstance(content, str):
            if message["role"] != "system" or not content.startswith(_BILLING):
                return [{"type": "text", "text": content}] if self._parts else content
            content = [{"type": "text", "text": content}]
        parts = list(_without_billing(content) if message["role"] == "system" else content or ())
        if self._parts:
            return [made for part in parts if (made := self._part(part))]
        shown = [text for part in parts if (text := self._text(part))]
        shown.sort(key=lambda text: not text.startswith("\0"))  # engines put what is no text first
        return "\n".join(shown)

    def _part(self, part: Any) -> dict[str, Any] | None:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        if not isinstance(part, dict):
            raise TemplateFault("a content part is neither a string nor an object")
        kind = part.get("type")
        if kind == "tool_reference":
            return {"type": kind, "name": part.get("name")}
        if kind in _TEXTS:
            text = part.get(_TEXTS[kind])
            if text is None and kind in _SKIPPED_EMPTY:
                return None
            return {"type": "text", "text": text, **{key: part[key] for key in part if key not in _PART_KEYS}}
        return {"type": "text", "text": self._digest(part)}

    def _text(self, part: Any) -> str | None:
        if isinstance(part, str):
            return part
        if not isinstance(part, dict):
            raise TemplateFault("a content part is neither a string nor an object")
        kind = part.get("type")
        if kind in _TEXTS or kind == "tool_reference":
            text: Any = part.get(_TEXTS.get(kind, "name"))
            if text is None or isinstance(text, str):
                return text
            raise TemplateFault(f"a content part of type {kind} has no text")
        return self._digest(part)

    def _digest(self, part: Mapping[str, Any]) -> str:
        kind = next((name for name in _MEDIA if name in (part.get("type"), *part)), None)
        if kind is None:
            raise TemplateFault(f"unknown content part type {part.get('type')!r}")
        self.media = True
        return f"\0<{kind} {xxh3_128_hexdigest(orjson.dumps(part.get(kind), option=orjson.OPT_SORT_KEYS))}>"


def _message(message: Message, contents: _Contents) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise TemplateFault("a message has no role")
    made: Message = {"role": role, "content": contents.of(message)}
    if role == "assistant":
        made.update(_said(message))
    elif role == "tool":
        made.update(_result(message, made["content"]))
    elif role == "developer":
        made["tools"] = message.get("tools")
    made.update({key: message[key] for key in ("name", "task") if isinstance(message.get(key), str)})
    return made


def _said(message: Message) -> Message:
    """Return what an assistant's message has beside its content: calls of tools, reasoning."""
    made: Message = {}
    if calls := message.get("tool_calls"):
        made["tool_calls"] = [_call(one) for one in members(calls, "tool_calls")]
    reasoning = message.get("reasoning")
    if reasoning is None:
        reasoning = message.get("reasoning_content")
    if reasoning is not None:
        made["reasoning"] = made["reasoning_content"] = reasoning
    return made


def _result(message: Message, content: Any) -> Message:
    """Return what a tool's result has: text as one string in every format, and the call that it answers."""
    made: Message = {"tool_call_id": message["tool_call_id"]} if "tool_call_id" in message else {}
    if isinstance(content, list) and all(one["type"] == "text" for one in content):
        made["content"] = "\n".join(one["text"] for one in content)
    return made


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call with its arguments as an object: what is none is an empty one."""
    function = call.get("function")
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise TemplateFault("tool_calls: expected functions")
    given = function.get("arguments")
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
        except ValueError:
            given = None
    return {**call, "function": {**function, "arguments": given if isinstance(given, dict) else {}}}


def _typed(message: Message) -> Message:
    """Return a message of a chat body with the keys of its tool calls in the order that engines' types have."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return {**message, "tool_calls": [_in_order(_typed_function(call), ("id", "function", "type")) for call in calls]}


def _typed_function(call: Any) -> Any:
    function = call.get("function")
    return {**call, "function": _in_order(function, ("arguments", "name"))} if isinstance(function, dict) else call


def _in_order(value: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Return `value` with these keys first."""
    return {**{key: value[key] for key in keys if key in value}, **value}


def _without_billing(content: Any) -> Iterator[Any]:
    """Yield the parts of a system message without the line that changes with each request."""
    for part in content or ():
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str) or not text.startswith(_BILLING):
            yield part
        elif rest := text.partition("\n")[2]:
            yield rest if isinstance(part, str) else {**part, "text": rest}


def _as_system(message: Message) -> Message:
    if message["role"] != "developer":
        return message
    return {key: value for key, value in message.items() if key != "tools"} | {"role": "system"}


def _one_system_message(messages: list[Message]) -> list[Message]:
    """Return the messages with all of role "system" made one, which comes first."""
    system = [one for one in messages if one["role"] == "system"]
    if len(system) < 2 and (not system or messages[0]["role"] == "system"):  # noqa: PLR2004 - more than one
        return messages
    texts = [_as_text(one["content"]) for one in system]
    rest = [one for one in messages if one["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(text for text in texts if text)}, *rest]


def _as_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if "text" in part)


def _flag(body: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = body.get(name)
    return default if value is None else bool(value)
