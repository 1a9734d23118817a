"""Chat templates, rendered as vLLM and transformers render them.

A template is a program that came with a model, or with a request where that is trusted: it runs in jinja2's immutable
sandbox, over values that cannot reach anything. How the template reads a message's content decides the shape in which
content is given to it: as one string, or as a list of parts (`content_format`). What fails in a template is a
`TemplateFault`, whatever it was.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from jinja2 import Template, TemplateError, ext, meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from jinja2.parser import Parser

    Message = dict[str, Any]

Format = Literal["string", "openai"]

_TAG: Final = "CONTINUE_FINAL_MESSAGE_TAG "  # as in transformers; text that holds it is cut there by both
# Parameters of transformers' apply_chat_template: taken by it, whether or not a template reads them.
_RENDERED: Final = frozenset({"tools", "documents", "add_generation_prompt", "continue_final_message"})
_NOT_RENDERED: Final = frozenset(  # they are about encoding
    {
        "conversation",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)
_REFUSED: Final = frozenset({"chat_template", "tokenize"})


class TemplateFault(Exception):
    """A template that cannot be compiled, or refused what it was given."""


class _Generation(ext.Extension):
    """`{% generation %}`: marks what the assistant wrote, for training; renders what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's interface

    def parse(self, parser: Parser) -> nodes.Node:
        """Take the block for its content."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """One compiled template."""

    source: str
    compiled: Template
    format: Format
    names: frozenset[str]  # variables that it reads, and those that engines give to any
    developer: bool  # it knows the role "developer"
    leading_system: bool  # it refuses system messages that do not come first

    @classmethod
    def compile(cls, source: str, strftime_now: Callable[[str], str]) -> ChatTemplate:
        """Make a template of its text; `strftime_now` formats the present time. Raises TemplateFault."""
        environment = _environment(strftime_now)
        try:
            tree = environment.parse(source)
            compiled = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise TemplateFault(f"the chat template is not valid: {error}") from error
        return cls(
            source=source,
            compiled=compiled,
            format=content_format(tree),
            names=frozenset(meta.find_undeclared_variables(tree) | _RENDERED) - _NOT_RENDERED,
            developer='"developer"' in source or "'developer'" in source,
            leading_system=_wants_system_first(compiled),
        )

    def render(
        self, messages: Sequence[Message], arguments: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> str:
        """Return the prompt. `arguments` are tools, documents, add_generation_prompt and whatever else was asked for.

        Raises TemplateFault.
        """
        if not messages:
            raise TemplateFault("there are no messages")
        if unexpected := _REFUSED & arguments.keys():
            raise TemplateFault(f"chat_template_kwargs cannot hold {', '.join(sorted(unexpected))}")
        given = {key: value for key, value in arguments.items() if key in self.names}
        goes_on = given.pop("continue_final_message", False)
        if goes_on and given.get("add_generation_prompt"):
            raise TemplateFault("continue_final_message excludes add_generation_prompt")
        values = {"tools": None, "documents": None, "add_generation_prompt": False, **special_tokens, **given}
        if not goes_on:
            return self._rendered(messages, values)
        field = goes_on if isinstance(goes_on, str) else "content"
        if field not in self.source:
            raise TemplateFault(f"continue_final_message: the template does not read {field}")
        tagged, final = _tagged(messages, field)
        return _cut(self._rendered(tagged, values), final)

    def _rendered(self, messages: Sequence[Message], values: dict[str, Any]) -> str:
        try:
            return self.compiled.render(messages=messages, **values)
        except Exception as error:  # a template is a program: it fails in any way
            raise TemplateFault(f"{type(error).__name__}: {error}") from error


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's own, quicker where a member of a dict is named: most that templates do."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return what `obj.attribute` is: a member of a dict, unless dicts have an attribute of that name."""
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return super().getattr(obj, attribute)


