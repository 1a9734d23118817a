"""One Envoy's subscription as a state machine: requests and snapshots in, responses out. No clock, no network.

State of the world. Types go out in the order clusters, secrets, endpoints, filters, listeners, routes. Envoy answers for
clusters when the new ones are warm, which takes their secrets and endpoints, so these do not wait for that answer;
listeners and routes do. A cluster that is no longer wanted goes last, and `LINGER_S` after the routes that named it:
Envoy routes a request by the table that was in force when it came, and by then it may have waited for the picker.
Listeners and clusters are sent whole, as the protocol demands; of endpoints and routes only what is asked for and differs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from controllers.xds.snapshot import CDS, ECDS, EDS, LDS, RDS, SDS, Resource, Snapshot, version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Make before break: what is pointed at goes before what points at it.
ORDER: Final = (CDS, SDS, EDS, ECDS, LDS, RDS)
WHOLE: Final = frozenset({CDS, LDS})  # sent complete: what is missing is removed
LINGER_S: Final = 60.0  # as long as a decision may wait, but in a queue


@dataclass(frozen=True, slots=True)
class Request:
    """What Envoy says: subscribes, accepts or refuses."""

    type_url: str
    names: frozenset[str]
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent."""

    type_url: str
    version: str
    nonce: str
    resources: Mapping[str, Resource]


@dataclass(frozen=True, slots=True)
class Nack:
    """Envoy refused an update and goes on with what it had."""

    type_url: str
    message: str
    names: frozenset[str]  # of the resources that the message names, or all that were sent


@dataclass(frozen=True, slots=True)
class Ack:
    """Envoy has taken an update."""

    type_url: str
    version: str


@dataclass(slots=True)
class _Type:
    """What one Envoy knows of one type."""

    names: frozenset[str] = frozenset()
    sent: dict[str, Resource] = field(default_factory=dict)
    nonce: str = ""
    waiting: Response | None = None  # sent, not answered
    renewed: bool = False  # asked again: owes an answer even if nothing changed
    alone: list[str] = field(default_factory=list)  # refused with others: sent again one by one to find the bad one
    refusals: dict[str, tuple[str, str]] = field(default_factory=dict)  # name -> digest of what was refused, message


class Session:
    """Bookkeeping for one stream."""

    def __init__(self) -> None:
        self._types: dict[str, _Type] = {}
        self._count = 0
        self._leaving: dict[str, float] = {}  # clusters that are no longer routed to, and when they go
        self._farewell = ""  # nonce of what took such clusters away

    def receive(self, request: Request) -> Ack | Nack | None:
        """Take one request; `send` says what follows from it."""
        if request.type_url not in ORDER:
            return None
        known = self._types.get(request.type_url)
        if known is None or not request.nonce:
            self._types[request.type_url] = _Type(names=request.names, renewed=True)
            return None
        if request.nonce != known.nonce:
            return None  # an answer to something older: the answer to the latest is on its way
        answered, known.waiting = known.waiting, None
        known.renewed = answered is None or request.names != known.names
        for name in known.names - request.names:
            known.sent.pop(name, None)
        known.names = request.names
        if answered is not None:
            return _judge(known, answered, request.error)
        # Not an answer, so a new subscription (a cluster warms again): all of it is owed.
        if request.type_url not in WHOLE:
            known.sent.clear()
        return None

    def send(self, snapshot: Snapshot, now: float) -> Iterator[Response]:
        """Yield what may go out at the time `now`, in seconds."""
        wanted = snapshot.resources[CDS].keys()
        self._leaving = {name: at for name, at in self._leaving.items() if name not in wanted}
        for type_url in ORDER:
            known = self._types.get(type_url)
            if known is not None and known.waiting is None:
                chosen = self._due(type_url, known, snapshot.resources[type_url])
                if chosen is not None:
                    yield self._respond(type_url, known, chosen)
            if type_url not in (CDS, SDS) and self._waiting():
                return
        clusters = self._types.get(CDS)
        if clusters is None or any(known.refusals for known in self._types.values()):
            self._leaving = {}
            return
        self._leaving = {name: self._leaving.get(name, now + LINGER_S) for name in clusters.sent.keys() - wanted}
        if any(at <= now for at in self._leaving.values()):
            stay = {name: one for name, one in clusters.sent.items() if self._leaving.get(name, math.inf) > now}
            response = self._respond(CDS, clusters, stay)
            self._farewell = response.nonce
            yield response

    @property
    def leaves_at(self) -> float | None:
        """When the next cluster goes, if nothing else happens; None if none does."""
        return None if self._waiting() else min(self._leaving.values(), default=None)

    @property
    def settled(self) -> bool:
        """True once Envoy, routes and all, has answered whatever `send` had to say but farewells."""
        return RDS in self._types and not any(
            known.waiting is not None and known.waiting.nonce != self._farewell for known in self._types.values()
        )

    def refused(self, snapshot: Snapshot) -> Iterator[Nack]:
        """Yield what of `snapshot` Envoy has refused."""
        for type_url, known in self._types.items():
            for name, (digest, message) in known.refusals.items():
                resource = snapshot.resources[type_url].get(name)
                if resource is not None and resource.digest == digest:
                    yield Nack(type_url, message, frozenset((name,)))

    def _waiting(self) -> bool:
        return any(known.waiting is not None for known in self._types.values())

    def _due(self, type_url: str, known: _Type, wanted: Mapping[str, Resource]) -> Mapping[str, Resource] | None:
        if known.alone:
            return {name: wanted[name] for name in (known.alone.pop(),) if name in wanted} or None
        if type_url not in WHOLE:
            changed = {
                name: wanted[name] for name in known.names & wanted.keys() if known.sent.get(name) != wanted[name]
            }
            return changed or None
        # A cluster that is no longer wanted stays until the routes that name it are gone.
        chosen = {**known.sent, **wanted} if type_url == CDS else wanted
        return chosen if known.renewed or chosen != known.sent else None

    def _respond(self, type_url: str, known: _Type, resources: Mapping[str, Resource]) -> Response:
        self._count += 1
        known.nonce = str(self._count)
        known.sent = dict(resources) if type_url in WHOLE else {**known.sent, **resources}
        known.renewed = False
        known.waiting = Response(type_url, version(known.sent), known.nonce, resources)
        return known.waiting


def _judge(known: _Type, answered: Response, error: str | None) -> Ack | Nack | None:
    """Note what Envoy took or refused; None while it is not known what it refused."""
    for name in answered.resources:
        known.refusals.pop(name, None)
    if error is None:
        return Ack(answered.type_url, answered.version)
    named = frozenset(name for name in answered.resources if name in error)
    if not named and answered.type_url not in WHOLE and len(answered.resources) > 1:
        known.alone = sorted(answered.resources)
        return None
    named = named or frozenset(answered.resources)
    known.refusals |= {name: (answered.resources[name].digest, error) for name in named}
    return Nack(answered.type_url, error, named)
