"""The decision log, read line by line; `extproc.adapters.decision_log` says what is in it."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from extproc.adapters.decision_log import VERSION
from extproc.scheduling.endpoints import COLUMNS
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WORD: Final = 8


class LoraLine(msgspec.Struct):
    """Adapters, as the engine's metrics tell."""

    running: list[str]
    waiting: list[str]
    slots: int


class EndpointLine(msgspec.Struct):
    """What is known of an address."""

    address: str
    pod: str
    engine: str
    node: str = ""
    labels: dict[str, str] = {}
    models: list[str] = []
    adapters: list[str] = []
    lora: LoraLine | None = None


class DecisionLine(msgspec.Struct):
    """One decision and what it was made from; lists are aligned with `endpoints`."""

    version: int
    at: float
    now: float
    ticket: str
    model: str
    prompt_tokens: int
    blocks: int
    trunk: int
    endpoints: list[str]
    matched: list[int]
    columns: dict[str, list[float | None]]
    order: list[str]
    request_id: str = ""
    engine_model: str = ""
    path: str = ""
    stream: bool = False
    max_tokens: int | None = None
    chain: str = ""
    chain_tokens: int = 256
    weighted: list[float] | None = None
    cached_tokens: list[int] | None = None
    home: list[int] | None = None
    profile: str = ""
    scored: list[str] = []
    scores: dict[str, list[float | None]] = {}
    total: list[float | None] = []
    left_out: dict[str, list[str]] = {}
    tenant: str = ""
    key: str = ""
    objective: str = ""
    waited_s: float = 0.0

    @property
    def came_at(self) -> float:
        """When the request came: before it waited for its turn."""
        return self.at - self.waited_s

    @property
    def hashes(self) -> list[int]:
        """Hashes of the prefix, in steps of `chain_tokens`."""
        found: list[int] = np.frombuffer(base64.b64decode(self.chain), dtype="<u8").tolist()
        return found


class EndLine(msgspec.Struct):
    """How a request ended."""

    ticket: str
    end: str
    served: str = ""
    status: int = 0
    duration_s: float | None = None
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


class DroppedLine(msgspec.Struct):
    """Entries that are missing here."""

    at: float
    entries: int


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    endpoint: EndpointLine | None = None
    decision: DecisionLine | None = None
    end: EndLine | None = None
    dropped: DroppedLine | None = None


Entry = EndpointLine | DecisionLine | EndLine | DroppedLine


def entries(file: Path) -> Iterator[tuple[str, Entry]]:
    """Yield each line with its place. Raises BadInput with the line of a bad one."""
    decode = msgspec.json.Decoder(_Line).decode
    try:
        with file.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.strip():
                    continue
                where = f"{file}:{number}"
                try:
                    line = decode(text)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    raise BadInput(where, f"not a line of a decision log: {error}") from error
                entry = line.decision or line.endpoint or line.end or line.dropped
                if entry is None:
                    raise BadInput(where, "not a line of a decision log: it has none of its keys")
                if isinstance(entry, DecisionLine):
                    _check(entry, where)
                yield where, entry
    except OSError as error:
        raise BadInput(file, f"cannot be read: {error.strerror}") from error


def is_log(file: Path) -> bool:
    """Tell whether a file begins as a decision log does."""
    try:
        with file.open("rb") as lines:
            msgspec.json.decode(lines.readline(), type=_Line)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _check(line: DecisionLine, where: str) -> None:
    """Raise BadInput for a decision that cannot be taken again."""
    if line.version != VERSION:
        raise BadInput(where, f"a decision log of version {line.version}; this matrixinfer reads version {VERSION}")
    n = len(line.endpoints)
    optional = {"weighted": line.weighted, "cached_tokens": line.cached_tokens, "home": line.home}
    aligned = {"matched": line.matched, **line.columns, **optional}
    for name, column in aligned.items():
        if column is not None and len(column) != n:
            raise BadInput(where, f"{name} has {len(column)} entries for {n} endpoints")
    if not n or not line.order:
        raise BadInput(where, "names no endpoint")
    if line.prompt_tokens < 0 or line.blocks < 0:
        name = "prompt_tokens" if line.prompt_tokens < 0 else "blocks"
        raise BadInput(where, f"{name} must not be negative")
    for name in line.columns:
        if name not in COLUMNS:
            raise BadInput(where, f"there is no column {name!r}")
    try:
        if len(base64.b64decode(line.chain, validate=True)) % _WORD:
            raise BadInput(where, "chain is cut off")
    except binascii.Error as error:
        raise BadInput(where, f"chain is not base64: {error}") from error
