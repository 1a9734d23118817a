"""What the picker notes of a decided request for the filter before its provider; it travels as metadata of Envoy.

The picker writes it when it decides, and reads it again when the provider's cluster asks: nothing of it is kept between.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec


class Speech(Enum):
    """The API of a client or a provider."""

    OPENAI = "OpenAI"
    ANTHROPIC = "Anthropic"


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the provider is spoken to."""

    host: str  # authority: with the port, where it is not the usual one
    path: str
    speaks: Speech
    client: Speech  # what differs is translated
    name: str = ""  # of the provider, for messages
    headers: dict[str, str] = {}


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Note).decode


def written(note: Note) -> str:
    """Return the note as text."""
    return _encode(note).decode()


def read(text: str) -> Note | None:
    """Return the note in `text`; None if there is none."""
    try:
        return _decode(text)
    except msgspec.MsgspecError:
        return None