def _environment(strftime_now: Callable[[str], str]) -> ImmutableSandboxedEnvironment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass it by place or name
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    """JSON as it is, where jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tagged(messages: Sequence[Message], field: str) -> tuple[list[Message], str]:
    """Return the messages with the end of the last one's text marked, and that text."""
    last = dict(messages[-1])
    value = last.get(field)
    if isinstance(value, str):
        final = value
        last[field] = value + _TAG
    elif isinstance(value, list) and any("text" in part for part in value):
        at = max(place for place, part in enumerate(value) if "text" in part)
        final = value[at]["text"]
        last[field] = [*value[:at], {**value[at], "text": final + _TAG}, *value[at + 1 :]]
    else:
        raise TemplateFault(f"continue_final_message: the last message has no {field} to continue")
    return [*messages[:-1], last], final


def _cut(rendered: str, final: str) -> str:
    tag = _TAG.strip()
    if final.strip() not in rendered or tag not in rendered:
        raise TemplateFault("continue_final_message: the template leaves out the final message")
    at = rendered.rindex(tag)
    return rendered[:at] if rendered.startswith(_TAG, at) else rendered[:at].rstrip()


def _wants_system_first(compiled: Template) -> bool:
    """Try a conversation in which a system message comes later."""
    turns = [{"role": role, "content": "t"} for role in ("system", "user", "system", "user")]
    try:
        compiled.render(messages=turns, add_generation_prompt=False)
    except TemplateError:
        return True
    except Exception:  # noqa: BLE001 - it lacked something else
        return False
    return False


# ---- how a template reads contents


class _Unclear(Exception):
    """A template that takes messages apart in a way that is not followed: engines give it strings."""


def content_format(tree: nodes.Template) -> Format:
    """Tell in which form a template wants contents: "openai" if it walks over a content's parts, else "string"."""
    try:
        return "openai" if _walks_over_parts(tree) else "string"
    except _Unclear:
        return "string"


def _walks_over_parts(tree: nodes.Template) -> bool:
    messages = _aliases(tree, "messages")
    members = {_name(loop.target) for loop in tree.find_all(nodes.For) if _reads_any(loop.iter, messages)}
    in_macros: dict[int, set[str]] = {}  # loop -> parameters of its macro that are contents
    for macro in tree.find_all(nodes.Macro):
        contents = _content_parameters(tree, macro, members)
        for loop in macro.find_all(nodes.For):
            in_macros[id(loop)] = contents or in_macros.get(id(loop), set())
    for loop in tree.find_all(nodes.For):
        over = loop.iter
        named = over.name if isinstance(over, nodes.Name) else None
        if (
            _reads_any(over, members, "content")
            or (named is not None and named in in_macros.get(id(loop), ()))
            or (named == "content" and id(loop) not in in_macros)
        ):
            return bool(_name(loop.target))
    return False


def _aliases(tree: nodes.Template, first: str) -> set[str]:
    """Return `first` and the names that it, or a part of it, is assigned to."""
    names, waiting = {first}, deque([first])
    assignments = list(tree.find_all(nodes.Assign))
    while waiting:
        name = waiting.popleft()
        for one in assignments:
            if _reads(one.node, name) and (target := _name(one.target)) not in names:
                names.add(target)
                waiting.append(target)
    return names


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _Unclear
    return target.name


def _reads_any(node: nodes.Node, names: set[str], key: str | None = None) -> bool:
    return any(_reads(node, name, key) for name in names)


def _content_parameters(tree: nodes.Node, macro: nodes.Macro, members: set[str]) -> set[str]:
    """Return the parameters of `macro` that some call gives a message's content."""
    names = [argument.name for argument in macro.args]
    found: set[str] = set()
    for call in tree.find_all(nodes.Call):
        if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
            continue
        given = [*zip(names, call.args, strict=False), *((one.key, one.value) for one in call.kwargs)]
        found |= {name for name, value in given if name in names and _reads_any(value, members, "content")}
    return found


def _reads(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Tell whether `node` is the variable `name` (its member `key`), filtered, tested or sliced maybe."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return _reads(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _reads(node.node, name, key)
    if key is None:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
    if isinstance(node, nodes.Getitem):
        return _reads_name(node.node, name) and isinstance(node.arg, nodes.Const) and node.arg.value == key
    return isinstance(node, nodes.Getattr) and _reads_name(node.node, name) and node.attr == key


def _reads_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
