"""Changes in a body's bytes: another model name, and usage asked of a stream. Every other byte stays as it came.

A change replaces the exact span of one value, or inserts keys behind an opening brace. Spans come from the decoder
itself: msgspec's raw values are views into the body, so their addresses tell where they stand. A key that occurs twice
is changed where it counts, at its last value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from extproc.requests import paths
from extproc.types import Usage

if TYPE_CHECKING:
    from extproc.types import InferenceRequest

_ABSENT: Final = msgspec.Raw()
_INCLUDE: Final = b'"include_usage":true'
_RUNNING: Final = b'"continuous_usage_stats":true'
_TRUE: Final = b"true"


class _Edit(NamedTuple):
    start: int
    end: int
    text: bytes


class _Spans(msgspec.Struct):
    model: msgspec.Raw = _ABSENT
    stream_options: msgspec.Raw = _ABSENT


class _Options(msgspec.Struct):
    include_usage: msgspec.Raw = _ABSENT
    continuous_usage_stats: msgspec.Raw = _ABSENT


_spans: Final = msgspec.json.Decoder(_Spans).decode
_options: Final = msgspec.json.Decoder(_Options).decode


def rewritten(
    request: InferenceRequest, *, model: str | None, usage: bool = True, running: bool = True
) -> tuple[bytes | None, Usage]:
    """Return the body with `model` in place of the client's, and with `usage` asked of a stream that can tell it.

    The body is None where nothing changes. A stream reports usage so far in every chunk, so that one which breaks off
    can be settled, unless it goes to a service that does not know how (`running` is False) and tells usage at its end; the
    second value says what the client must not see of it. Of several choices a chunk tells that of its own only, of which
    nothing follows for all: they are asked for usage at the end as well.
    """
    running = running and request.choices == 1
    asks = usage and request.stream and paths.SHAPES[request.path].usage
    if model is None and not asks:
        return None, Usage.AS_IS
    body = request.body
    base = _address(body)
    spans = _spans(body)
    edits = []
    if model is not None:
        start = _address(spans.model) - base
        edits.append(_Edit(start, start + len(memoryview(spans.model)), msgspec.json.encode(model)))
    hidden = Usage.AS_IS
    if asks:
        asked = _usage_edits(body, base, spans.stream_options, running=running)
        if asked:
            edits += asked
            hidden = Usage.HIDE_RUNNING if request.wants_usage else Usage.HIDE_ALL
    return (_applied(body, edits) if edits else None), hidden


def without_running(body: bytes) -> bytes:
    """Return the body without the wish for usage so far, which nobody knows but engines."""
    options = _spans(body).stream_options
    told = msgspec.json.decode(options) if bytes(options) else None
    if not isinstance(told, dict) or "continuous_usage_stats" not in told:
        return body
    del told["continuous_usage_stats"]
    start = _address(options) - _address(body)
    return _applied(body, [_Edit(start, start + len(memoryview(options)), msgspec.json.encode(told))])


def model_span(body: bytes) -> tuple[int, int]:
    """Return where the model's JSON string stands in a body that names one: its start and its length."""
    raw = _spans(body).model
    return _address(raw) - _address(body), len(memoryview(raw))


def _usage_edits(body: bytes, base: int, options: msgspec.Raw, *, running: bool) -> list[_Edit]:
    raw = bytes(options)
    asked = b"{%s,%s}" % (_INCLUDE, _RUNNING) if running else b"{%s}" % _INCLUDE
    if not raw:
        start = body.index(b"{") + 1
        return [_Edit(start, start, b'"stream_options":' + asked + b",")]
    offset = _address(options) - base
    if raw[:1] != b"{":  # null
        return [_Edit(offset, offset + len(raw), asked)]
    edits = []
    missing = []
    found = _options(options)
    for name, value in (
        (_INCLUDE, found.include_usage),
        *(((_RUNNING, found.continuous_usage_stats),) if running else ()),
    ):
        text = bytes(value)
        if not text:
            missing.append(name)
        elif text != _TRUE:
            start = _address(value) - base
            edits.append(_Edit(start, start + len(text), _TRUE))
    if missing:
        more = b"," if raw[1:-1].strip() else b""
        edits.append(_Edit(offset + 1, offset + 1, b",".join(missing) + more))
    return edits


def _applied(body: bytes, edits: list[_Edit]) -> bytes:
    pieces: list[bytes] = []
    at = 0
    for edit in sorted(edits):
        pieces += (body[at : edit.start], edit.text)
        at = edit.end
    pieces.append(body[at:])
    return b"".join(pieces)


def _address(view: bytes | msgspec.Raw) -> int:
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address
