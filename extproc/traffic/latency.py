"""What settled requests tell about the speed of the endpoint that served them.

Times are Envoy's, from when the endpoint had the request. What was tried elsewhere before says nothing of it, and may have
begun what it finished, so that only first tries count. Answers that are made at once are as many streams of tokens. A
stream tells the time to its first token and the time between tokens; one of several answers that broke off tells the first
only, as nobody knows the tokens of all. An answer in one piece comes when all of it is there: it tells the time between
tokens, less what the endpoint is known to take for the first; without further tokens, as an embedding, it is the first
token itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from extproc.scheduling import latency
from extproc.scheduling.latency import Sample
from extproc.traffic.ledger import End

if TYPE_CHECKING:
    from extproc.scheduling.endpoints import EndpointTable
    from extproc.traffic.ledger import Sent, Settlement
    from extproc.types import Outcome

_OK: Final = range(200, 300)


def learn(table: EndpointTable, settlement: Settlement, now: float) -> None:
    """Take the times of a request that was served into the table; it must have been taken off `inflight` before."""
    outcome = settlement.outcome
    row = table.row(settlement.served) if settlement.served else None
    if row is None or outcome is None or outcome.attempts > 1 or outcome.status not in _OK:
        return
    if before_s := _before(settlement.sent, outcome):
        first_s = outcome.first_token_s
        outcome = outcome._replace(
            duration_s=max(outcome.duration_s - before_s, 0.0),
            first_token_s=None if first_s is None else max(first_s - before_s, 0.0),
        )
    tokens = computed(settlement.sent, outcome)
    load = table.view["inflight"][row] + 1
    if settlement.sent.stream:
        whole = settlement.end is End.COMPLETE or settlement.sent.choices == 1
        sample = _streamed(settlement.sent, outcome, tokens, load, counted=whole)
    elif settlement.end is End.COMPLETE:
        known_ttft_s = latency.expected_ttft_at(table.view, row, tokens)
        sample = _in_one_piece(settlement.sent, outcome, tokens, load, known_ttft_s=known_ttft_s)
    else:
        return
    latency.record(table, row, sample, now)


def _before(sent: Sent, outcome: Outcome) -> float:
    """Return the time until the endpoint had the request; where that is not told, what went by elsewhere."""
    return sent.prefill_s + sent.waited_s if outcome.sent_s is None else outcome.sent_s


def computed(sent: Sent, outcome: Outcome) -> float:
    """Return the prompt tokens that had to be computed: as the engine counted, else as was expected."""
    if outcome.prompt_tokens is None:
        return sent.prompt_tokens * (1.0 - sent.matched / max(sent.blocks, 1))
    return float(max(outcome.prompt_tokens - (outcome.cached_tokens or 0), 0))


def _streamed(sent: Sent, outcome: Outcome, tokens: float, load: int, *, counted: bool) -> Sample:
    first_s, count = outcome.first_token_s, (outcome.completion_tokens or 0) / sent.choices
    between_s = None
    if counted and first_s is not None and count > 1 and outcome.duration_s >= first_s:
        between_s = (outcome.duration_s - first_s) / (count - 1)
    return Sample(first_s, tokens, between_s, load)


def _in_one_piece(sent: Sent, outcome: Outcome, tokens: float, load: int, *, known_ttft_s: float) -> Sample:
    count = (outcome.completion_tokens or 0) / sent.choices
    if count <= 1:
        return Sample(outcome.duration_s, tokens, None, load)
    first_s = min(known_ttft_s or outcome.duration_s / count, outcome.duration_s)
    return Sample(None, tokens, (outcome.duration_s - first_s) / (count - 1), load)
