"""What an engine has done for a request that it was not let finish: no engine tells, so it is inferred from the time it had.

An engine that a request was passed on to computes the prompt, and then makes a token of each choice in a token's time, until
Envoy closes its connection. What it takes for each further token, and for the first where nobody saw it, settled requests
have told (`scheduling.latency`). Streams of chat and completions tell as they go what was made; answers in one piece do not,
and streams of the other APIs at their end only. So do streams of several choices: what stands in their chunks where the
client asked for it is of one choice and its prompt alone. Who serves at an external provider is an engine as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from extproc.scheduling import latency
from extproc.traffic.latency import computed
from extproc.traffic.ledger import Done, End

if TYPE_CHECKING:
    from extproc.scheduling.endpoints import EndpointTable
    from extproc.traffic.ledger import Settlement
    from extproc.types import Outcome

_TELL_LATE: Final = frozenset({"/v1/messages", "/v1/responses"})
_OK: Final = range(200, 300)
_MOST: Final = 1e9  # tokens; no engine is as fast as that


def done(table: EndpointTable, settlement: Settlement) -> Done | None:
    """Return what was done for a request that broke off; None if its engine told, or the endpoint's times are unknown."""
    outcome, sent = settlement.outcome, settlement.sent
    if outcome is None or settlement.end is End.COMPLETE:
        return None
    begun_s = outcome.sent_s
    if begun_s is None:
        return None
    if not _untold(settlement, outcome):
        return None
    told = outcome.prompt_tokens or 0  # a stream that is translated begins with 0, and tells at its end
    if not told or (sent.choices > 1 and told < sent.prompt_tokens):
        outcome = outcome._replace(prompt_tokens=None)  # nobody told, or of one of the prompts
    row = table.row(outcome.endpoint)
    if row is None or not table.view["tpot_s"][row]:
        return None
    tpot_s: float = table.view["tpot_s"][row]
    missing = computed(sent, outcome)
    ttft_s = latency.expected_ttft_at(table.view, row, missing) or tpot_s
    until_s, first_s = outcome.duration_s, outcome.first_token_s
    if first_s is not None and sent.stream:
        ttft_s = max(first_s - begun_s, 0.0)
    elif first_s is not None:
        until_s = first_s  # the whole answer was there
    made = tokens(until_s - begun_s, ttft_s=ttft_s, tpot_s=tpot_s, most=sent.max_tokens) * sent.choices
    prompt = sent.prompt_tokens if outcome.prompt_tokens is None else outcome.prompt_tokens
    return Done(prompt, max(made, outcome.completion_tokens or 0), max(prompt - round(missing), 0))


def tokens(elapsed_s: float, *, ttft_s: float, tpot_s: float, most: int | None) -> int:
    """Return the tokens of one choice after so many seconds: 1 + floor((elapsed - ttft) / tpot), none before the first.

    `most`: that the client allows; None: any number.
    """
    if elapsed_s < ttft_s:
        return 0
    made = 1 + math.floor(min((elapsed_s - ttft_s) / tpot_s, _MOST))
    return made if most is None else min(made, max(most, 0))


def _untold(settlement: Settlement, outcome: Outcome) -> bool:
    """Tell whether the engine worked on the request and nobody says how long."""
    sent = settlement.sent
    if outcome.status and outcome.status not in _OK:
        return False
    if sent.stream and outcome.first_token_s is None:
        return False  # it is taken for not begun: nothing of it was passed on
    if not outcome.prompt_tokens and not outcome.completion_tokens:
        return True
    if sent.choices > 1:
        return sent.stream
    # A silent engine breaks off as well; what it told is then nearer to what it did than the time is.
    return settlement.end is End.CLIENT_GONE and sent.stream and sent.path in _TELL_LATE
