"""Accounts: what a request is expected to cost its tenant, and what it did cost, in weighted tokens.

A request is charged when its turn comes, and corrected twice: when it is known how much of its prompt is cached where it
goes, and when it has ended. An answer is as long as those that the tenant had before, up to the client's bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from extproc.traffic.limits.charging import NOTHING, RESERVATION, USAGE, took
from extproc.types import Api

if TYPE_CHECKING:
    from extproc.scheduling.flow import FlowControl
    from extproc.traffic.flow.queue import Entry
    from extproc.traffic.ledger import Settlement
    from extproc.types import InferenceRequest

_FIRST_GUESS: Final = 256.0  # tokens of an answer, while none of the tenant's is known: a long paragraph
_WEIGHT: Final = 1 / 16  # of a new answer in a tenant's mean
_MOST_TENANTS: Final = 4096  # whose answers are remembered
_WITHOUT_OUTPUT: Final = frozenset({Api.EMBEDDINGS, Api.NATIVE})


class Accounts:
    """Charges the counters of the requests' bands."""

    def __init__(self) -> None:
        self.rules: FlowControl | None = None
        self.tokens: dict[str, float] = {}  # charged in all, by tenant as the configuration names it
        self._answers: dict[str, float] = {}  # by tenant: mean tokens

    def output(self, tenant: str, request: InferenceRequest) -> int:
        """Return the tokens that the answer is expected to have."""
        if request.api in _WITHOUT_OUTPUT:
            return 0
        usual = math.ceil(self._answers.get(tenant, _FIRST_GUESS))
        return usual if request.max_tokens is None else min(max(request.max_tokens, 0) * request.choices, usual)

    def open(self, entry: Entry) -> None:
        """Charge a request whose turn has come, as if nothing of its prompt were cached."""
        if entry.band is not None:
            entry.expected = _weighed(entry, entry.tokens[0], 0, entry.tokens[1])
            entry.band.counters.serve(entry.tenant, entry.expected)
            self._tell(entry, entry.expected)

    def sent(self, entry: Entry, cached: int) -> None:
        """Take that so many tokens of the prompt are known where the request went."""
        self._charge(entry, _weighed(entry, entry.tokens[0], min(cached, entry.tokens[0]), entry.tokens[1]))

    def cancel(self, entry: Entry) -> None:
        """Give back all that was charged."""
        self._charge(entry, 0.0)

    def settle(self, entry: Entry, settlement: Settlement) -> None:
        """Count what the engine did in place of what was expected, as far as it is known: as limits do."""
        outcome, found = settlement.outcome, took(settlement)
        if outcome is None or found.by == RESERVATION:
            return
        if found.by == NOTHING:
            self.cancel(entry)
        elif found.prompt is None:  # a stream that never began: its prompt may be computed, nothing is made
            self._charge(entry, entry.expected - _weighed(entry, 0, 0, entry.tokens[1]))
        else:
            cached = settlement.done.cached_tokens if settlement.done is not None else outcome.cached_tokens or 0
            output = found.completion or 0
            self._charge(entry, _weighed(entry, found.prompt, min(cached, found.prompt), output))
            if found.by == USAGE and outcome.completion_tokens is not None:
                self._learn(entry.tenant, output)

    def _learn(self, tenant: str, output: int) -> None:
        """Take an answer's length into the tenant's mean."""
        if len(self._answers) >= _MOST_TENANTS and tenant not in self._answers:
            self._answers.clear()
        mean = self._answers.get(tenant, float(output))
        self._answers[tenant] = mean + _WEIGHT * (output - mean)

    def _charge(self, entry: Entry, tokens: float) -> None:
        """Let the request count `tokens` from now on."""
        more = tokens - entry.expected
        if more and entry.band is not None:
            entry.expected = tokens
            entry.band.counters.correct(entry.tenant, more)
            self._tell(entry, more)

    def _tell(self, entry: Entry, tokens: float) -> None:
        tenants = self.rules.tenants if self.rules is not None else ()
        name = entry.tenant if entry.tenant in tenants else "other"
        self.tokens[name] = self.tokens.get(name, 0.0) + tokens


def _weighed(entry: Entry, prompt: int, cached: int, output: int) -> float:
    prices = entry.band.rule.prices if entry.band is not None else None
    return 0.0 if prices is None else prices.weighed(prompt, cached, output) / entry.weight
