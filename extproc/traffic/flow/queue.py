"""What waits for one pool: bands by priority, in a band each tenant's requests in the order of their arrival.

The queue knows who is next, who has to make room, and what is counted; whether anybody may go is the gate's business.
"""

from __future__ import annotations

import heapq
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from extproc.traffic.flow.counters import Counters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from extproc.errors import Rejection
    from extproc.scheduling.flow import Band as Rule

_COMPARED: Final = 4  # requests whose prompts are looked up to find the one that is known best


class State(Enum):
    """Where a request stands."""

    WAITING = auto()
    GRANTED = auto()  # its turn has come, and it is not sent yet
    SENT = auto()
    GONE = auto()  # it left, or was refused


class Entry:
    """One request at the gate."""

    __slots__ = (
        "answer",
        "at",
        "band",
        "deadline",
        "expected",
        "known",
        "pool",
        "priority",
        "size",
        "state",
        "tenant",
        "ticket",
        "tokens",
        "verdict",
        "weight",
    )

    def __init__(  # noqa: PLR0913 - what a request is to the gate
        self,
        ticket: str,
        *,
        pool: str,
        priority: int,
        tenant: str,
        weight: float,
        size: int,
        tokens: tuple[int, int],
        at: float,
        known: Callable[[], int] | None,
    ) -> None:
        """`tokens`: of the prompt, and expected of the answer; `known` tells how many of the prompt an endpoint with a place has."""
        self.ticket = ticket
        self.pool = pool
        self.priority = priority
        self.tenant = tenant
        self.weight = weight
        self.size = size
        self.tokens = tokens
        self.at = at  # monotonic seconds
        self.known = known
        self.expected = 0.0  # what it was charged
        self.deadline = 0.0
        self.band: Band | None = None
        self.state = State.WAITING
        self.verdict: Rejection | None = None
        self.answer: Callable[[Rejection | None], None] | None = None

    def then(self, answer: Callable[[Rejection | None], None]) -> None:
        """Call `answer` once the wait is over: with None if the request goes on."""
        if self.state is State.WAITING:
            self.answer = answer
        else:
            answer(self.verdict)

    def end(self, verdict: Rejection | None) -> None:
        """End the wait."""
        self.verdict = verdict
        self.known = None
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(verdict)


class Flow(dict[str, Entry]):
    """What one tenant has waiting, by ticket, oldest first."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.size = 0  # bytes

    def head(self) -> Entry:
        """Return the oldest."""
        return next(iter(self.values()))


class Band:
    """Requests of one priority."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.counters = Counters()
        self.flows: dict[str, Flow] = {}  # of the tenants that wait
        self.count = 0
        self.size = 0

    def add(self, entry: Entry) -> None:
        """Let a request wait."""
        flow = self.flows.get(entry.tenant)
        if flow is None:
            self.counters.lift(entry.tenant, self.flows)
            flow = self.flows[entry.tenant] = Flow()
        flow[entry.ticket] = entry
        flow.size += entry.size
        self.count += 1
        self.size += entry.size

    def remove(self, entry: Entry) -> None:
        """Take a request out."""
        flow = self.flows[entry.tenant]
        del flow[entry.ticket]
        flow.size -= entry.size
        if not flow:
            del self.flows[entry.tenant]
        self.count -= 1
        self.size -= entry.size

    def next(self) -> Entry:
        """Return who is next, of those that wait."""
        heads = [flow.head() for flow in self.flows.values()]
        if len(heads) == 1:
            return heads[0]
        prices = self.rule.prices
        if prices is None:
            return min(heads, key=lambda entry: entry.at)
        level = self.counters.level
        if prices.locality:
            lowest = heapq.nsmallest(_COMPARED, heads, key=lambda entry: (level(entry.tenant), entry.at))
            bound = level(lowest[0].tenant) + prices.locality
            near = [entry for entry in lowest if level(entry.tenant) <= bound]
            if len(near) > 1:
                return max(near, key=lambda entry: entry.known() if entry.known is not None else 0)
            return lowest[0]
        return min(heads, key=lambda entry: (level(entry.tenant), entry.at))

    def displaced(self, entry: Entry, *, by_bytes: bool) -> Iterator[Entry]:
        """Yield what may leave for `entry`: the newest of the tenant that has most, down to what `entry`'s would have."""

        def share(flow: Flow) -> int:
            return flow.size if by_bytes else len(flow)

        if not self.flows:
            return
        tenant, flow = max(self.flows.items(), key=lambda one: share(one[1]))
        if tenant == entry.tenant:
            return
        own = entry.size if by_bytes else 1
        if entry.tenant in self.flows:
            own += share(self.flows[entry.tenant])
        left = share(flow)
        for one in reversed(flow.values()):
            left -= one.size if by_bytes else 1
            if left < own:
                return
            yield one


class Queue:
    """Everything that waits for one pool."""

    def __init__(self) -> None:
        self.bands: dict[int, Band] = {}
        self.granted = 0  # turns whose requests are not sent yet
        self.count = 0

    def band(self, priority: int, rule: Rule) -> Band:
        """Return the band of a priority, which goes by `rule` from now on."""
        band = self.bands.get(priority)
        if band is None:
            band = self.bands[priority] = Band(rule)
            self.bands = dict(sorted(self.bands.items(), reverse=True))
        band.rule = rule
        return band

    def add(self, entry: Entry) -> None:
        """Let a request wait; its band is there."""
        self.bands[entry.priority].add(entry)
        self.count += 1

    def remove(self, entry: Entry) -> None:
        """Take a request out."""
        self.bands[entry.priority].remove(entry)
        self.count -= 1

    def next(self) -> Entry | None:
        """Return who is next, None if nobody waits."""
        if not self.count:
            return None
        return next(band for band in self.bands.values() if band.count).next()

    def entries(self) -> Iterator[Entry]:
        """Yield what waits, the most urgent first."""
        for band in self.bands.values():
            for flow in band.flows.values():
                yield from flow.values()

    def oldest(self) -> float | None:
        """Return since when the first of them has waited; None if nobody waits."""
        heads = [flow.head().at for band in self.bands.values() for flow in band.flows.values()]
        return min(heads, default=None)
