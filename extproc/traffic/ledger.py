"""The ledger: every request that was sent, from its decision to its one outcome.

A ticket is opened by the decision and settled by Envoy's access log, once: a second record, or one with a ticket that is
not ours, is counted and changes nothing. The ledger is the only writer of the table's in-flight columns: a request counts
at the endpoint that it was sent to first until it is settled, expires, or the endpoint leaves.

What never arrives expires. Streams may be long, so age alone says little; but a record is surely lost when the engines
that could serve the request have reported, well after it was sent, that they have nothing to do. Only where engines
report nothing does age decide, after an hour: longer than 100,000 tokens at 30 a second.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from extproc.traffic.standing import Standing
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.types import Outcome

_REMEMBERED: Final = 8192  # settled tickets, to tell a duplicate from a stranger: a minute of traffic at 130 req/s
# Envoy's response flags that speak against the endpoint: connection failed, terminated, reset, timed out; no answer, or silence.
_FAILURES: Final = frozenset({"UF", "UC", "UR", "UT", "UPE", "SI"})
_CLIENT_LEFT: Final = frozenset({"DC", "DR"})
_REFUSALS: Final = frozenset({502, 503})  # an engine that answers these cannot serve now


class Sent(NamedTuple):
    """A request on its way. A named tuple, as it is made for every request."""

    ticket: str
    request_id: str
    model: str  # the name that the client asked for
    engine_model: str  # the name that went to the engine
    target: str  # ModelServer
    route: str
    path: str
    stream: bool
    endpoints: tuple[str, ...]  # best first
    prompt_tokens: int  # estimate
    blocks: int  # of its prefix
    matched: int  # of these, held by the endpoint that was chosen, as far as was known
    at: float  # monotonic seconds
    predicted_cached_tokens: int | None = None  # that its engine will find in its cache; None: not known exactly
    prefill_s: float = 0.0  # that another endpoint took for the prompt before
    waited_s: float = 0.0  # for its turn, before that
    outside: bool = False  # sent to an external provider, whose endpoints tell nothing of themselves
    further: Mapping[str, str] = {}  # those of the endpoints that are not the target's, and whose they are
    choices: int = 1  # answers that are made at once
    max_tokens: int | None = None  # of each, as the client bounds it


class End(Enum):
    """How a request ended."""

    COMPLETE = "complete"  # a success, and the client got all of it
    CLIENT_GONE = "client-gone"
    FAILED = "failed"
    EXPIRED = "expired"


class Done(NamedTuple):
    """What an engine can be expected to have done for a request when it was told to stop."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt


class Charged(NamedTuple):
    """What a request was charged by its limits; None where there is no limit of the kind."""

    by: str  # how it was found: a word of `limits.charging`
    requests: int | None
    input_tokens: int | None
    output_tokens: int | None


class Settlement(NamedTuple):
    """The one outcome of a request."""

    sent: Sent
    end: End
    outcome: Outcome | None  # None: expired
    served: str  # address that answered; "" if none did
    failed: tuple[str, ...]  # addresses that were tried and did not serve
    chain: Sequence[int] = ()  # hashes of the prefix's blocks
    done: Done | None = None  # where the engine could not tell what it did; None: it did, or nobody knows
    charged: Charged | None = None  # None: no limit met it

    @property
    def target(self) -> str:
        """The ModelServer that answered, or whose the request was."""
        return self.sent.further.get(self.served, self.sent.target)


@dataclass(slots=True)
class Counts:
    """What has gone through the ledger."""

    opened: int = 0
    settled: int = 0
    expired: int = 0
    duplicates: int = 0  # records of requests that are settled already
    strangers: int = 0  # records whose ticket is not ours


@dataclass(slots=True, eq=False)
class Loan:
    """A prefill leg, as it counts at the endpoint that performs it."""

    row: int | None  # None: it counts nowhere (any more)
    tokens: int


@dataclass(slots=True)
class _Open:
    sent: Sent
    chain: array[int]  # eight bytes a block: prompts of 100k tokens have thousands, and streams stay open for long
    row: int | None  # where it counts as in flight; None: that endpoint left
    loan: Loan | None = None  # a prefill leg that somebody else performs: it is over when the request is
    outside: bool = False  # with an external provider, which tells nothing of itself


