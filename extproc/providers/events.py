"""Server-sent events: bytes to events, cut anywhere, and events to bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from extproc.providers import fields

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST: Final = 8 << 20  # bytes of one event; what is longer is something else


class Event(NamedTuple):
    """One event."""

    name: str  # "" if it has none
    data: bytes


class TooLong(ValueError):
    """An event that does not end."""


class Reader:
    """Takes a stream in pieces. Lines end with LF, CRLF or CR, as the standard has it."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Yield the events that end in this piece. Raises TooLong."""
        text = self._rest + piece if self._rest else piece
        at = 0
        while (end := _line_end(text, at)) is not None:
            stop, after = end
            event = self._line(text[at:stop])
            at = after
            if event is not None:
                yield event
        self._rest = text[at:]
        if self._size + len(self._rest) > LONGEST:
            raise TooLong("an event is too long")

    def _line(self, line: bytes) -> Event | None:
        if not line:
            event = Event(self._name, b"\n".join(self._data)) if self._data else None
            self._name, self._data, self._size = "", [], 0
            return event
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"data":
            self._data.append(value)
            self._size += len(value)
        elif key == b"event":
            self._name = value.decode("utf-8", "replace")
        return None


def _line_end(text: bytes, at: int) -> tuple[int, int] | None:
    """Return where a line ends and the next begins; None if that is not known yet."""
    feed = text.find(b"\n", at)
    back = text.find(b"\r", at, feed if feed >= 0 else len(text))
    if back < 0:
        return (feed, feed + 1) if feed >= 0 else None
    if back + 1 == len(text):
        return None  # a line feed may follow
    return (back, back + 2) if text[back + 1] == ord("\n") else (back, back + 1)


def chunk(value: Any) -> bytes:
    """Write an event as OpenAI does: data only."""
    return b"data: " + fields.encode(value) + b"\n\n"


def named(value: dict[str, Any]) -> bytes:
    """Write an event as Anthropic does: named for its type."""
    return b"event: " + str(value["type"]).encode() + b"\ndata: " + fields.encode(value) + b"\n\n"


DONE: Final = b"data: [DONE]\n\n"
