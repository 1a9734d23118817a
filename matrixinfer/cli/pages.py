"""The picker's admin pages as the command line reads them: only the fields that it shows.

Bytes become these values once, here. A page that does not have the fields is not a picker's: NotAPicker says so.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotations
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

Page = TypeVar("Page")


class NotAPicker(Exception):
    """What answered is not the admin port of a picker (of this version)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One engine."""

    address: str
    pod: str
    ready: bool
    servers: tuple[str, ...] = ()
    inflight: int = 0
    waiting: float = 0.0
    running: float = 0.0
    kv_usage: float = 0.0  # 0..1
    scraped_s_ago: float | None = None
    avoided_for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """/endpoints."""

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One of the recent decisions, in short."""

    ticket: str
    request_id: str
    s_ago: float
    model: str
    target: str
    endpoint: str
    prompt_tokens: int
    matched_blocks: str  # "matched/all"
    end: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that was sent nowhere."""

    request_id: str
    s_ago: float
    model: str
    path: str
    status: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decisions:
    """/decisions."""

    decisions: tuple[Line, ...]
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a rule sends to."""

    modelServerName: str  # noqa: N815 - the wire's name
    weight: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a route."""

    targetModels: tuple[Target, ...] = ()  # noqa: N815 - the wire's name


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """What a ModelRoute says."""

    modelName: str = ""  # noqa: N815 - the wire's name
    loraAdapters: tuple[str, ...] = ()  # noqa: N815 - the wire's name
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One ModelRoute in use."""

    route: str
    spec: RouteSpec


@dataclass(frozen=True, slots=True)
class Server:
    """One ModelServer."""

    endpoints: tuple[str, ...] = ()
    ready: int = 0


@dataclass(frozen=True, slots=True)
class Routes:
    """/routes."""

    models: tuple[str, ...]
    routes: tuple[Route, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    servers: Mapping[str, Server] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """How one endpoint fared. `score` is None where a filter dropped it."""

    endpoint: str
    score: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    dropped_by: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the answer went, as Envoy saw it."""

    status: int
    duration_s: float
    attempts: int = 1
    flags: tuple[str, ...] = ()
    details: str = ""
    first_token_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended; `end` is "open" while it has not."""

    end: str
    served: str = ""
    target: str = ""  # whose endpoint answered, or was to answer
    failed: tuple[str, ...] = ()
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """One prefill leg of a decision."""

    endpoint: str
    result: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Prefill:
    """What became of a decision's prefill leg."""

    leg: str
    reason: str
    detail: str = ""
    connector: str = ""
    endpoint: str = ""
    tries: tuple[Try, ...] = ()


@dataclass(frozen=True, slots=True)
class Queue:
    """How a decision's request got its turn."""

    priority: int
    tenant: str
    waited_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """/decisions/{id}."""

    ticket: str
    request_id: str
    model: str
    engine_model: str
    route: str
    rule: str
    target: str
    endpoints: tuple[str, ...]
    prompt_tokens: int
    blocks: int
    matched_blocks: int
    s_ago: float
    end: End
    prefill: Prefill | None = None  # None: the ModelServer's pods do both
    queue: Queue | None = None  # None: without flow control
    profile: str = ""
    picker: str = ""
    reason: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Trouble:
    """What a page says where it has no answer."""

    error: str


def read(page: bytes, kind: type[Page]) -> Page:
    """Return the page as a value. Raises NotAPicker."""
    try:
        return msgspec.json.decode(page, type=kind)
    except msgspec.MsgspecError as error:
        raise NotAPicker(f"what answers there is not a picker of this version: {error}") from error