class Ledger:
    """All open requests. One owner; written on the loop only."""

    def __init__(self, table: EndpointTable, *, grace_s: float = 60.0, longest_s: float = 3600.0) -> None:
        """`grace_s`: how much younger than a report of idleness a request must not be; covers a late access log."""
        self.counts = Counts()
        self._table = table
        self._standing = Standing(table)
        self._grace_s = grace_s
        self._longest_s = longest_s
        self._open: dict[str, _Open] = {}
        self._loans: set[Loan] = set()
        self._ended: set[str] = set()
        self._ended_order: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._open)

    def sent_at(self, ticket: str) -> float | None:
        """Return when an open request was sent, None if it is not open."""
        opened = self._open.get(ticket)
        return None if opened is None else opened.sent.at

    def lend(self, address: str, tokens: int) -> Loan:
        """Count a prefill leg of so many tokens at `address`, until it is given back."""
        loan = Loan(self._table.row(address), tokens)
        if loan.row is not None:
            self._table.view["inflight"][loan.row] += 1
            self._table.view["inflight_tokens"][loan.row] += tokens
            self._loans.add(loan)
        return loan

    def give_back(self, loan: Loan) -> None:
        """End a prefill leg; a second time does nothing."""
        if loan.row is not None:
            self._table.view["inflight"][loan.row] -= 1
            self._table.view["inflight_tokens"][loan.row] -= loan.tokens
            loan.row = None
        self._loans.discard(loan)

    def leg_failed(self, address: str, *, sent_at: float, now: float) -> None:
        """Avoid an endpoint that failed a prefill leg for a while."""
        self._standing.failed(address, sent_at=sent_at, now=now)

    def leg_served(self, address: str) -> None:
        """Forget the failures of an endpoint that performed a prefill leg."""
        self._standing.served(address)

    def open(self, sent: Sent, chain: Sequence[int] = (), loan: Loan | None = None) -> None:
        """Begin a request whose prefix has the block hashes `chain`. Raises ValueError if its ticket is in use.

        A `loan` is given back when the request ends.
        """
        if sent.ticket in self._open:
            raise ValueError(f"ticket {sent.ticket} is open already")
        row = self._table.row(sent.endpoints[0])
        if row is not None:
            self._table.view["inflight"][row] += 1
            self._table.view["inflight_tokens"][row] += sent.prompt_tokens
        self._open[sent.ticket] = _Open(sent, array("Q", chain), row, loan)
        self.counts.opened += 1

    def relay(self, ticket: str) -> Sent | None:
        """Note that a request has gone on to the provider that overflows; None if it is not open, or may not.

        Its endpoint has done with it, so it counts there no more.
        """
        opened = self._open.get(ticket)
        if opened is None or dataplane.RELAY_ENDPOINT not in opened.sent.further:
            return None
        self._count_off(opened)
        opened.outside = True
        return opened.sent

    def settle(self, outcome: Outcome, now: float) -> Settlement | None:
        """End the request of this record; None if it has ended before, or is not ours."""
        opened = self._open.pop(outcome.ticket, None)
        if opened is None:
            if outcome.ticket in self._ended:
                self.counts.duplicates += 1
            elif outcome.placed:
                self.counts.strangers += 1
            return None
        self._close(opened)
        self.counts.settled += 1
        settlement = _judged(opened, outcome)
        for address in settlement.failed:
            self._standing.failed(address, sent_at=opened.sent.at, now=now)
        if settlement.served and settlement.end is End.COMPLETE:
            self._standing.served(settlement.served)
        return settlement

    def expire(self, now: float) -> list[Settlement]:
        """End what can no longer be settled, oldest first."""
        lost: list[_Open] = []
        for opened in self._open.values():
            age = now - opened.sent.at
            if age < self._grace_s:
                break
            if age >= self._longest_s or self._surely_over(opened):
                lost.append(opened)
        for opened in lost:
            del self._open[opened.sent.ticket]
            self._close(opened)
            self.counts.expired += 1
        return [Settlement(opened.sent, End.EXPIRED, None, "", ()) for opened in lost]

    def release(self, row: int) -> None:
        """Let the endpoint in `row` go: its requests stay open, but count nowhere."""
        for opened in self._open.values():
            if opened.row == row:
                opened.row = None
        for loan in [loan for loan in self._loans if loan.row == row]:
            self._loans.discard(loan)
            loan.row = None
        self._table.inflight[row] = 0
        self._table.inflight_tokens[row] = 0

    def _close(self, opened: _Open) -> None:
        if opened.loan is not None:
            self.give_back(opened.loan)
        self._count_off(opened)
        self._ended.add(opened.sent.ticket)
        self._ended_order.append(opened.sent.ticket)
        if len(self._ended_order) > _REMEMBERED:
            self._ended.discard(self._ended_order.popleft())

    def _count_off(self, opened: _Open) -> None:
        row = opened.row
        if row is not None:
            self._table.view["inflight"][row] -= 1
            self._table.view["inflight_tokens"][row] -= opened.sent.prompt_tokens
            opened.row = None

    def _surely_over(self, opened: _Open) -> bool:
        table, sent = self._table, opened.sent
        if opened.outside or sent.outside:
            return False
        for address in sent.endpoints:
            row = table.row(address)
            if row is None:
                continue
            if table.scraped_at[row] < sent.at + self._grace_s or table.running[row] or table.waiting[row]:
                return False
        return True


def _judged(opened: _Open, outcome: Outcome) -> Settlement:
    """Say how the request ended, who served it and who failed it."""
    sent = opened.sent
    if sent.outside and outcome.endpoint:
        outcome = outcome._replace(endpoint=sent.endpoints[0])  # by its name, whatever that resolves to
    flags = _FAILURES.intersection(outcome.flags)
    refused = outcome.status in _REFUSALS and bool(outcome.endpoint)
    served = "" if flags or refused else outcome.endpoint
    failed = _tried_before(sent.endpoints, outcome) if outcome.placed else ()
    if (flags or refused) and outcome.endpoint and outcome.endpoint not in failed:
        failed = (*failed, outcome.endpoint)
    if outcome.complete:
        end = End.COMPLETE
    elif not _CLIENT_LEFT.isdisjoint(outcome.flags):
        end = End.CLIENT_GONE
    else:
        end = End.FAILED
    return Settlement(sent, end, outcome, served, failed, opened.chain)


def _tried_before(endpoints: tuple[str, ...], outcome: Outcome) -> tuple[str, ...]:
    """Return the endpoints that Envoy tried before the one it reports: it walks the list in order."""
    if outcome.attempts <= 1:
        return ()
    tried = endpoints[: outcome.attempts - 1]
    return tuple(address for address in tried if address != outcome.endpoint)
