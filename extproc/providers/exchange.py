"""What is changed of a request to a provider, and of its answer. Pure.

`Try` is one try: requests carry what the provider needs and nothing of the client's beside it, so headers that are not on a list
stay here, and so do those of the answer that speak of the gateway's account. `Answer` is the answer on its way to a client of
another API: a stream is translated as it comes, anything else as a whole. A client of the provider's own API gets the
body byte by byte as it came, without our seeing it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.providers import chat_answers, events, faults, fields, messages_answers
from extproc.providers.note import Speech
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from extproc.providers.note import Note

_OK: Final = range(200, 300)
_SENT: Final = frozenset(
    {"accept", "content-length", "content-type", "idempotency-key", "traceparent", "tracestate", "x-request-id"}
)
# Those of an API, for a provider that speaks it as its client does.
_OWN: Final = {
    Speech.OPENAI: frozenset({"openai-beta"}),
    Speech.ANTHROPIC: frozenset({"anthropic-beta", "anthropic-version"}),
}
_ALWAYS: Final = {Speech.OPENAI: {}, Speech.ANTHROPIC: {"anthropic-version": "2023-06-01"}}
_ANSWERED: Final = frozenset(
    {
        "cache-control",
        "content-encoding",
        "content-length",
        "content-type",
        "date",
        "openai-processing-ms",
        "request-id",
        "retry-after",
        "retry-after-ms",
        "transfer-encoding",
        "x-should-retry",
    }
)
_BROKEN: Final = (KeyError, IndexError, TypeError, AttributeError, ValueError)
_JSON: Final = {"content-type": "application/json"}


class Headers(NamedTuple):
    """A change of headers."""

    put: Mapping[str, str]
    remove: tuple[str, ...]


class Streamed(NamedTuple):
    """The body is given to `piece` as it comes."""

    headers: Headers


class Whole(NamedTuple):
    """The body is collected, and given to `whole`."""

    headers: Headers


class Replaced(NamedTuple):
    """The answer is another one."""

    status: int
    headers: Headers
    body: bytes


class Try:
    """One try."""

    def __init__(self, note: Note) -> None:
        self._note = note

    @property
    def provider(self) -> str:
        """`namespace/name`."""
        return self._note.name

    def request(self, names: Iterable[str], credentials: Iterable[str]) -> Headers:
        """Say what is changed of a request with these headers; `credentials` are removed, seen or not."""
        note = self._note
        own = note.client is note.speaks
        sent = _SENT | _OWN[note.speaks] if own else _SENT
        given = {name for name in names if not name.startswith(":")}
        put = {":path": note.path, ":authority": note.host, "user-agent": "matrixinfer"}
        put |= {name: value for name, value in _ALWAYS[note.speaks].items() if not (own and name in given)}
        put |= {name.lower(): value for name, value in note.headers.items()}
        return Headers(put, (*credentials, *sorted(given - sent - put.keys())))

    def response(self, status: int, names: Iterable[str]) -> Headers | Replaced:
        """Say what is changed of the answer's head; one that is to be translated is marked."""
        note = self._note
        rest = tuple(sorted(name for name in names if not name.startswith(":") and name not in _ANSWERED))
        if status in faults.REFUSED:
            put = {**_JSON, "x-should-retry": "false"}
            cut = (*rest, "content-length", "content-encoding")
            return Replaced(faults.BAD_GATEWAY, Headers(put, cut), faults.refused(note.client, note.name))
        return Headers({} if note.client is note.speaks else {dataplane.TRANSLATE: "1"}, rest)


class Answer:
    """The answer of the last try, on its way to the client."""

    def __init__(self, note: Note, now: int) -> None:
        """`now` is seconds since the epoch."""
        self._note = note
        self._now = now
        self._status = 0
        self._reader = events.Reader()
        self._stream: chat_answers.Stream | messages_answers.Stream | None = None
        self._ended = False

    def response(self, status: int, headers: Mapping[str, str], *, end: bool) -> Streamed | Whole | Replaced:
        """Say what becomes of the answer; `end`: it has no body."""
        self._status = status
        cut = (dataplane.TRANSLATE, "content-length", "content-encoding")
        if status in _OK and headers.get("content-type", "").startswith("text/event-stream"):
            openai = self._note.client is Speech.OPENAI
            self._stream = chat_answers.Stream(self._now) if openai else messages_answers.Stream()
            return Streamed(Headers({}, cut))
        if end:
            return Replaced(*self._whole_of(b"", Headers(_JSON, cut)))
        return Whole(Headers({}, (dataplane.TRANSLATE,)))

    def whole(self, body: bytes) -> Replaced:
        """Translate a collected body."""
        return Replaced(*self._whole_of(body, Headers(_JSON, ("content-encoding",))))

    def _whole_of(self, body: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
        note = self._note
        if self._status not in _OK:
            status = faults.status_for(note.client, self._status)
            return status, headers, faults.translated(note.client, self._status, body)
        try:
            said = fields.decoded(body)
            openai = note.client is Speech.OPENAI
            made = chat_answers.answer(said, now=self._now) if openai else messages_answers.answer(said)
            return self._status, headers, fields.encode(made)
        except _BROKEN:
            return faults.BAD_GATEWAY, headers, faults.garbled(note.client, note.name)

    def piece(self, data: bytes, *, end: bool) -> bytes:
        """Translate a piece of a stream."""
        return b"".join(self._pieces(data, end=end))

    def _pieces(self, data: bytes, *, end: bool) -> Iterator[bytes]:
        stream = self._stream
        if stream is None or self._ended:
            return
        try:
            for event in self._reader.feed(data):
                over = yield from self._event(event, stream)
                if over:
                    self._ended = True
                    return
        except _BROKEN:
            self._ended = True
            yield faults.event(self._note.client, None, self._note.name)
            return
        if end:
            self._ended = True
            yield from self._last(stream)

    def _event(
        self, event: events.Event, stream: chat_answers.Stream | messages_answers.Stream
    ) -> Generator[bytes, None, bool]:
        """Yield what an event becomes; returns whether it is the last."""
        if event.data == b"[DONE]":
            yield from self._last(stream)
            return True
        said = fields.decoded(event.data)
        if isinstance(said, dict) and "error" in said and (said.get("type") == "error" or "choices" not in said):
            yield faults.event(self._note.client, said["error"], self._note.name)
            return True
        yield from stream.take(said)
        return stream.over

    def _last(self, stream: chat_answers.Stream | messages_answers.Stream) -> Iterator[bytes]:
        """Yield the end; an error, if the provider stopped before it."""
        yield from stream.end()
        if not stream.over:
            yield faults.event(self._note.client, None, self._note.name)
