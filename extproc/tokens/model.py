"""One model's way from a request's body to token ids: its tokenizer, its chat templates, its special tokens.

Built from the files that come with a model (`Files`), whose contents the caller reads. What a template or a body does not
allow is a `Fault` with its reason: text blocks take the place of token ids then, and the engine tells the client.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import orjson
import tokenizers
from xxhash import xxh3_128_digest

from extproc.tokens import anthropic, bytelevel, conversation, responses
from extproc.tokens.chain import packed
from extproc.tokens.memo import Encoder
from extproc.tokens.template import ChatTemplate, TemplateFault
from extproc.types import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extproc.tokens.bytelevel import ByteLevel
    from extproc.tokens.chain import TokenIds
    from extproc.tokens.conversation import Chat
    from extproc.tokens.memo import Memo
    from extproc.types import InferenceRequest

_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OWN_RENDERERS: Final = (  # models whose prompts vLLM builds by code of its own, not by a template
    "gpt_oss",
    "deepseek_v32",
    "deepseek_v4",
    "kimi_k3",
    "kimi_audio",
    "cohere2_vision",
    "inkling",
)
_KEPT_TEMPLATES: Final = 16  # of requests that bring their own
_KEPT_OPENINGS: Final = 256
_MOST_BYTES: Final = 8 << 20  # of a body: two million tokens, or a few photographs
_MOST_MESSAGES: Final = 2000  # templates take 2 to 20 µs for each
_LONG: Final = frozenset({"tools", "documents"})  # arguments that do not change how an answer is opened
_BARE_IDS: Final = re.compile(rb"\s*\d+\s*(,|$)")
_PROBE: Final = "a"  # what special tokens are put around
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_BY_TEXT: Final = {Api.COMPLETIONS: "prompt", Api.EMBEDDINGS: "input"}


class Fault(Exception):
    """A request, or a model, whose token ids cannot be told; `reason` is a word for the metric."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Files:
    """What comes with a model, as text; only the first is needed."""

    tokenizer: str  # tokenizer.json
    tokenizer_config: str = "{}"
    special_tokens: str = "{}"  # special_tokens_map.json
    config: str = "{}"  # config.json
    templates: tuple[tuple[str, str], ...] = ()  # name, Jinja text; "default" is chat_template.jinja
    processor: str = ""  # chat_template.json's template, used where there are no tools


class Prompt(NamedTuple):
    """What is to be encoded, or has been: text with special tokens around it, or ids."""

    text: str
    ids: TokenIds | None  # the client's own
    special: bool  # special tokens are put around the text
    exact: bool  # the ids will be the engine's
    more: int = 0  # tokens of a batch's further prompts
    opening: int = 0  # tokens at its end that open the answer; the next turn may have others there


class Rendered(NamedTuple):
    """A chat as text."""

    text: str
    media: bool  # there is more than text in it
    opening: str  # its end, which opens the answer


