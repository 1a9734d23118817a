"""Decisions as they are remembered, and in words: for a client that asks, the admin pages and `matrixinfer explain`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from extproc.prefilling.told import Told
    from extproc.scheduling.scheduler import Trace
    from extproc.traffic.flow.gate import Passed
    from extproc.traffic.ledger import Sent, Settlement
    from extproc.types import Prefix

_EXPLAINED: Final = 16  # candidates in a response header, whose size is bounded


@dataclass(slots=True)
class Record:
    """A recent decision, and its end once that is known."""

    sent: Sent
    rule: str
    trace: Trace | None
    prefix: Prefix  # what the blocks are made of, without them
    prefill: Told | None = None  # None: every pod of the server does both
    passed: Passed | None = None  # None: without flow control
    settlement: Settlement | None = None


def explanation(record: Record) -> str:
    """Return the decision as compact JSON of bounded size, for a response header."""
    document = described(record)
    candidates = document.get("candidates")
    if isinstance(candidates, list) and len(candidates) > _EXPLAINED:
        document["candidates"] = candidates[:_EXPLAINED]
        document["candidates_left_off"] = len(candidates) - _EXPLAINED
    return json.dumps(document, separators=(",", ":"))  # ASCII, as a header's value has to be


def described(record: Record) -> dict[str, Any]:
    """Return a decision as plain values: what was known, and why the winner won."""
    sent = record.sent
    return {
        "ticket": sent.ticket,
        "request_id": sent.request_id,
        "model": sent.model,
        "engine_model": sent.engine_model,
        "route": sent.route,
        "rule": record.rule,
        "target": sent.target,
        "endpoints": sent.endpoints,
        **({"further": dict(sent.further)} if sent.further else {}),
        "prompt_tokens": sent.prompt_tokens,
        "prefix": _made_of(record.prefix),
        "blocks": sent.blocks,
        "matched_blocks": sent.matched,
        "predicted_cached_tokens": sent.predicted_cached_tokens,
        **({"reason": "an external provider, of which nothing is measured"} if sent.outside else {}),
        **({"queue": record.passed.document()} if record.passed is not None else {}),
        **({"prefill": record.prefill.document()} if record.prefill is not None else {}),
        **(record.trace.document() if record.trace is not None else {}),
    }


def _made_of(prefix: Prefix) -> str:
    """Say what the blocks of a prefix are: the engine's tokens, tokens that differ from the engine's somewhere, text."""
    if prefix.tokens is None:
        return "text"
    return "tokens" if prefix.exact else "tokens, in part"
