"""Traces in files: Mooncake's JSONL, and what ours adds to it.

A line is a request: `timestamp` in milliseconds, `input_length` and `output_length` in tokens, `hash_ids` with one id for
every 512 tokens of the prompt that have been begun, the same id where all up to there is the same. Ours may have
`output_hash_ids` (blocks that the answer completes), `tenant`, `session`, `model` (an adapter), `key` (name of an API key) and
`objective` (what the request says of its urgency), and the first line may be `{"block_tokens": N}`.

Ids are chained again when they are read, so that a trace that gives equal blocks equal ids wherever they stand is
understood in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from xxhash import xxh3_64_intdigest

from matrixinfer.cli.simulate import trace
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BLOCK_TOKENS: Final = 512  # as published
_ID: Final = 1 << 64


class Line(msgspec.Struct):
    """One request, as it stands in the file; what others have added is not looked at."""

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]
    output_hash_ids: list[int] = []
    tenant: str = ""
    session: str = ""
    model: str = ""
    key: str = ""
    objective: str = ""


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    block_tokens: int


def read(file: Path) -> trace.Trace:
    """Read a file. Raises BadInput with file and line."""
    try:
        with file.open("rb") as lines:
            first = lines.readline()
            block_tokens = _block_tokens(first, f"{file}:1")
            lines.seek(0)
            asks = _asks(file, lines, block_tokens or BLOCK_TOKENS, skip=1 if block_tokens else 0)
            found = trace.build(file.name, asks, block_tokens=block_tokens or BLOCK_TOKENS)
    except OSError as error:
        raise BadInput(file, f"cannot be read: {error.strerror}") from error
    if not len(found):
        raise BadInput(file, "has no request")
    return found


def _block_tokens(first: bytes, where: str) -> int | None:
    """Return what the head says, None if the file has none."""
    try:
        head = msgspec.json.decode(first, type=_Head)
    except msgspec.MsgspecError:
        return None
    if head.block_tokens < 1:
        raise BadInput(where, f"block_tokens must be at least 1, not {head.block_tokens}")
    return head.block_tokens


def _asks(file: Path, lines: Iterator[bytes], block_tokens: int, *, skip: int) -> Iterator[trace.Ask]:
    decode = msgspec.json.Decoder(Line).decode
    last = float("-inf")
    for number, text in enumerate(lines, 1):
        if number <= skip or not text.strip():
            continue
        where = f"{file}:{number}"
        try:
            line = decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise BadInput(where, f"not a request: {error}") from error
        _check(line, where, block_tokens)
        if line.timestamp < last:
            raise BadInput(
                where,
                f"timestamp {line.timestamp:g} is before the {last:g} of the line above; sort the trace by timestamp",
            )
        last = line.timestamp
        yield _ask(line, full=line.input_length // block_tokens)


def _check(line: Line, where: str, block_tokens: int) -> None:
    if line.timestamp < 0:
        raise BadInput(where, f"timestamp must not be negative, and is {line.timestamp:g}")
    if line.input_length < 1 or line.output_length < 0:
        name, value = (
            ("input_length", line.input_length) if line.input_length < 1 else ("output_length", line.output_length)
        )
        raise BadInput(where, f"{name} must be at least {int(name == 'input_length')}, and is {value}")
    most = -(-line.input_length // block_tokens)
    if len(line.hash_ids) > most:
        raise BadInput(
            where,
            f"{len(line.hash_ids)} hash_ids are more than {line.input_length} tokens have blocks of {block_tokens}: {most}; "
            'a first line {"block_tokens": N} names another size',
        )
    if any(not 0 <= one < _ID for ids in (line.hash_ids, line.output_hash_ids) for one in ids):
        raise BadInput(where, "hash ids must be whole numbers of 64 bits, not negative")


def _ask(line: Line, *, full: int) -> trace.Ask:
    """Chain the ids; the answer goes on from the last of the prompt's `full` blocks."""
    root = xxh3_64_intdigest(line.model.encode())
    chain = _chain(root, line.hash_ids)
    parent = chain[min(full, len(chain)) - 1] if full and chain else root
    return trace.Ask(
        at=line.timestamp / 1000,
        prompt=line.input_length,
        output=line.output_length,
        blocks=chain,
        answer=_chain(parent, line.output_hash_ids),
        tenant=line.tenant,
        session=line.session,
        model=line.model,
        key=line.key,
        objective=line.objective,
    )


def _chain(parent: int, ids: list[int]) -> list[int]:
    chain = []
    for one in ids:
        parent = xxh3_64_intdigest(one.to_bytes(8, "little"), parent)
        chain.append(parent)
    return chain
