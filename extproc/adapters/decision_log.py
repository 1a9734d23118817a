"""The decision log: each decision as it was made and each request's end, as lines of JSON for `matrixinfer replay`.

What a scheduler read is kept, so that another configuration can be asked the same: the table's columns for the candidates,
what they held of the prefix, and what came out; and what flow control knows a request by. The prompt itself is not kept, nor are
other headers; its blocks are, as hashes, in steps of some 256 tokens.

On the loop a decision is copied (25 µs for four candidates) and put into a queue; words are made of it in a thread (32 µs), every
half second. A queue that is full drops what comes, and the log says how many. A file that has grown to its bound becomes
FILE.1, of which there is one.

Lines are objects with one key: `endpoint` (what is known of an address, before it is first named and when it changes, looked
at once a second), `decision`, `end`, `dropped`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import orjson

from extproc.scheduling.endpoints import COLUMNS
from extproc.traffic.flow import callers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Cycle
    from extproc.scheduling.scheduler import Result
    from extproc.traffic.flow.gate import Passed
    from extproc.traffic.ledger import Sent, Settlement
    from extproc.types import HttpRequest, Prefix

_LOG = logging.getLogger(__name__)
VERSION: Final = 1
_STEP_TOKENS: Final = 256  # a hash names all up to its block, so that some of them are enough
_WRITE_EVERY_S: Final = 0.5
_LOOK_EVERY_S: Final = 1.0
_QUEUED: Final = 20_000  # some 30 MB
_PLACES: Final = 6  # of seconds, after the point


class _Decided(NamedTuple):
    """A decision, copied out of what changes."""

    at: float
    sent: Sent
    max_tokens: int | None
    trunk: int
    prefix: Prefix
    addresses: list[str]
    columns: dict[str, NDArray[Any]]
    matched: NDArray[np.int64]
    weighted: NDArray[np.float64] | None
    cached: NDArray[np.int64] | None
    home: NDArray[np.int64] | None
    result: Result
    tenant: str
    key: str
    objective: str
    waited_s: float  # for its turn, before this


class DecisionLog:
    """The writer. `decided` and `settled` are called on the loop; `run` is its one task."""

    def __init__(self, path: Path, *, epoch: Callable[[], float], max_bytes: int = 64 << 20) -> None:
        """`epoch`: seconds since 1970. Raises OSError if the file cannot be written."""
        self.dropped = 0
        self._path = path
        self._epoch = epoch
        self._max_bytes = max_bytes
        self._queue: deque[_Decided | Settlement | dict[str, Any]] = deque()
        self._known: dict[str, tuple[object, ...]] = {}  # by address: what its last line said
        self._looked_at = float("-inf")
        self._anew = False  # the next file begins with what is known
        self._file = path.open("ab")

    def decided(  # noqa: PLR0913 - what a decision is made of
        self, sent: Sent, cycle: Cycle, prefix: Prefix, result: Result, *, http: HttpRequest, passed: Passed | None
    ) -> None:
        """Take a decision, before it is counted in the table."""
        if len(self._queue) >= _QUEUED:
            self.dropped += 1
            return
        table, rows = cycle.table, cycle.rows
        addresses = table.addresses[rows].tolist()
        if self._anew or cycle.now - self._looked_at >= _LOOK_EVERY_S or not self._known.keys() >= set(addresses):
            self._look(table, cycle.now)
        decided = _Decided(
            at=self._epoch(),
            sent=sent,
            max_tokens=cycle.request.max_tokens,
            trunk=cycle.trunk,
            prefix=prefix,
            addresses=addresses,
            columns={name: getattr(table, name)[rows] for name in COLUMNS},
            matched=cycle.matched,
            weighted=cycle.weighted,
            cached=cycle.cached_tokens,
            home=cycle.home,
            result=result,
            tenant=http.tenant if passed is None else passed.tenant,
            key=http.key,
            objective=callers.objective(http.headers),
            waited_s=0.0 if passed is None else passed.waited_s,
        )
        self._queue.append(decided)

    def settled(self, settlement: Settlement) -> None:
        """Take the end of a request."""
        if len(self._queue) < _QUEUED:
            self._queue.append(settlement._replace(chain=()))
        else:
            self.dropped += 1

    async def run(self) -> None:
        """Write until cancelled; a write that is under way then comes to its end."""
        while True:
            await asyncio.sleep(_WRITE_EVERY_S)
            if not self._queue:
                continue
            self._tell_dropped()
            writing = asyncio.ensure_future(asyncio.to_thread(self._write))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await writing
                raise

    def close(self) -> None:
        """Write what is left."""
        self._tell_dropped()
        self._write()
        self._file.close()

    def _look(self, table: EndpointTable, now: float) -> None:
        """Queue a line for each endpoint of which another thing is known than was said."""
        self._looked_at = now
        if self._anew:
            self._anew = False
            self._known.clear()
        for row in table.rows():
            endpoint = table.endpoints[row]
            if endpoint is None:
                continue
            known = (endpoint, table.models[row], table.adapters[row], table.lora[row])
            if self._known.get(endpoint.address) != known:
                self._known[endpoint.address] = known
                self._queue.append(_endpoint(known))

    def _tell_dropped(self) -> None:
        if self.dropped:
            self._queue.append({"dropped": {"at": self._epoch(), "entries": self.dropped}})
            self.dropped = 0

    def _write(self) -> None:
        """Put the queue into words and into the file."""
        lines = [orjson.dumps(_line(self._queue.popleft()), option=_OPTIONS) for _ in range(len(self._queue))]
        try:
            self._file.write(b"".join(line + b"\n" for line in lines))
            self._file.flush()
            if self._file.tell() >= self._max_bytes:
                self._file.close()
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._file = self._path.open("ab")
                self._anew = True
        except OSError as error:  # a full disk must not stop requests
            _LOG.warning("the decision log cannot be written", extra={"file": str(self._path), "error": str(error)})


_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY


def _line(entry: _Decided | Settlement | dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry, dict):
        return entry
    return {"decision": _decision(entry)} if isinstance(entry, _Decided) else {"end": _end(entry)}


def _endpoint(known: tuple[Any, ...]) -> dict[str, Any]:
    endpoint, models, adapters, lora = known
    line: dict[str, Any] = {
        "address": endpoint.address,
        "pod": endpoint.pod,
        "engine": endpoint.engine,
        "node": endpoint.node,
        "labels": dict(endpoint.labels),
        "models": sorted(models),
        "adapters": sorted(adapters),
    }
    if lora is not None:
        line["lora"] = {"running": sorted(lora.running), "waiting": sorted(lora.waiting), "slots": lora.slots}
    return {"endpoint": line}


_ASKED: Final = ("tenant", "key", "objective")


def _decision(one: _Decided) -> dict[str, Any]:
    sent, prefix = one.sent, one.prefix
    step = max(1, _STEP_TOKENS // max(prefix.block_tokens, 1))
    line: dict[str, Any] = {
        "version": VERSION,
        "at": round(one.at, _PLACES),
        "now": round(sent.at, _PLACES),
        "ticket": sent.ticket,
        "request_id": sent.request_id,
        "model": sent.model,
        "engine_model": sent.engine_model,
        "target": sent.target,
        "path": sent.path,
        "stream": sent.stream,
        "prompt_tokens": sent.prompt_tokens,
        "max_tokens": one.max_tokens,
        "blocks": sent.blocks,
        "block_tokens": prefix.block_tokens,
        "exact": prefix.exact,
        "trunk": one.trunk,
        "chain": _packed(prefix.hashes[step - 1 :: step]),
        "chain_tokens": prefix.block_tokens * step,
        "endpoints": one.addresses,
        "matched": one.matched,
        "columns": _telling(one.columns),
        "order": one.result.addresses,
    }
    line |= {name: value for name, value in zip(_ASKED, (one.tenant, one.key, one.objective), strict=True) if value}
    if one.waited_s:
        line["waited_s"] = round(one.waited_s, _PLACES)
    if one.weighted is not None:
        line["weighted"] = one.weighted
    if one.cached is not None:
        line["cached_tokens"] = one.cached
    if one.home is not None:
        line["home"] = one.home
    if one.result.trace is not None:
        trace = one.result.trace
        line["profile"] = trace.profile
        line["scored"] = list(trace.addresses)
        line["scores"] = dict(zip(trace.weights, trace.parts, strict=True))
        line["total"] = trace.total
        line["left_out"] = dict(trace.dropped)
    return line


def _end(settlement: Settlement) -> dict[str, Any]:
    outcome = settlement.outcome
    line: dict[str, Any] = {
        "ticket": settlement.sent.ticket,
        "end": settlement.end.value,
        "served": settlement.served,
        "failed": settlement.failed,
    }
    if outcome is not None:
        line |= {
            "status": outcome.status,
            "duration_s": outcome.duration_s,
            "sent_s": outcome.sent_s,
            "first_token_s": outcome.first_token_s,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "cached_tokens": outcome.cached_tokens,
        }
    if settlement.charged is not None:
        line["charged"] = settlement.charged._asdict()
    return line


def _packed(hashes: Sequence[int]) -> str:
    return base64.b64encode(np.array(hashes, dtype="<u8").tobytes()).decode()


def _telling(columns: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the columns that say more than that nothing is known."""
    says = (np.array(list(columns.values()), dtype=np.float64) != _UNKNOWN).any(axis=1).tolist()
    return {name: column for (name, column), told in zip(columns.items(), says, strict=True) if told}


_UNKNOWN: Final = np.array(list(COLUMNS.values()), dtype=np.float64)[:, None]
