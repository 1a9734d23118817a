"""Charging: what a request took of its limits, by how its exchange ended.

usage         the whole answer went out: the engine's count
passed-on     a stream broke off: what Envoy had seen of it; before its first token, the prompt alone
estimate      an answer broke off whose engine does not tell as it goes: what it did in the time it had, at most what was reserved
reservation   an engine worked on it, and nobody knows how much
nothing       no engine got it, or the engine failed or refused it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.traffic.ledger import End
from extproc.traffic.limits.rules import Kind

if TYPE_CHECKING:
    from extproc.traffic.ledger import Settlement
    from extproc.traffic.limits.buckets import Charge
    from extproc.types import Outcome

USAGE: Final = "usage"
PASSED_ON: Final = "passed-on"
ESTIMATE: Final = "estimate"
RESERVATION: Final = "reservation"
NOTHING: Final = "nothing"

_OK: Final = range(200, 300)
_SERVER_ERROR: Final = 500


class Took(NamedTuple):
    """What a request took; None: what was reserved."""

    by: str
    requests: int
    prompt: int | None
    completion: int | None

    def of(self, charge: Charge) -> int:
        """Return what it took of a limit."""
        kind = charge.limit.kind
        if kind is Kind.REQUESTS:
            return self.requests
        tokens = self.prompt if kind is Kind.INPUT else self.completion
        if tokens is None:
            return charge.amount
        return min(tokens, charge.amount) if self.by == ESTIMATE else tokens


_NOBODY: Final = Took(NOTHING, 0, 0, 0)


def took(settlement: Settlement) -> Took:
    """Say what a request took, and how that was found."""
    outcome = settlement.outcome
    if outcome is None or not _begun(settlement, outcome):
        return _NOBODY
    requests = 1 if outcome.status < _SERVER_ERROR else 0
    if settlement.done is not None:
        return Took(ESTIMATE, requests, settlement.done.prompt_tokens, settlement.done.completion_tokens)
    if _told(settlement, outcome):
        by = USAGE if settlement.end is End.COMPLETE else PASSED_ON
        return Took(by, requests, outcome.prompt_tokens or 0, outcome.completion_tokens or 0)
    if outcome.status and outcome.status not in _OK:
        return Took(NOTHING, requests, 0, 0)
    if settlement.sent.stream and outcome.first_token_s is None:
        return Took(PASSED_ON, requests, None, 0)
    return Took(RESERVATION, requests, None, None)


def _told(settlement: Settlement, outcome: Outcome) -> bool:
    """Tell whether the usage that was seen is that of the request, as far as it came."""
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    if settlement.end is End.COMPLETE:
        return prompt is not None or completion is not None
    # A stream of several choices tells of one of them, and one that is translated begins with zeros.
    return bool(prompt or completion) and (settlement.sent.choices == 1 or not settlement.sent.stream)


def _begun(settlement: Settlement, outcome: Outcome) -> bool:
    """Tell whether an engine had all of the request."""
    if not outcome.placed or not outcome.endpoint:
        return False
    told = outcome.prompt_tokens is not None or outcome.completion_tokens is not None
    return told or settlement.end is not End.CLIENT_GONE or outcome.sent_s is not None