class ModelTokenizer:
    """Encodes requests for one model. Used on the loop; `encode` of its encoder beside it, too."""

    def __init__(  # noqa: PLR0913 - time is an argument
        self,
        files: Files,
        *,
        memo: Memo,
        number: int,
        strftime_now: Callable[[str], str],
        trusts_templates: bool = False,
        defaults: Mapping[str, Any] | None = None,
        like: ModelTokenizer | None = None,
    ) -> None:
        """Take the files apart. Raises Fault for those that cannot be used.

        `trusts_templates`: requests may bring their own chat template, as the engine allows; `defaults`: the engine's
        default chat_template_kwargs; `like`: the one before, whose tokenizer serves on if only other files changed, as
        reading one of 128k tokens keeps the interpreter for half a second.
        """
        self._strftime_now = strftime_now
        self._trusts = trusts_templates
        self._defaults = dict(defaults or {})
        settings = _object(files.tokenizer_config, "tokenizer_config.json")
        self.digest = xxh3_128_digest(files.tokenizer.encode())
        same = like if like is not None and like.digest == self.digest else None
        self.tokenizer: tokenizers.Tokenizer = same.tokenizer if same is not None else _tokenizer(files.tokenizer)
        self.number: int = same.number if same is not None else number
        self.special_tokens = _special_tokens(settings, _object(files.special_tokens, "special_tokens_map.json"))
        self._renders = _object(files.config, "config.json").get("model_type") not in _OWN_RENDERERS
        sources = _templates(settings, files)
        self._sources = sources
        self._processor = files.processor
        self._compiled: OrderedDict[str, ChatTemplate] = OrderedDict()
        marks = "".join((*sources.values(), files.processor, *self.special_tokens.values()))
        document = _described(files.tokenizer)
        quick: ByteLevel | None = (
            same.encoder.quick if same is not None else bytelevel.build(files.tokenizer, self.tokenizer)
        )
        self.encoder: Encoder = Encoder(
            self.tokenizer, document, memo=memo, number=self.number, marks=marks, quick=quick
        )
        self._head, self._tail = _around(self.tokenizer, settings, self.special_tokens)
        self._no_thinking: str | None = None
        self._openings: dict[tuple[str, ...], str] = {}
        self._opening_tokens: dict[str, int] = {}

    def prompt(self, request: InferenceRequest) -> Prompt:
        """Return what the engine will encode for `request`. Raises Fault."""
        if len(request.body) > _MOST_BYTES:
            raise Fault("too-long", "the body is too long to be taken apart while others wait")
        body = _object(request.body, "the body")
        if request.api is Api.NATIVE:
            return self._native(request.path, body)
        if (key := _BY_TEXT.get(request.api)) is not None and body.get(key) is not None:
            if body.get("suffix") or body.get("prompt_embeds"):
                raise Fault("unsupported", "suffix and prompt_embeds are put together by the engine alone")
            return self._texts(body[key], body)
        try:
            return self._chat(request.api, body)
        except TemplateFault as fault:
            raise Fault("template", str(fault)) from fault
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            # A body is whatever a client sent. What does not have the API's shape, the engine answers with a 400.
            raise Fault("body", f"{type(error).__name__}: {error}") from error

    def around(self, ids: TokenIds, prompt: Prompt) -> TokenIds:
        """Return `ids` with the special tokens that belong around them."""
        if not prompt.special or not (len(self._head) or len(self._tail)):
            return ids
        return np.concatenate((self._head, ids, self._tail))

    def rendered(self, chat: Chat) -> Rendered:
        """Return the prompt for a chat. Raises TemplateFault, Fault."""
        if not self._renders:
            raise Fault("unsupported", "the engine builds this model's chat prompts by code of its own")
        if len(chat.messages) > _MOST_MESSAGES:
            raise Fault("too-long", f"there are more than {_MOST_MESSAGES} messages")
        template = self._template(chat)
        messages, media = conversation.conversation(chat.messages, template)
        arguments = {**self._defaults, **({"tools": chat.tools} if chat.tools is not None else {}), **chat.arguments}
        text = template.render(messages, arguments, self.special_tokens)
        opening = self._opening(template, arguments) if arguments.get("add_generation_prompt") else ""
        return Rendered(text, media, opening if text.endswith(opening) else "")

    def _chat(self, api: Api, body: dict[str, Any]) -> Prompt:
        if api is Api.RESPONSES:
            asked = responses.chat(body)
        elif api is Api.MESSAGES:
            template = self._template(conversation.Chat([], None, {}))
            asked = anthropic.chat(body, leading_system=template.leading_system, no_thinking=self._without_thinking())
        else:
            asked = conversation.chat(body)
        text, media, opening = self.rendered(asked)
        special = body.get("add_special_tokens") is True or api is Api.RESPONSES
        exact = not media and not body.get("truncate_prompt_tokens")
        if opening not in self._opening_tokens:
            if len(self._opening_tokens) >= _KEPT_OPENINGS:
                self._opening_tokens.clear()
            self._opening_tokens[opening] = len(self.encoder.ids(opening))
        return Prompt(text, None, special, exact, opening=self._opening_tokens[opening])

    def _native(self, path: str, body: dict[str, Any]) -> Prompt:
        if path == "/generate":
            given = body.get("input_ids")
            return self._texts(given if given is not None else body.get("text"), body)
        raise Fault("unsupported", f"{path} is put together by the engine alone")

    def _texts(self, given: Any, body: dict[str, Any]) -> Prompt:
        """Return the first of the prompts: text or ids, one or a list of them."""
        special = body.get("add_special_tokens") is not False
        exact = not body.get("truncate_prompt_tokens")
        if isinstance(given, str):
            return Prompt(given, None, special, exact)
        if not isinstance(given, list) or not given:
            raise Fault("body", "expected a prompt")
        if isinstance(given[0], int):
            return Prompt("", _ids(given), special=False, exact=exact)
        rest = len(given) - 1
        if isinstance(given[0], list):
            if not all(isinstance(one, list) for one in given):
                raise Fault("body", "expected lists of token ids")
            return Prompt("", _ids(given[0]), False, exact and not rest, sum(map(len, given[1:])))
        if not all(isinstance(one, str) for one in given):
            raise Fault("body", "expected strings or token ids")
        return Prompt(given[0], None, special, exact and not rest, sum(-(-len(one) // 4) for one in given[1:]))

    def _template(self, chat: Chat) -> ChatTemplate:
        """Return the template that the engine would choose: the request's, the processor's, one by name."""
        source = chat.template
        if source is not None:
            if not self._trusts:
                raise Fault("untrusted", "the request brings its own chat template")
            source = self._sources.get(source, source)
        elif chat.tools is None and self._processor:
            source = self._processor
        elif chat.tools is not None and "tool_use" in self._sources:
            source = self._sources["tool_use"]
        else:
            source = self._sources.get("default")
        if source is None:
            raise Fault("no-template", "the model has no chat template")
        template = self._compiled.get(source)
        if template is None:
            template = self._compiled[source] = ChatTemplate.compile(source, self._strftime_now)
            if len(self._compiled) > _KEPT_TEMPLATES:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(source)
        return template

    def _opening(self, template: ChatTemplate, arguments: Mapping[str, Any]) -> str:
        """Return what the template puts behind the messages to open the answer."""
        key = (template.source, *(f"{name}={arguments[name]!r}" for name in sorted(arguments) if name not in _LONG))
        opening = self._openings.get(key)
        if opening is None:
            short = {name: value for name, value in arguments.items() if name not in _LONG}
            messages = conversation.conversation([{"role": "user", "content": "Hi"}], template).messages
            try:
                whole, without = (
                    template.render(messages, {**short, "add_generation_prompt": asked}, self.special_tokens)
                    for asked in (True, False)
                )
            except TemplateFault:  # it wants more than this
                whole = without = ""
            opening = whole.removeprefix(without) if whole.startswith(without) else ""
            if len(self._openings) >= _KEPT_OPENINGS:
                self._openings.clear()
            self._openings[key] = opening
        return opening

    def _without_thinking(self) -> str:
        """Return the reasoning effort that switches thinking off: "low" where "none" changes nothing, as in vLLM."""
        if self._no_thinking is None:
            probes = [self._probe(effort) for effort in ("none", *_EFFORTS)]
            self._no_thinking = "low" if probes[0] is None or probes[0] in probes[1:] else "none"
        return self._no_thinking

    def _probe(self, effort: str) -> str | None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "reasoning_effort": effort}
        try:
            return self.rendered(conversation.chat(body)).text
        except TemplateFault:
            return None


def bare_ids(request: InferenceRequest) -> Prompt | None:
    """Return a prompt that the client sent as token ids, which needs no tokenizer; None for any other."""
    if request.api is not Api.COMPLETIONS or not _BARE_IDS.match(request.prefix):
        return None
    try:
        body = _object(request.body, "the body")
        given = body.get("prompt")
        if not isinstance(given, list) or body.get("suffix") or body.get("prompt_embeds"):
            return None
        return Prompt("", _ids(given), special=False, exact=not body.get("truncate_prompt_tokens"))
    except Fault:
        return None


class _Algorithm(msgspec.Struct):
    """The model of a tokenizer.json, without its vocabulary."""

    type: str = "BPE"
    dropout: float | None = None


class _Document(msgspec.Struct):
    """What has to be known of a tokenizer.json beside what the library makes of it: the rest is long."""

    added_tokens: list[dict[str, Any]] | None = None
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    model: _Algorithm = msgspec.field(default_factory=_Algorithm)


def _described(text: str) -> dict[str, Any]:
    try:
        described: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(text, type=_Document))
    except msgspec.MsgspecError as error:
        raise Fault("broken", f"tokenizer.json cannot be used: {error}") from error
    return described


def _tokenizer(text: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise Fault("broken", f"tokenizer.json cannot be used: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _object(text: str | bytes, name: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Fault("broken", f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise Fault("broken", f"{name} is not an object")
    return value


def _ids(given: list[Any]) -> TokenIds:
    if not all(type(one) is int for one in given):
        raise Fault("body", "token ids must be whole numbers")
    try:
        return packed(given)
    except ValueError as error:
        raise Fault("body", str(error)) from error


def _special_tokens(settings: Mapping[str, Any], special: Mapping[str, Any]) -> dict[str, str]:
    """Return the named tokens that templates may use: bos_token and its like."""
    found: dict[str, str] = {}
    for name in _NAMED_TOKENS:
        value = settings.get(name)
        if value is None:
            value = special.get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def _templates(settings: Mapping[str, Any], files: Files) -> dict[str, str]:
    """Return the chat templates by name: files of their own go before those in tokenizer_config.json."""
    if files.templates:
        return dict(files.templates)
    given = settings.get("chat_template")
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list):
        return {str(one.get("name")): str(one.get("template")) for one in given if isinstance(one, dict)}
    return {}


def _around(
    tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any], special: Mapping[str, str]
) -> tuple[TokenIds, TokenIds]:
    """Return the ids that the tokenizer puts before and after a text when asked for special tokens."""
    if "add_bos_token" in settings or "add_eos_token" in settings:  # transformers puts a post-processor of its own then
        bos, eos = (
            tokenizer.token_to_id(special.get(f"{name}_token", "")) if settings.get(f"add_{name}_token") else None
            for name in ("bos", "eos")
        )
        return packed([] if bos is None else [bos]), packed([] if eos is None else [eos])
    bare = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    full = tokenizer.encode(_PROBE, add_special_tokens=True).ids
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return packed(full[:at]), packed(full[at + len(bare) :])
    raise Fault("unsupported", "the tokenizer changes texts when special tokens are asked for")
