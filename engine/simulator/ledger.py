"""What became of every request: the engine's own account, for tests that compare it with somebody else's."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

_KEPT = 20_000


@dataclass(slots=True)
class Entry:
    """One request. `end` is how it ended: stop, length, abort (client left), rejected, failed:MODE; None while it runs."""

    number: int
    request_id: str
    client_request_id: str | None
    path: str
    model: str | None
    stream: bool
    arrived: float
    status: int = 0
    end: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Ledger:
    """Entries of the last requests, and totals of all that ended."""

    entries: deque[Entry] = field(default_factory=lambda: deque(maxlen=_KEPT))
    requests: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    record: Callable[[bytes], object] | None = None  # takes each entry as it ends, as a line of JSON

    def open(  # noqa: PLR0913 (the columns)
        self, *, request_id: str, client_request_id: str | None, path: str, model: str | None, stream: bool, now: float
    ) -> Entry:
        """Note a request that has come."""
        self.requests += 1
        entry = Entry(self.requests, request_id, client_request_id, path, model, stream, now)
        self.entries.append(entry)
        return entry

    def close(self, entry: Entry, end: str, now: float) -> None:
        """Note how it ended; the first word counts."""
        if entry.end is not None:
            return
        entry.end = end
        entry.seconds = now - entry.arrived
        self.ends[end] = self.ends.get(end, 0) + 1
        self.prompt_tokens += entry.prompt_tokens
        self.cached_tokens += entry.cached_tokens
        self.generated_tokens += entry.generated_tokens
        if self.record is not None:
            self.record(orjson.dumps(entry.as_dict()) + b"\n")

    def as_dict(self, since: int = 0) -> dict[str, Any]:
        """For JSON: totals, and the entries from number `since` on."""
        return {
            "totals": {
                "requests": self.requests,
                "open": self.requests - sum(self.ends.values()),
                "ends": self.ends,
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "generated_tokens": self.generated_tokens,
            },
            "requests": [entry.as_dict() for entry in self._from(since)],
        }

    def _from(self, since: int) -> Iterator[Entry]:
        return (entry for entry in self.entries if entry.number >= since)
