"""`session-affinity-scorer`: prefer the endpoint where the session's last request went."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np
from xxhash import xxh3_128_digest

from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle
    from extproc.types import InferenceRequest

MAX_SESSIONS: Final = 65_536  # remembered by one plugin, about 15 MB; the least recently used go first


@dataclass(frozen=True, slots=True)
class Source:
    """Where a session's name may stand; exactly one is given."""

    header: str = ""
    cookie: str = ""
    attribute: str = ""

    def __post_init__(self) -> None:
        if self.attribute:
            raise ValueError(
                f"there are no request attributes here, so {self.attribute!r} cannot be one; "
                "name the header or the cookie that carries the session"
            )
        if bool(self.header) == bool(self.cookie):
            raise ValueError("give either header or cookie")

    def read(self, request: InferenceRequest) -> str:
        """Return the session's name, "" if it does not stand here."""
        if self.header:
            return request.headers.get(self.header.lower(), "").strip()
        for pair in request.headers.get("cookie", "").replace(",", ";").split(";"):
            name, _equals, value = pair.strip().partition("=")
            if name == self.cookie:
                return value.strip('"')
        return ""


@dataclass(frozen=True, slots=True)
class SessionIdConfig:
    """How sessions are known, and for how long."""

    sources: tuple[Source, ...] = (Source(header="x-session-id"),)
    eviction_ttl_seconds: float = parameter(300, minimum=0.001)
    eviction_sweep_seconds: float = parameter(10, minimum=0.001)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name one header or cookie at least")


@dataclass(frozen=True, slots=True)
class SessionAffinityParams:
    """Upstream's parameters, of which one strategy is refused; `cookie` is ours."""

    LACKS: ClassVar = {
        "headerName": "name the header in sessionIdConfig.sources, with `strategy: session_id`",
        "profileName": "each plugin remembers the decisions of the profile that it stands in",
    }

    strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    session_id_config: SessionIdConfig = SessionIdConfig()

    def __post_init__(self) -> None:
        if self.strategy != "session_id":
            raise ValueError(
                f"strategy {self.strategy} (it is the default) needs a header in the response, which is Envoy's alone "
                "here; write `strategy: session_id` and have clients send a header such as x-session-id"
            )


class SessionAffinityScorer:
    """Score 1 for the endpoint that the session is bound to, 0 for others; 0 for all if it is bound to none of them.

    A session is named by the first of `sources` that the request has, and is one for each model; it is bound to the
    endpoint that its last request was sent to, for that one holds the latest of it. (Upstream stays with an older
    endpoint while that is a candidate, though other scorers overrule it, and leads new sessions to the pod with
    the fewest; here load scorers do.) Names are kept as hashes, of 65,536 sessions at most.
    `strategy` must be session_id: upstream's default, encoded_endpoint_header, hands the client a token in a header
    of the response, which nothing of ours touches. `sessionIdConfig`: `sources`, a list of `header: NAME` or
    `cookie: NAME`, x-session-id by default, as upstream (cookies are ours); `evictionTtlSeconds` 300: a binding not used for so
    long is void, engines will have reused its blocks; `evictionSweepSeconds` 10: how often void ones are dropped.
    Source: llm-d's session-affinity-scorer.
    """

    TYPE = "session-affinity-scorer"
    Params = SessionAffinityParams

    def __init__(self, params: SessionAffinityParams) -> None:
        self.params = params
        self._sessions = Sessions(params.session_id_config)

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return np.where(cycle.rows == self._sessions.bound(cycle), 1.0, 0.0)

    def observe(self, cycle: Cycle, row: int) -> None:
        """Bind the request's session to `row`."""
        self._sessions.bind(cycle, row)


class Sessions:
    """Which endpoint each session is bound to."""

    def __init__(self, config: SessionIdConfig, *, most: int = MAX_SESSIONS) -> None:
        """`most`: sessions that are remembered."""
        self._config = config
        self._most = most
        self._bound: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # address, last used; least recent first
        self._swept_at = -np.inf

    def __len__(self) -> int:
        return len(self._bound)

    def bound(self, cycle: Cycle) -> int:
        """Return the row that the request's session is bound to, -1 if there is none."""
        key = self._key(cycle.request)
        found = self._bound.get(key) if key else None
        if found is None or cycle.now - found[1] > self._config.eviction_ttl_seconds:
            return -1
        row = cycle.table.row(found[0])
        return -1 if row is None else row

    def bind(self, cycle: Cycle, row: int) -> None:
        """Bind the request's session, if it names one, to `row` from now on."""
        if cycle.now - self._swept_at >= self._config.eviction_sweep_seconds:
            self._sweep(cycle.now)
        key = self._key(cycle.request)
        if not key:
            return
        self._bound[key] = (cycle.table.address(row), cycle.now)
        self._bound.move_to_end(key)
        if len(self._bound) > self._most:
            self._bound.popitem(last=False)

    def _sweep(self, now: float) -> None:
        self._swept_at = now
        while self._bound:
            key, (_address, used) = next(iter(self._bound.items()))
            if now - used <= self._config.eviction_ttl_seconds:
                return
            del self._bound[key]

    def _key(self, request: InferenceRequest) -> bytes:
        for source in self._config.sources:
            if session := source.read(request):
                return xxh3_128_digest(f"{request.model}\0{session}".encode("utf-8", "surrogatepass"))
        return b""
