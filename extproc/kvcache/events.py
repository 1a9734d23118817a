"""Engines' KV events: bytes become values, or are counted as garbage. Nothing that an engine sends raises.

A batch is msgpack of [time, [event, ...], data-parallel rank]. An event is an array that begins with its name, or a map with
its name under "type"; both are vLLM's, by version, and SGLang's are the array form with fewer fields. Versions add fields
at the end and keys to the map: what is not known is not looked at.

Sources: `distributed/kv_events.py` and `v1/core/kv_cache_utils.py` of vLLM 0.32, SGLang's `disaggregation/kv_events.py`.
"""

from __future__ import annotations

from array import array
from typing import Any, Final, NamedTuple

import msgspec

_WORD: Final = (1 << 64) - 1
_decode: Final = msgspec.msgpack.Decoder().decode
_STORED: Final = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
)
_REMOVED: Final = ("block_hashes", "medium", "group_idx")
# Every other medium is behind these two: disks, object stores, remote memory.
_TIERS: Final = {"GPU": 0, "CPU": 1, "CPU_PINNED": 1, "CPU_TIER1": 1, "HOST": 1}
_OTHER: Final = 2


class Stored(NamedTuple):
    """Consecutive blocks of one sequence became findable. Engines repeat themselves: each telling is one copy."""

    hashes: list[int]  # the engine's own
    parent: int | None  # the block before the first; None: there is none
    tokens: array[int]  # of all blocks; empty where the engine only names blocks that it told of before
    block_tokens: int
    adapter: str  # LoRA; "" for the base model
    salt: str
    known: int  # blocks from the first on whose content the tokens tell all of; behind them are images and the like
    tier: int  # 0 GPU, 1 CPU, 2 other
    group: int  # of layers that share blocks
    kind: str  # of the group; "" if it is not told
    window: int | None  # tokens, of groups that look back so far


class Removed(NamedTuple):
    """One copy of each of these blocks is gone."""

    hashes: list[int]
    tier: int
    group: int | None  # None: not told


class Cleared(NamedTuple):
    """Nothing is left."""


Event = Stored | Removed | Cleared


class Batch(NamedTuple):
    """What one step of an engine changed."""

    at: float  # the engine's clock, seconds
    events: list[Event]
    rank: int | None
    bad: int  # events that could not be read


def read(payload: bytes) -> Batch | None:
    """Read a batch; None for bytes that are none."""
    try:
        value = _decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    if not isinstance(value, list) or len(value) < 2 or not isinstance(value[1], list):  # noqa: PLR2004 - time, events
        return None
    at, entries = value[0], value[1]
    if isinstance(at, bool) or not isinstance(at, int | float):
        return None
    rank = value[2] if len(value) > 2 and type(value[2]) is int else None  # noqa: PLR2004 - the third
    events: list[Event] = []
    bad = 0
    for entry in entries:
        try:
            events.append(_event(entry))
        except (ValueError, TypeError, OverflowError):
            bad += 1
    return Batch(float(at), events, rank, bad)


def _event(entry: object) -> Event:
    if isinstance(entry, dict):
        name, given = entry.get("type"), entry
    elif isinstance(entry, list) and entry:
        name = entry[0]
        given = dict(zip(_REMOVED if name == "BlockRemoved" else _STORED, entry[1:], strict=False))
    else:
        raise ValueError("an event is an array or a map")
    if name == "BlockStored":
        return _stored(given)
    if name == "BlockRemoved":
        group = given.get("group_idx")
        return Removed(
            _hashes(given.get("block_hashes")), _tier(given.get("medium")), None if group is None else int(group)
        )
    if name == "AllBlocksCleared":
        return Cleared()
    raise ValueError("not an event that we know")


def _stored(given: dict[str, Any]) -> Stored:
    hashes = _hashes(given.get("block_hashes"))
    parent = given.get("parent_block_hash")
    adapter = given.get("lora_name") or ""
    size = given.get("block_size") or 0
    window, kind = given.get("kv_cache_spec_sliding_window"), given.get("kv_cache_spec_kind") or ""
    if type(size) is not int or size < 0 or not isinstance(adapter, str) or not isinstance(kind, str):
        raise ValueError("a field has the wrong type")
    salt, known = _extras(given.get("extra_keys"), len(hashes), adapter, first=parent is None)
    if given.get("lora_id") is not None and not adapter:
        known = 0  # an adapter without a name: whose blocks these are is not told
    return Stored(
        hashes=hashes,
        parent=None if parent is None else _hash(parent),
        tokens=array("I", given.get("token_ids") or ()),
        block_tokens=size,
        adapter=adapter,
        salt=salt,
        known=known,
        tier=_tier(given.get("medium")),
        group=int(given.get("group_idx") or 0),
        kind=kind,
        window=window if type(window) is int and window > 0 else None,
    )


def _extras(keys: object, blocks: int, adapter: str, *, first: bool) -> tuple[str, int]:
    """Return the cache salt, and how many blocks from the first on have no other content than their tokens.

    A block's keys are the adapter's name, a pair for each image in it, the salt (the sequence's first block only), digests
    of embedded prompts; none of them is marked, so what follows the name in the first block is the salt if it stands alone.
    """
    if keys is None:
        return "", blocks
    if not isinstance(keys, list):
        raise TypeError("extra keys are no list")
    salt = ""
    for at, one in enumerate(keys[:blocks]):
        if one is None:
            continue
        items = [one] if isinstance(one, str) else list(one)
        if adapter and items and items[0] == adapter:
            del items[0]
        if first and at == 0 and len(items) == 1 and isinstance(items[0], str):
            salt = items.pop()
        if items:
            return salt, at
    return salt, blocks


def _hashes(value: object) -> list[int]:
    if not isinstance(value, list):
        raise TypeError("hashes are no list")
    return [_hash(one) for one in value]


def _hash(value: object) -> int:
    """Return 64 bits: of a longer digest the last, as vLLM cuts them itself."""
    if type(value) is int:
        return value & _WORD
    if isinstance(value, bytes) and value:
        return int.from_bytes(value[-8:], "big")
    raise TypeError("a hash is a number or bytes")


def _tier(medium: object) -> int:
    return 0 if medium is None else _TIERS.get(str(medium).upper(), _OTHER)
