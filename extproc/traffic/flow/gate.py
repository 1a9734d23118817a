"""The gate: a request's way past what waits for its pool, from its arrival to what it really took.

It goes on at once while nobody waits and an endpoint has a place. Else it waits, is refused, or makes others leave: within
its bounds a band is shared, so that a tenant that fills it displaces itself. When a place comes free, whoever is next goes
on in the same moment; nothing is polled. A turn counts as a place taken until its request is sent and counts by itself.

Written on the loop only. Where every request is told: `Passed` for the record, a refusal for the client.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from extproc import errors
from extproc.traffic.flow import callers
from extproc.traffic.flow.accounts import Accounts
from extproc.traffic.flow.queue import Entry, Queue, State
from extproc.types import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.flow import Band as Rule
    from extproc.scheduling.flow import FlowControl
    from extproc.traffic.flow.objectives import Priorities
    from extproc.traffic.ledger import Settlement
    from extproc.types import Errand, HttpRequest, InferenceRequest

_LONGEST_RETRY_S: Final = 60
_STALE: Final = 64  # deadlines of requests that have left, beyond as many as there are of others
BOUNDS: Final = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Detector(Protocol):
    """Knows when an endpoint has as much as it may."""

    def places(self, table: EndpointTable, rows: Sequence[int], now: float) -> list[float]:
        """Return how many more requests each of the endpoints takes."""
        ...


class Pool(Protocol):
    """Knows the endpoints of a ModelServer."""

    def __call__(self, server: str) -> Sequence[NDArray[Any]]:
        """Return the rows that are ready, for each stage of a request; all stages have to have a place."""
        ...


class Passed(NamedTuple):
    """How a request got through, for its record."""

    priority: int
    tenant: str
    waited_s: float

    def document(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"priority": self.priority, "tenant": self.tenant, "waited_s": round(self.waited_s, 4)}


@dataclass(slots=True)
class Counts:
    """What became of requests: by priority and outcome; of waits: by priority, in BOUNDS, and their sum."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    waits: dict[int, list[int]] = field(default_factory=dict)
    waited_s: dict[int, float] = field(default_factory=dict)


