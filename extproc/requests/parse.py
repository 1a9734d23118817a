"""One HTTP request -> one `InferenceRequest`, decoded no further than placing it needs.

Owns the checks that decide whether a body can be placed: JSON, its encoding, the model, the types of the keys read here.
What the messages say is the engine's business: they stay raw bytes. A key that occurs twice counts with its last value,
as in the engines, so that picker and engine never disagree.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from extproc import errors
from extproc.requests import paths
from extproc.types import Api, InferenceRequest
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from extproc.types import HttpRequest

_ABSENT: Final = msgspec.Raw()
_NULL: Final = b"null"
_CHARS_PER_TOKEN: Final = 4
_SHOWN: Final = 200  # characters of a client's value that a message repeats
_MOST_CHOICES: Final = 10**9
_BOM: Final = b"\xef\xbb\xbf"
_EMPTY_LIST: Final = re.compile(rb"\[\s*\]")
_TOKEN_IDS: Final = re.compile(rb"\[\s*\d")
# An image as data URL: its bytes are no text, so they do not count as prompt tokens.
_DATA_URL: Final = re.compile(rb";base64,[A-Za-z0-9+/=\\]+")
_MARK: Final = b";base64,"
_PAIR: Final = int.from_bytes(_MARK[:2], "little")
_FEW: Final = 32  # semicolons
_SPARSE: Final = 16  # one byte in so many, at most, is looked at by itself
_LONG: Final = 16_384  # bytes; shorter texts are searched as fast as arrays are made


class StreamOptions(msgspec.Struct):
    """What the client asks of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(msgspec.Struct):
    """The keys of all protocols that placing reads; every other key is skipped."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    max_output_tokens: int | float | None = None
    cache_salt: str | None = None
    n: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    prompt: msgspec.Raw = _ABSENT
    prompt_embeds: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    previous_response_id: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    query: msgspec.Raw = _ABSENT
    queries: msgspec.Raw = _ABSENT
    text_1: msgspec.Raw = _ABSENT
    data_1: msgspec.Raw = _ABSENT
    data: msgspec.Raw = _ABSENT
    text: msgspec.Raw = _ABSENT
    input_ids: msgspec.Raw = _ABSENT
    tokens: msgspec.Raw = _ABSENT


_decode: Final = msgspec.json.Decoder(Body).decode
_items: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_float_or_text: Final = msgspec.json.Decoder(float | str).decode

# First byte of each key's value, where it is not free: what it may be, and how a message says so.
_LIST: Final = (b"[", "an array")
_TEXT_OR_LIST: Final = (b'"[', "a string or an array")
_KINDS: Final[dict[str, tuple[bytes, str]]] = {
    "messages": _LIST,
    "tools": _LIST,
    "tokens": _LIST,
    "system": _TEXT_OR_LIST,
    "prompt": _TEXT_OR_LIST,
    "input": _TEXT_OR_LIST,
    "instructions": _TEXT_OR_LIST,
    "text": _TEXT_OR_LIST,
    "input_ids": _LIST,
}


def parse(http: HttpRequest) -> InferenceRequest:
    """Return the request. Raises Rejection with a message that says what to change."""
    path = http.path.partition("?")[0]
    shape = paths.SHAPES.get(path)
    if shape is None or http.method != "POST":
        raise _misdirected(http.method, path)
    headers = http.headers
    _check_media(headers.get("content-type", ""), headers.get("content-encoding", ""), shape)
    raw = http.body
    wide = 0 if raw.isascii() else _wide(raw)
    body = _decoded(raw)
    model = body.model
    if not model or model.isspace():
        raise errors.BadRequest(
            'name the model in the body, as in {"model": "..."}; GET /v1/models lists what is served', param="model"
        )
    prefix, exact = _prefix(body, shape)
    stream = bool(body.stream)
    options = body.stream_options
    return InferenceRequest(
        id=headers.get(dataplane.REQUEST_ID, ""),
        api=shape.api,
        path=path,
        headers=headers,
        model=model,
        stream=stream,
        prefix=prefix,
        prompt_tokens=exact if exact is not None else estimate(prefix, wide),
        max_tokens=_bound(body),
        wants_usage=stream and options is not None and options.include_usage is True,
        cache_salt=body.cache_salt or "",
        body=raw,
        explain=headers.get(dataplane.EXPLAIN) == "1",
        subset=http.subset,
        choices=_choices(body, shape.api),
    )


def estimate(text: bytes, wide: int) -> int:
    """Tokens of `text`: characters / 4, rounded up, without the bytes of images in it.

    `wide`: bytes that the body's characters have beyond one each; a text that has any of them is taken to have all.
    """
    if _marked(text):
        text = _DATA_URL.sub(b"", text)
    characters = len(text) - wide if wide and not text.isascii() else len(text)
    return -(-max(characters, 0) // _CHARS_PER_TOKEN)


def _marked(text: bytes) -> bool:
    """Tell whether there is an image in `text`.

    Looks at single semicolons first, which prose has few of and which are found ten times as fast as words; then a long
    text is looked at in pairs of bytes, in half the time.
    """
    at = -1
    for _ in range(_FEW):
        at = text.find(_MARK[:1], at + 1)
        if at < 0 or text.startswith(_MARK, at):
            return at >= 0
    if len(text) > _LONG:
        pairs = (np.frombuffer(text, "<u2", (len(text) - at) // 2, at) for at in (0, 1))
        if not any((each == _PAIR).any() for each in pairs):
            return False
    return _MARK in text


def shown(value: str) -> str:
    """`value` as a message may repeat it: quoted and of bounded length."""
    return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "…"


def _misdirected(method: str, path: str) -> errors.Rejection:
    if path in paths.SHAPES:
        return errors.MethodNotAllowed(f"{path} takes POST, not {shown(method)}")
    if path in paths.MODELS or (path.startswith(paths.MODEL) and len(path) > len(paths.MODEL)):
        return errors.MethodNotAllowed(f"{shown(path)} takes GET, not {shown(method)}")
    return errors.NotFound(f"no such path: {shown(path)}; served are GET /v1/models and POST {', '.join(paths.SHAPES)}")


def _check_media(content_type: str, content_encoding: str, shape: paths.Shape) -> None:
    media = content_type.partition(";")[0].strip().lower()
    if shape.multipart:
        raise errors.UnsupportedMediaType("audio uploads (multipart/form-data) are not served by this gateway yet")
    if media and media != "application/json" and not media.endswith("+json"):
        raise errors.UnsupportedMediaType(f"send content-type: application/json, not {shown(media)}")
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise errors.UnsupportedMediaType(
            f"send the body without content-encoding ({shown(content_encoding)} is not read)"
        )


def _decoded(raw: bytes) -> Body:
    if not raw:
        raise errors.BadRequest("the body is empty: send a JSON object")
    try:
        return _decode(raw)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except msgspec.DecodeError as error:
        raise errors.BadRequest(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise errors.BadRequest("the body is nested too deeply") from None


def _wide(raw: bytes) -> int:
    """Return how many more bytes than characters the body has."""
    if raw.startswith(_BOM):
        raise errors.BadRequest("the body starts with a byte order mark: send plain UTF-8")
    try:
        return _wide_in_places(raw) if len(raw) > _LONG else len(raw) - len(raw.decode())
    except UnicodeDecodeError as error:
        raise errors.BadRequest(f"the body is not UTF-8 (byte {error.start})") from None


def _wide_in_places(raw: bytes) -> int:
    """Return the same for a long body, most of which is ASCII mostly. Raises UnicodeDecodeError.

    Only bytes beyond ASCII are decoded: they are characters of the body if those that go on with one follow each other.
    """
    codes = np.frombuffer(raw, np.uint8)
    places = np.flatnonzero(codes > 0x7F)  # noqa: PLR2004 - the last of ASCII
    if len(places) > len(raw) // _SPARSE:
        return len(raw) - len(raw.decode())
    beyond = codes[places]
    going_on = np.flatnonzero(beyond < 0xC0)  # noqa: PLR2004 - from here on a byte begins a character
    if not len(going_on) or (going_on[0] and (places[going_on] - places[going_on - 1] == 1).all()):
        with suppress(UnicodeDecodeError):
            return len(beyond) - len(beyond.tobytes().decode())
    return len(raw) - len(raw.decode())


def _wrong_type(text: str) -> errors.BadRequest:
    problem, _, where = text.partition(" - at `$.")
    param = where.rstrip("`") or None
    if param is None:
        return errors.BadRequest(f"the body must be a JSON object: {problem}")
    return errors.BadRequest(f"{param}: {problem}", param=param)


def _bound(body: Body) -> int | None:
    """Return the client's bound on the answer, whichever of its names it has; the newer name goes first."""
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value: int | float | None = getattr(body, name)
        if value is not None:
            if isinstance(value, float) and not value.is_integer():
                raise errors.BadRequest(f"{name}: expected an integer, got {value}", param=name)
            return int(value)
    return None


