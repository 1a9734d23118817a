"""The limiter: a request's way through its limits, from its reservation to what it really took.

Reserved are one request, the prompt's tokens, and as many generated tokens as the client allows each of its choices, or,
where it does not say, as answers of the route usually have. At the end what an engine served takes the reservation's
place; what nobody served costs nothing; where an engine answered and did not tell its usage, the reservation stays. A
request whose end is never told gives its reservation back when the ledger gives it up.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.traffic.limits import words
from extproc.traffic.limits.buckets import Buckets, Charge
from extproc.traffic.limits.rules import Kind
from extproc.types import Api

if TYPE_CHECKING:
    from extproc.traffic.ledger import Settlement
    from extproc.traffic.limits.rules import Limits
    from extproc.types import InferenceRequest, Outcome

_FIRST_GUESS: Final = 256.0  # tokens of an answer, while none is known: a long paragraph
_WEIGHT: Final = 1 / 16  # of a new answer in the mean
_MOST_ROUTES: Final = 4096
_WITHOUT_OUTPUT: Final = frozenset({Api.EMBEDDINGS, Api.NATIVE})
_OK: Final = range(200, 300)
_SERVER_ERROR: Final = 500

Headers = tuple[tuple[str, str], ...]


class Reservation(NamedTuple):
    """What an open request was charged."""

    route: str
    charges: tuple[Charge, ...]
    at: float
    choices: int


@dataclass(slots=True)
class _Answers:
    """How many tokens a choice has: mean, and mean deviation from it."""

    mean: float = _FIRST_GUESS
    deviation: float = 0.0

    def learn(self, tokens: float) -> None:
        self.deviation += _WEIGHT * (abs(tokens - self.mean) - self.deviation)
        self.mean += _WEIGHT * (tokens - self.mean)

    @property
    def guess(self) -> int:
        return max(math.ceil(self.mean + 2 * self.deviation), 1)


@dataclass(slots=True)
class Counts:
    """What became of limited requests: by scope, what is counted, and whether the limit is in shadow."""

    over: Counter[tuple[str, str, str]] = field(default_factory=Counter)


class Limiter:
    """Reserves and settles. Written on the loop only."""

    def __init__(self) -> None:
        self.counts = Counts()
        self.buckets = Buckets()
        self._open: dict[str, Reservation] = {}
        self._answers: dict[str, _Answers] = {}  # by route

    def __len__(self) -> int:
        return len(self._open)

    def charges(self, limits: Limits, request: InferenceRequest, *, tenant: str, key: str) -> tuple[Charge, ...]:
        """Return what a request has to reserve."""
        output: int | None = None
        found = []
        for limit in limits.of(tenant, key):
            if limit.kind is Kind.REQUESTS:
                found.append(Charge(limit, 1))
            elif limit.kind is Kind.INPUT:
                found.append(Charge(limit, request.prompt_tokens))
            else:
                if output is None:
                    output = self._output(limits.route, request)
                # a bound that is over the limit is no reason to owe more than the limit: what comes is settled
                found.append(Charge(limit, min(output, limit.amount)))
        return tuple(found)

    def admit(self, ticket: str, charges: tuple[Charge, ...], *, route: str, choices: int, now: float) -> Headers:
        """Reserve; returns the headers that tell of it. Raises LimitReached, and has charged nothing then."""
        verdict = self.buckets.take(charges, now)
        for (limit, _), over in zip(charges, verdict.over, strict=True):
            if over:
                self.counts.over[limit.scope, limit.kind.value, "shadow" if limit.shadow else "enforced"] += 1
        if not verdict.admitted:
            raise words.refusal(charges, verdict)
        taken = tuple(charge for charge, over in zip(charges, verdict.over, strict=True) if not over)
        self._open[ticket] = Reservation(route, taken, now, choices)
        return words.headers(charges, verdict)

    def cancel(self, ticket: str, now: float) -> None:
        """Give back all that was reserved: the request goes nowhere."""
        reservation = self._open.pop(ticket, None)
        if reservation is not None:
            for charge in reservation.charges:
                self.buckets.settle(charge, actual=0, since=reservation.at, now=now)

    def settle(self, settlement: Settlement, now: float) -> None:
        """Charge what the request took; does nothing for one that was not limited."""
        reservation = self._open.pop(settlement.sent.ticket, None)
        if reservation is None:
            return
        outcome = settlement.outcome
        for charge in reservation.charges:
            actual = took(charge, outcome)
            self.buckets.settle(charge, actual=actual, since=reservation.at, now=now)
        if outcome is not None and outcome.complete and outcome.completion_tokens is not None:
            answers = self._answers.get(reservation.route)
            if answers is None:
                if len(self._answers) >= _MOST_ROUTES:
                    self._answers.clear()
                answers = self._answers[reservation.route] = _Answers()
            answers.learn(outcome.completion_tokens / reservation.choices)

    def prune(self, now: float) -> None:
        """Forget what is empty; to be called every few seconds."""
        self.buckets.prune(now)

    def _output(self, route: str, request: InferenceRequest) -> int:
        if request.api in _WITHOUT_OUTPUT:
            return 0
        each = request.max_tokens
        if each is None:
            answers = self._answers.get(route)
            each = answers.guess if answers is not None else int(_FIRST_GUESS)
        return max(each, 0) * request.choices


def took(charge: Charge, outcome: Outcome | None) -> int:
    """Return what the request really took of a limit; what was reserved where that is not known."""
    if outcome is None or not outcome.placed or not outcome.endpoint:
        return 0
    kind, status = charge.limit.kind, outcome.status
    if kind is Kind.REQUESTS:
        return 1 if status < _SERVER_ERROR else 0
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    if prompt is None and completion is None:
        return charge.amount if status in _OK or not status else 0
    return (prompt if kind is Kind.INPUT else completion) or 0