class Gate:
    """All queues of this picker. Without rules everybody passes."""

    def __init__(self, table: EndpointTable, pool: Pool, clock: Callable[[], float]) -> None:
        self.counts = Counts()
        self.accounts = Accounts()
        self.rules: FlowControl | None = None
        self.objectives: Priorities = {}  # what InferenceObjectives say; a request has the priority with which it came
        self.queues: dict[str, Queue] = {}
        self.count = 0  # waiting in all queues
        self.size = 0  # bytes of their bodies
        self.alarm: Callable[[float], None] = lambda _at: None  # hears when `expire` has to be called next
        self._detector: Detector | None = None
        self._table = table
        self._pool = pool
        self._clock = clock
        self._entries: dict[str, Entry] = {}  # by ticket, until they are settled
        self._deadlines: list[tuple[float, int, Entry]] = []
        self._numbers = itertools.count()

    def use(self, rules: FlowControl | None, detector: Detector | None) -> None:
        """Go by these rules from now on. Without any, all that waits goes on."""
        self.rules = self.accounts.rules = rules
        self._detector = detector
        if rules is None:
            queues, self.queues = self.queues, {}
            for queue in queues.values():
                for entry in list(queue.entries()):
                    self._take_out(queue, entry)
                    self._grant(queue, entry, self._clock())
            return
        for queue in self.queues.values():
            for priority in queue.bands:
                queue.band(priority, rules.band(priority))
        self.pump()

    # ---- a request's way

    def turn(
        self,
        ticket: str,
        server: str,
        *,
        http: HttpRequest,
        request: InferenceRequest,
        known: Callable[[], int],
    ) -> Generator[Errand, Any, Passed | None]:
        """Wait for the request's turn. Raises Shed, QueueFull, Displaced, WaitedTooLong, NoEndpoints."""
        rules = self.rules
        if rules is None:
            return None
        who = callers.caller(rules, http, server=server, stated=self.objectives)
        now = self._clock()
        expected = (request.prompt_tokens, self.accounts.output(who.tenant, request))
        entry = Entry(
            ticket,
            pool=server,
            priority=who.priority,
            tenant=who.tenant,
            weight=callers.weight(rules, who.tenant),
            size=len(http.body),
            tokens=expected,
            at=now,
            known=known,
        )
        self._arrive(rules, entry, now)
        if entry.state is State.WAITING:
            yield Turn(entry.then)
            return Passed(who.priority, who.tenant, self._clock() - now)
        return Passed(who.priority, who.tenant, 0.0)

    def sent(self, ticket: str, cached: int) -> None:
        """Take that the request is in the ledger; so many tokens of its prompt are known where it went."""
        entry = self._entries.get(ticket)
        if entry is None or entry.state is not State.GRANTED:
            return
        entry.state = State.SENT
        queue = self.queues.get(entry.pool)
        if queue is None:
            return
        queue.granted -= 1
        self.accounts.sent(entry, cached)
        if queue.count:
            self._pump(entry.pool, queue)

    def settle(self, settlement: Settlement) -> None:
        """Take the end of a request that was sent, and let the next one go."""
        entry = self._entries.pop(settlement.sent.ticket, None)
        if entry is not None:
            self.accounts.settle(entry, settlement)
        self.freed(settlement.sent.target)

    def freed(self, server: str) -> None:
        """Let those go for whom there is a place of this pool: a request has left one."""
        queue = self.queues.get(server)
        if queue is not None and queue.count:
            self._pump(server, queue)

    def leave(self, ticket: str) -> None:
        """Forget a request that was not sent: its client is gone, or it was refused."""
        entry = self._entries.get(ticket)
        if entry is None or entry.state is State.SENT:
            return
        del self._entries[ticket]
        queue = self.queues.get(entry.pool)
        if entry.state is State.GRANTED:
            if queue is not None:
                queue.granted -= 1
                self.accounts.cancel(entry)
                self._pump(entry.pool, queue)
        elif queue is not None:
            self._take_out(queue, entry)
            entry.state, entry.known = State.GONE, None
            self._count(entry, "left")

    def pump(self) -> None:
        """Let everybody go for whom there is a place: endpoints came, or told of their load."""
        if self.count:
            for server, queue in self.queues.items():
                if queue.count:
                    self._pump(server, queue)

    def expire(self, now: float) -> float | None:
        """Refuse those that have waited too long; returns when to call again, None if nobody waits."""
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or deadlines[0][2].state is not State.WAITING):
            entry = heapq.heappop(deadlines)[2]
            if entry.state is State.WAITING:
                self._refuse(entry, self._too_long(entry, now), "expired")
        return deadlines[0][0] if deadlines else None

    def forget(self) -> None:
        """Drop what says nothing any more; to be called every few seconds."""
        busy: dict[tuple[str, int], set[str]] = {}
        for entry in self._entries.values():
            busy.setdefault((entry.pool, entry.priority), set()).add(entry.tenant)
        for server, queue in self.queues.items():
            for priority, band in queue.bands.items():
                if self.rules is None or not self.rules.redis:
                    band.counters.taken()  # nobody is told
                band.counters.forget(busy.get((server, priority), ()))

    def narrowed(self, rows: NDArray[Any], now: float) -> NDArray[Any]:
        """Return the endpoints that have a place, all of them if none has."""
        if self._detector is None or not len(rows):
            return rows
        places = self._detector.places(self._table, rows.tolist(), now)
        if min(places) >= 1:
            return rows
        free = [place >= 1 for place in places]
        return rows[free] if any(free) else rows

    def places(self, server: str, now: float) -> float:
        """Return how many requests a pool takes, before those whose turn has come."""
        if self._detector is None:
            return math.inf
        least = math.inf
        for rows in self._pool(server):
            least = min(least, self._free(rows.tolist(), now))
        return least

    def full(self, server: str) -> bool:
        """Tell whether a request for a pool would have to wait now."""
        if self.rules is None:
            return False
        queue = self.queues.get(server)
        if queue is None:
            return self.places(server, self._clock()) < 1
        return queue.count > 0 or self.places(server, self._clock()) - queue.granted < 1

    def held(self, server: str) -> bool:
        """Tell whether requests for a pool wait until it has an endpoint."""
        return not all(len(rows) for rows in self._pool(server))

    # ---- steps

    def _arrive(self, rules: FlowControl, entry: Entry, now: float) -> None:
        queue = self.queues.get(entry.pool)
        if queue is None:
            queue = self.queues[entry.pool] = Queue()
        rule = rules.band(entry.priority)
        band = entry.band = queue.band(entry.priority, rule)
        if not queue.count and self.places(entry.pool, now) - queue.granted >= 1:
            self._entries[entry.ticket] = entry
            band.counters.lift(entry.tenant, ())
            self._start(queue, entry)
            self._count(entry, "at-once")
            return
        held = self.held(entry.pool)
        if not rule.waits and not held:
            self._count(entry, "shed")
            raise errors.Shed(
                f"all endpoints of ModelServer {entry.pool} are busy, and requests of priority {entry.priority} do not wait",
                retry_after_s=self._retry_s(queue, now),
            )
        self._make_room(rules, rule, queue, entry, now)
        ttl_s = rules.no_endpoint_ttl_s if held and rules.no_endpoint_ttl_s else rule.ttl_s
        entry.deadline = now + ttl_s
        self._entries[entry.ticket] = entry
        queue.add(entry)
        self.count += 1
        self.size += entry.size
        self._pump(entry.pool, queue)
        if entry.state is State.WAITING:
            self._remember(entry)

    def _make_room(self, rules: FlowControl, rule: Rule, queue: Queue, entry: Entry, now: float) -> None:
        """Displace others until the request fits. Raises QueueFull if it must not."""
        band = queue.bands[entry.priority]
        all_of_them = _Load(self.count + 1, self.size + entry.size, rules.max_requests, rules.max_bytes)
        in_band = _Load(band.count + 1, band.size + entry.size, rule.max_requests, rule.max_bytes)
        leave: list[Entry] = []
        if all_of_them.over():
            for other in self._less_urgent(entry.priority):
                leave.append(other)
                all_of_them.less(other)
                if not all_of_them.over():
                    break
        if all_of_them.over() or in_band.over():
            for other in band.displaced(entry, by_bytes=all_of_them.by_bytes() or in_band.by_bytes()):
                leave.append(other)
                all_of_them.less(other)
                in_band.less(other)
                if not (all_of_them.over() or in_band.over()):
                    break
        if all_of_them.over() or in_band.over():
            self._count(entry, "full")
            raise errors.QueueFull(
                f"{queue.count} requests wait for ModelServer {entry.pool} already, and no more may",
                retry_after_s=self._retry_s(queue, now),
            )
        for other in leave:
            refusal = errors.Displaced(
                "requests that are more urgent, or of tenants with fewer of them, took this one's place in the queue",
                retry_after_s=self._retry_s(self.queues[other.pool], now),
            )
            self._refuse(other, refusal, "displaced")

    def _less_urgent(self, priority: int) -> Iterator[Entry]:
        """Yield what waits with a lower priority, in the order in which it has to leave: the newest of the lowest first."""
        bands = [(at, band) for queue in self.queues.values() for at, band in queue.bands.items() if at < priority]
        for lowest in sorted({at for at, _band in bands}):
            flows = [reversed(flow.values()) for at, band in bands if at == lowest for flow in band.flows.values()]
            yield from heapq.merge(*flows, key=lambda entry: -entry.at)

    def _pump(self, server: str, queue: Queue) -> None:
        """Let those go for whom there is a place."""
        now = self._clock()
        while self.places(server, now) - queue.granted >= 1 and (entry := queue.next()) is not None:
            self._take_out(queue, entry)
            self._grant(queue, entry, now)

    def _grant(self, queue: Queue, entry: Entry, now: float) -> None:
        self._start(queue, entry)
        self._count(entry, "waited")
        waited_s = now - entry.at
        cells = self.counts.waits.setdefault(entry.priority, [0] * (len(BOUNDS) + 1))
        cells[sum(waited_s > bound for bound in BOUNDS)] += 1
        self.counts.waited_s[entry.priority] = self.counts.waited_s.get(entry.priority, 0.0) + waited_s
        entry.end(None)

    def _start(self, queue: Queue, entry: Entry) -> None:
        entry.state = State.GRANTED
        queue.granted += 1
        self.accounts.open(entry)

    def _free(self, rows: list[int], now: float) -> float:
        """Return the places of these endpoints, without those that are avoided while others are there."""
        if self._detector is None or not rows:
            return 0.0
        avoid = self._table.view["avoid_until"]
        sound = [row for row in rows if avoid[row] <= now] or rows
        return sum(int(place) for place in self._detector.places(self._table, sound, now) if place >= 1)

    def _take_out(self, queue: Queue, entry: Entry) -> None:
        queue.remove(entry)
        self.count -= 1
        self.size -= entry.size

    def _refuse(self, entry: Entry, rejection: errors.Rejection, outcome: str) -> None:
        self._take_out(self.queues[entry.pool], entry)
        del self._entries[entry.ticket]
        entry.state = State.GONE
        self._count(entry, outcome)
        entry.end(rejection)

    def _remember(self, entry: Entry) -> None:
        """Have the request refused when its time is over."""
        deadlines = self._deadlines
        if len(deadlines) > 2 * self.count + _STALE:
            deadlines[:] = [one for one in deadlines if one[2].state is State.WAITING]
            heapq.heapify(deadlines)
        heapq.heappush(deadlines, (entry.deadline, next(self._numbers), entry))
        if deadlines[0][2] is entry:
            self.alarm(entry.deadline)

    def _too_long(self, entry: Entry, now: float) -> errors.Rejection:
        after = f"no place came free within {entry.deadline - entry.at:g} s"
        retry_s = self._retry_s(self.queues[entry.pool], now)
        if self.held(entry.pool):
            return errors.NoEndpoints(
                f"ModelServer {entry.pool} has no endpoint that is ready: {after}", retry_after_s=retry_s
            )
        return errors.WaitedTooLong(
            f"all endpoints of ModelServer {entry.pool} are busy: {after}", retry_after_s=retry_s
        )

    def _retry_s(self, queue: Queue, now: float) -> int:
        """Say when to ask again: in as long as the first of the queue has waited by now."""
        oldest = queue.oldest()
        return 1 if oldest is None else min(max(math.ceil(now - oldest), 1), _LONGEST_RETRY_S)

    def _count(self, entry: Entry, outcome: str) -> None:
        self.counts.outcomes[str(entry.priority), outcome] += 1


@dataclass(slots=True)
class _Load:
    """What would wait, and how much may; bounds of 0 are none."""

    count: int
    size: int
    most: int
    most_bytes: int

    def less(self, entry: Entry) -> None:
        self.count -= 1
        self.size -= entry.size

    def by_bytes(self) -> bool:
        return 0 < self.most_bytes < self.size

    def over(self) -> bool:
        return 0 < self.most < self.count or self.by_bytes()
