"""What settled requests tell about the speed of the endpoint that served them.

Times are Envoy's, from the request's start; what was tried elsewhere before is in them, so that only first tries count. A
stream tells the time to its first token and the time between tokens. An answer in one piece comes when all of it is
there: it tells the time between tokens, less what the endpoint is known to take for the first; without further tokens, as
an embedding, it is the first token itself. Time in which the request waited for its turn, or another endpoint computed the
prompt, does not count.
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
    if elsewhere_s := settlement.sent.prefill_s + settlement.sent.waited_s:
        first_s = outcome.first_token_s
        outcome = outcome._replace(
            duration_s=max(outcome.duration_s - elsewhere_s, 0.0),
            first_token_s=None if first_s is None else max(first_s - elsewhere_s, 0.0),
        )
    tokens = _computed(settlement.sent, outcome)
    load = table.view["inflight"][row] + 1
    if settlement.sent.stream:
        sample = _streamed(outcome, tokens, load)
    elif settlement.end is End.COMPLETE:
        sample = _in_one_piece(outcome, tokens, load, latency.expected_ttft_at(table.view, row, tokens))
    else:
        return
    latency.record(table, row, sample, now)


def _computed(sent: Sent, outcome: Outcome) -> float:
    """Return the prompt tokens that had to be computed: as the engine counted, else as was expected."""
    if outcome.prompt_tokens is None:
        return sent.prompt_tokens * (1.0 - sent.matched / max(sent.blocks, 1))
    return float(max(outcome.prompt_tokens - (outcome.cached_tokens or 0), 0))


def _streamed(outcome: Outcome, tokens: float, load: int) -> Sample:
    first_s, count = outcome.first_token_s, outcome.completion_tokens or 0
    between_s = None
    if first_s is not None and count > 1 and outcome.duration_s >= first_s:
        between_s = (outcome.duration_s - first_s) / (count - 1)
    return Sample(first_s, tokens, between_s, load)


def _in_one_piece(outcome: Outcome, tokens: float, load: int, known_ttft_s: float) -> Sample:
    count = outcome.completion_tokens or 0
    if count <= 1:
        return Sample(outcome.duration_s, tokens, None, load)
    first_s = min(known_ttft_s or outcome.duration_s / count, outcome.duration_s)
    return Sample(None, tokens, (outcome.duration_s - first_s) / (count - 1), load)
