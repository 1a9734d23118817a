"""The limiter: a request's way through its limits, from its reservation to what it really took.

Reserved are one request, the prompt's tokens, and as many generated tokens as the client allows each of its choices, or,
where it does not say, as answers of the route usually have. At the end what it took takes the reservation's place
(`charging`). A request whose end is never told gives its reservation back when the ledger gives it up.

Where several pickers count together, the counter's word is final, and this picker's buckets follow it: each holds the
share that is this picker's if the counter cannot be reached. Then it admits by that share, and tells what was spent later.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.traffic.ledger import Charged
from extproc.traffic.limits import words
from extproc.traffic.limits.buckets import Buckets, Charge, Verdict
from extproc.traffic.limits.charging import took
from extproc.traffic.limits.rules import Kind
from extproc.types import Api, Asked, Spent, Take

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extproc.traffic.ledger import Settlement
    from extproc.traffic.limits.rules import Limit, Limits
    from extproc.types import InferenceRequest, Taken

_FIRST_GUESS: Final = 256.0  # tokens of an answer, while none is known: a long paragraph
_WEIGHT: Final = 1 / 16  # of a new answer in the mean
_MOST_ROUTES: Final = 4096
_WITHOUT_OUTPUT: Final = frozenset({Api.EMBEDDINGS, Api.NATIVE})

Headers = tuple[tuple[str, str], ...]


class Reservation(NamedTuple):
    """What an open request was charged."""

    route: str
    charges: tuple[Charge, ...]  # as they count here
    at: float
    choices: int
    store: str = ""  # where they count, too
    here: bool = True  # they are in this picker's buckets
    there: bool = False  # the counter has said that it charged them


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
    alone: int = 0  # admitted or refused without the counter that they should have been
    settled: Counter[str] = field(default_factory=Counter)  # by how it was found what they took


class Limiter:
    """Reserves and settles. Written on the loop only."""

    def __init__(self, tell: Callable[[Spent], None] = lambda _spent: None) -> None:
        """`tell` hears what was spent of shared limits."""
        self.tell = tell
        self.counts = Counts()
        self._pickers: dict[str, int] = {}  # by counter, as it last told
        self.buckets = Buckets()
        self._shared = Buckets()  # as counters last told
        self._open: dict[str, Reservation] = {}
        self._answers: dict[str, _Answers] = {}  # by route
        self._asked: dict[str, Limit] = {}  # shared limits that were asked for lately
        self._untold: Counter[str] = Counter()  # by limit: what was admitted alone, until its counter has taken it

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

    def ask(self, ticket: str, charges: tuple[Charge, ...], limits: Limits, *, choices: int, now: float) -> Take:
        """Return what to ask of the counter that the limits share."""
        self._open[ticket] = Reservation(
            limits.route, charges, now, choices, limits.store, here=False
        )  # there it may be charged from now on
        self._asked |= {limit.key: limit for limit, _ in charges}
        return Take(
            limits.store,
            limits.route,
            ticket,
            tuple(
                Asked(
                    limit.key,
                    amount,
                    limit.amount,
                    limit.rate,
                    limit.shadow,
                    self._shared.used(limit.key, now),
                    self._untold[limit.key],
                )
                for limit, amount in charges
            ),
        )

    def answered(self, ticket: str, taken: Taken, now: float) -> Headers:
        """Take the counter's word; returns the headers that tell of it. Raises LimitReached."""
        reservation = self._open[ticket]
        charges = reservation.charges
        pickers = self._pickers[reservation.store] = max(taken.pickers, 1)
        known = tuple(used + self._untold[limit.key] for (limit, _), used in zip(charges, taken.used, strict=True))
        for (limit, _), used, told in zip(charges, known, taken.used, strict=True):
            self.buckets.put(_share(limit, pickers), used / pickers, now)
            self._shared.put(limit, told, now)
        verdict = Verdict(taken.admitted, taken.over, known, now)
        self._count(charges, verdict)
        if not verdict.admitted:
            del self._open[ticket]
            raise words.refusal(charges, verdict)
        self._open[ticket] = reservation._replace(charges=_charged(charges, verdict), at=now, here=True, there=True)
        return words.headers(charges, verdict)

    def alone(self, ticket: str, now: float) -> Headers:
        """Go on without the counter, by this picker's share. Raises LimitReached."""
        self.counts.alone += 1
        reservation = self._open[ticket]
        pickers = self._pickers.get(reservation.store, 1)
        charges = tuple(Charge(_share(limit, pickers), amount) for limit, amount in reservation.charges)
        return self._admit(ticket, reservation._replace(charges=charges, at=now))

    def admit(self, ticket: str, charges: tuple[Charge, ...], *, route: str, choices: int, now: float) -> Headers:
        """Reserve; returns the headers that tell of it. Raises LimitReached, and has charged nothing then."""
        return self._admit(ticket, Reservation(route, charges, now, choices))

    def cancel(self, ticket: str, now: float) -> None:
        """Give back all that was reserved: the request goes nowhere."""
        reservation = self._open.pop(ticket, None)
        if reservation is not None:
            self._spend(ticket, reservation, tuple(0 for _ in reservation.charges), now)

    def settle(self, settlement: Settlement, now: float) -> Charged | None:
        """Charge what the request took, and tell; None for one that was not limited."""
        ticket = settlement.sent.ticket
        reservation = self._open.pop(ticket, None)
        if reservation is None:
            return None
        outcome, found = settlement.outcome, took(settlement)
        amounts = tuple(found.of(charge) for charge in reservation.charges)
        self.counts.settled[found.by] += 1
        self._spend(ticket, reservation, amounts, now)
        if outcome is not None and outcome.complete and outcome.completion_tokens is not None:
            answers = self._answers.get(reservation.route)
            if answers is None:
                if len(self._answers) >= _MOST_ROUTES:
                    self._answers.clear()
                answers = self._answers[reservation.route] = _Answers()
            answers.learn(outcome.completion_tokens / reservation.choices)
        most: dict[Kind, int] = {}
        for (limit, _), amount in zip(reservation.charges, amounts, strict=True):
            most[limit.kind] = max(amount, most.get(limit.kind, 0))
        return Charged(found.by, most.get(Kind.REQUESTS), most.get(Kind.INPUT), most.get(Kind.OUTPUT))

    def _admit(self, ticket: str, reservation: Reservation) -> Headers:
        charges = reservation.charges
        verdict = self.buckets.take(charges, reservation.at)
        self._count(charges, verdict)
        if not verdict.admitted:
            if reservation.store:  # nobody knows whether the counter has charged it
                self.tell(_spent(ticket, reservation, tuple(0 for _ in charges)))
                del self._open[ticket]
            raise words.refusal(charges, verdict)
        reservation = reservation._replace(charges=_charged(charges, verdict), here=True)
        if reservation.store:
            self._untold.update({limit.key: amount for limit, amount in reservation.charges})
        self._open[ticket] = reservation
        return words.headers(charges, verdict)

    def _spend(self, ticket: str, reservation: Reservation, amounts: tuple[int, ...], now: float) -> None:
        for charge, actual in zip(reservation.charges, amounts, strict=True) if reservation.here else ():
            self.buckets.settle(charge, actual=actual, since=reservation.at, now=now)
        if reservation.store:
            if reservation.here and not reservation.there:
                for (limit, reserved), actual in zip(reservation.charges, amounts, strict=True):
                    self._untold[limit.key] += actual - reserved
            self.tell(_spent(ticket, reservation, amounts))

    def told(self, spent: Spent) -> None:
        """Take that a counter knows what was spent."""
        if spent.alone:
            for key, amount, _, _ in spent.amounts:
                self._untold[key] -= amount
                if not self._untold[key]:
                    del self._untold[key]

    def heard(self, store: str, pickers: int, levels: Mapping[str, float], now: float) -> None:
        """Take what a counter says is used of some of its limits, and who counts there."""
        self._pickers[store] = pickers
        for key, level in levels.items():
            limit = self._asked.get(key)
            if limit is not None and math.isfinite(level):
                self.buckets.put(_share(limit, pickers), (level + self._untold[key]) / pickers, now)
                self._shared.put(limit, level, now)

    def _count(self, charges: tuple[Charge, ...], verdict: Verdict) -> None:
        for (limit, _), over in zip(charges, verdict.over, strict=True):
            if over:
                self.counts.over[limit.scope, limit.kind.value, "shadow" if limit.shadow else "enforced"] += 1

    def prune(self, now: float) -> None:
        """Forget what is empty; to be called every few seconds."""
        self.buckets.prune(now)
        self._shared.prune(now)
        if len(self._asked) > _MOST_ROUTES:
            self._asked.clear()

    def _output(self, route: str, request: InferenceRequest) -> int:
        if request.api in _WITHOUT_OUTPUT:
            return 0
        each = request.max_tokens
        if each is None:
            answers = self._answers.get(route)
            each = answers.guess if answers is not None else int(_FIRST_GUESS)
        return max(each, 0) * request.choices


def _charged(charges: tuple[Charge, ...], verdict: Verdict) -> tuple[Charge, ...]:
    return tuple(charge for charge, over in zip(charges, verdict.over, strict=True) if not over)


def _share(limit: Limit, pickers: int) -> Limit:
    """Return the part of a limit that is one picker's while it is alone."""
    if pickers == 1:
        return limit
    return limit._replace(amount=max(limit.amount // pickers, 1), rate=limit.rate / pickers, stated=limit.amount)


def _spent(ticket: str, reservation: Reservation, amounts: tuple[int, ...]) -> Spent:
    return Spent(
        reservation.store,
        reservation.route,
        ticket,
        tuple(
            (charge.limit.key, amount, charge.limit.rate, charge.amount if reservation.there else 0)
            for charge, amount in zip(reservation.charges, amounts, strict=True)
        ),
        alone=reservation.here and not reservation.there,
    )
