"""The desk: between the transport and the director. It times, counts and logs; what is decided is the director's."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from extproc.adapters.errands import Telling
from extproc.errors import Rejection
from extproc.traffic.ledger import End
from extproc.types import Decision, Outcome
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from extproc.adapters.errands import Errands
    from extproc.adapters.telemetry import Telemetry
    from extproc.adapters.transport.ext_proc import Answer, Parked
    from extproc.director import Director
    from extproc.traffic.ledger import Settlement
    from extproc.types import HttpRequest, Reply

_LOG = logging.getLogger("extproc.requests")
_SERVER_ERROR: Final = 500
_REMEMBERED: Final = 256
_SHOWN: Final = 200  # characters of what a client sent


class Refusal(NamedTuple):
    """A request that was refused, for those who ask why."""

    request_id: str
    path: str
    model: str
    status: int
    reason: str
    message: str
    at: float  # monotonic seconds


class _Named(msgspec.Struct):
    model: str | None = None


_named: Final = msgspec.json.Decoder(_Named).decode


class Desk:
    """The transport's asker, and the taker of outcomes."""

    def __init__(self, director: Director, telemetry: Telemetry, errands: Errands, *, access_log: bool = False) -> None:
        """`access_log`: a line for every request, at info. Without it only what went wrong is written."""
        self.refusals: deque[Refusal] = deque(maxlen=_REMEMBERED)  # oldest first
        self._director = director
        self._errands = errands
        self._telemetry = telemetry
        self._access_log = access_log
        self._answered: dict[str, tuple[str, int]] = {}  # by ticket: endpoint, status
        self._over: OrderedDict[str, Outcome] = OrderedDict()  # ends that came before their decision, by ticket

    def decide(self, request: HttpRequest) -> Decision | Reply | Parked:
        """Decide and count, or hold the request while an errand is run for it. Raises Rejection."""
        started = time.perf_counter()
        story = self._director.decide(request)
        try:
            errand = next(story)
        except StopIteration as told:
            self._telemetry.decided(time.perf_counter() - started)
            answer: Decision | Reply = told.value
            self._settle_late(answer)
            return answer
        except Rejection as rejection:
            self._refused(request, rejection, time.perf_counter() - started)
            raise
        return Telling(story, errand, self._errands, lambda answer: self._told(request, answer, started))

    def _told(self, request: HttpRequest, answer: Answer, started: float) -> None:
        """Count the end of a story that had to wait."""
        took_s = time.perf_counter() - started
        if isinstance(answer, Rejection):
            self._refused(request, answer, took_s)
        else:
            self._telemetry.decided(took_s)
            self._settle_late(answer)

    def _settle_late(self, answer: Decision | Reply) -> None:
        """End a request whose end has been told already: records and requests may come by different connections."""
        if self._over and isinstance(answer, Decision):
            outcome = self._over.pop(answer.ticket, None)
            if outcome is not None:
                self.settle(outcome)

    def settle(self, outcome: Outcome) -> None:
        """Take the end of a request."""
        if outcome.endpoint and not (outcome.ticket and outcome.placed):
            self._telemetry.bypassed()
        if not outcome.ticket:
            return
        settlement = self._director.settle(outcome)
        if settlement is not None:
            self._telemetry.settled(settlement)
            self._log_end(settlement)
        elif not outcome.placed:
            self._over[outcome.ticket] = outcome
            if len(self._over) > _REMEMBERED:
                self._over.popitem(last=False)

    def expire(self) -> None:
        """Give up what can no longer be settled."""
        for settlement in self._director.expire():
            self._telemetry.settled(settlement)
            self._log_end(settlement)

    def served(self, ticket: str, endpoint: str, status: int) -> None:
        """Take who answered, from a gateway that has no access log for us."""
        self._answered[ticket] = (endpoint, status)

    def released(self, ticket: str) -> None:
        """Take the end of an exchange, from such a gateway: settle by what it told. Without an answer, nobody served."""
        endpoint, status = self._answered.pop(ticket, ("", 0))
        now = time.monotonic()
        started = self._director.sent_at(ticket)
        took_s = 0.0 if started is None else now - started
        self.settle(
            Outcome(
                ticket=ticket,
                request_id="",
                model="",
                endpoint=endpoint,
                status=status,
                flags=() if status else ("DC",),
                details="",
                attempts=1,
                started_at=time.time() - took_s,
                duration_s=took_s,
                first_token_s=None,
                prompt_tokens=None,
                completion_tokens=None,
                cached_tokens=None,
            )
        )

    def _refused(self, request: HttpRequest, rejection: Rejection, took_s: float) -> None:
        refusal = Refusal(
            request_id=request.headers.get(dataplane.REQUEST_ID, ""),
            path=request.path[:_SHOWN],
            model=_model(request.body)[:_SHOWN],
            status=rejection.status,
            reason=rejection.reason,
            message=rejection.message,
            at=time.monotonic(),
        )
        self.refusals.append(refusal)
        self._telemetry.rejected(rejection, refusal.model, took_s)
        level = logging.WARNING if rejection.status >= _SERVER_ERROR else logging.INFO
        if level == logging.WARNING or self._access_log:
            line = refusal._asdict()
            _LOG.log(level, "refused", extra={"why": line.pop("message"), **line})

    def _log_end(self, settlement: Settlement) -> None:
        bad = settlement.end in (End.EXPIRED, End.FAILED) and _status(settlement) not in range(400, 500)
        if bad:
            _LOG.warning("failed", extra=_line(settlement))
        elif self._access_log:
            _LOG.info("served", extra=_line(settlement))


def _status(settlement: Settlement) -> int:
    return settlement.outcome.status if settlement.outcome is not None else 0


def _line(settlement: Settlement) -> dict[str, Any]:
    sent, outcome = settlement.sent, settlement.outcome
    line: dict[str, Any] = {
        "request_id": sent.request_id,
        "ticket": sent.ticket,
        "path": sent.path,
        "model": sent.model,
        "route": sent.route,
        "target": sent.target,
        "answered_by": settlement.target,
        "endpoint": settlement.served or (outcome.endpoint if outcome else ""),
        "chosen": sent.endpoints[0],
        "failed": settlement.failed,
        "end": settlement.end.value,
    }
    if outcome is not None:
        line |= {
            "status": outcome.status,
            "flags": outcome.flags,
            "details": outcome.details,
            "attempts": outcome.attempts,
            "duration_s": round(outcome.duration_s, 6),
            "first_token_s": outcome.first_token_s,
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
            "cached_tokens": outcome.cached_tokens,
        }
    return line


def _model(body: bytes) -> str:
    """Return the model that a refused request named, for the metric; "" if it cannot be told."""
    try:
        return _named(body).model or ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