def _choices(body: Body, api: Api) -> int:
    """Return how many answers are asked for: `n` to each prompt. `best_of` makes none, engines do not read it any more."""
    if api is Api.CHAT:
        return _number(body.n)
    if api is Api.COMPLETIONS:
        return _number(body.n) * max(_prompts(body.prompt) + _prompts(body.prompt_embeds), 1)
    return 1


def _number(value: msgspec.Raw) -> int:
    """Return `n` as engines read it, also from `2.0` and `"2"`; what is no number of answers is theirs to refuse."""
    if value is _ABSENT:
        return 1
    try:
        number = float(_float_or_text(value))
    except (ValueError, msgspec.DecodeError):
        return 1
    return int(number) if 1 <= number < _MOST_CHOICES and number.is_integer() else 1


def _prompts(value: msgspec.Raw) -> int:
    """Return how many prompts a key holds: a text or a list of token ids is one, any other list has them."""
    if value is _ABSENT:
        return 0
    view = memoryview(value)
    if view[0] not in b"[":
        return 1 if view[0] in b'"' else 0
    return 1 if _TOKEN_IDS.match(view) else len(_items(value))


def _prefix(body: Body, shape: paths.Shape) -> tuple[bytes, int | None]:
    """Return what precedes generation, open at its end, and its exact length in tokens where it is token ids."""
    for name in shape.needs:
        if _given(body, name):
            break
    else:
        if shape.needs:
            raise errors.BadRequest(f"{' or '.join(shape.needs)} is required", param=shape.needs[0])
    parts: list[memoryview] = []  # long prompts are copied once, at the end
    for name in shape.prefix:
        raw = getattr(body, name)
        if raw is _ABSENT:
            continue
        value = memoryview(raw)
        if value[: len(_NULL)].tobytes() != _NULL:  # nothing else begins so
            _check_kind(name, value)
            parts.append(value)
    if not parts:
        return b"", None
    last = parts.pop()
    if not parts and shape.api is not Api.CHAT and last[0] in b"[":
        return _batch(bytes(last))
    opened = _opened(last)
    return b"\n".join([*parts, opened]) if parts else opened, None


def _given(body: Body, name: str) -> bool:
    raw = getattr(body, name)
    if raw is _ABSENT:
        return False
    value = memoryview(raw)  # long prompts are looked at where they lie
    if value[: len(_NULL)].tobytes() == _NULL:
        return False
    if name in _KINDS:
        _check_kind(name, value)
        if _EMPTY_LIST.fullmatch(value):
            raise errors.BadRequest(f"{name} is an empty array", param=name)
    return True


def _check_kind(name: str, value: bytes | memoryview) -> None:
    first, wanted = _KINDS.get(name, (b"", ""))
    if first and value[0] not in first:
        raise errors.BadRequest(f"{name}: expected {wanted}", param=name)


def _opened(value: bytes | memoryview) -> bytes:
    """Cut what closes `value`, so that the value that continues it starts with the same bytes."""
    return bytes(value[:-1]).rstrip() if value[-1] in b'"]' else bytes(value)


def _batch(value: bytes) -> tuple[bytes, int | None]:
    """Return a list's content: of one string it is that string, of token ids it is them and their number."""
    content = value.strip(b"[] \t\r\n")
    if content[:1].isdigit():
        return content, content.count(b",") + 1
    return _opened(content) if content[:1] == b'"' else content, None
