"""The director: one request's story, from bytes to a decision, and from Envoy's record to what is learned of it.

It owns the order of the steps and the ring of recent decisions. Routes, pools, plugins and the index are others'; clock,
chance and ticket numbers are arguments. Runs on the loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from extproc import errors
from extproc.candidates import Candidates
from extproc.decisions import Record, explanation
from extproc.prefilling.plan import Asked
from extproc.prefilling.story import Prefilling
from extproc.providers.outward import outward
from extproc.requests import parse, paths, rewrite
from extproc.traffic import listing
from extproc.traffic.ledger import Sent
from extproc.traffic.limits.limiter import Limiter
from extproc.traffic.routes import RouteTable, to_relief, to_spare
from extproc.traffic.times import Times
from extproc.types import Aside, Call, Decision, Prefix, Reply, Unread
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from extproc.candidates import World
    from extproc.prefilling.plan import Split
    from extproc.scheduling.framework import Cycle, Draw
    from extproc.scheduling.scheduler import Result, Scheduler
    from extproc.tokens.text import PrefixBlocks
    from extproc.traffic.failover import Shared
    from extproc.traffic.flow.gate import Passed
    from extproc.traffic.ledger import Settlement
    from extproc.traffic.limits.limiter import Headers
    from extproc.traffic.limits.rules import Limits
    from extproc.traffic.routes import Placement
    from extproc.types import Errand, HttpRequest, InferenceRequest, Outcome, Story

_JSON: Final = (("content-type", "application/json"),)
_SATURATED_RETRY_S: Final = 1  # load changes within a second
# Why a request goes to the provider that takes what overflows: all endpoints are busy.
_OVERFLOWS: Final = (errors.Saturated, errors.Shed, errors.QueueFull, errors.Displaced, errors.WaitedTooLong)
_NOTHING: Final = Prefix((), 0)  # of a prompt that nobody looks up


class Witness(Protocol):
    """Sees every decision, and every end."""

    def decided(  # noqa: PLR0913 - what a decision is made of
        self, sent: Sent, cycle: Cycle, prefix: Prefix, result: Result, *, http: HttpRequest, passed: Passed | None
    ) -> None:
        """Take a decision and what it was made from, before it is counted in the table."""
        ...

    def settled(self, settlement: Settlement) -> None:
        """Take the end of a request."""
        ...


class _Case(NamedTuple):
    """A request that is to be placed, and what is known of it by then."""

    request: InferenceRequest
    http: HttpRequest
    placement: Placement
    prefix: Prefix
    ticket: str
    told: Headers  # of its limits


class Director:
    """Decides and settles. `clock` gives monotonic seconds, `tickets` a new name at each call."""

    def __init__(  # noqa: PLR0913 - time and chance are arguments
        self,
        world: World,
        *,
        scheduler: Scheduler,
        blocks: PrefixBlocks,
        clock: Callable[[], float],
        draw: Draw,
        tickets: Callable[[], str],
        ask_usage: bool = True,
        remembered: int = 512,
        witness: Witness | None = None,
    ) -> None:
        """`ask_usage`: ask streams for usage; for gateways that hide it from the client. `remembered`: decisions kept."""
        self.recent: OrderedDict[str, Record] = OrderedDict()  # by ticket, oldest first
        self.routes = RouteTable()
        self._world = world
        self._scheduler = scheduler
        self._blocks = blocks
        self._clock = clock
        self._draw = draw
        self._tickets = tickets
        self._ask_usage = ask_usage
        self._remembered = remembered
        self._witness = witness
        self._listing = listing.listing(())
        if world.exact is not None:
            world.exact.on_emptied = world.index.forget  # what was learned of it is as old as what it told
        self.limiter = Limiter()
        self._times = Times(world.table)
        self.prefilling = Prefilling(table=world.table, pools=world.pools, ledger=world.ledger)
        self.candidates = Candidates(world, self.prefilling, clock=clock, draw=draw)
        self.candidates.disaggregation = scheduler.disaggregation
        self.gate = self.candidates.gate

    def use_routes(self, routes: RouteTable) -> None:
        """Serve by `routes` from now on."""
        self.routes = self.candidates.routes = routes
        self._times.use(routes.providers)
        self._listing = listing.listing(routes.models())
        self.gate.pump()

    def routes_know(self, model: str) -> bool:
        """Tell whether a route names `model`."""
        return self.routes.knows(model)

    def use_scheduler(self, scheduler: Scheduler, blocks: PrefixBlocks) -> None:
        """Schedule with these from now on; the table and the index stay."""
        self._scheduler = scheduler
        self._blocks = blocks
        self.candidates.disaggregation = scheduler.disaggregation

    def decide(self, http: HttpRequest) -> Story:
        """Tell where the request goes: a generator that yields what it has to wait for. Raises Rejection."""
        ticket = http.ticket or self._tickets()
        try:
            return (yield from self._decided(http, ticket))
        except BaseException:  # refused, withdrawn, or a bug: it goes nowhere
            self.limiter.cancel(ticket, self._clock())
            self.gate.leave(ticket)
            raise

    def _decided(self, http: HttpRequest, ticket: str) -> Story:
        if http.method == "GET" and (listed := self._listed(http.path, http.allowed)) is not None:
            return listed
        request = parse.parse(http)
        if http.headers.get(dataplane.MODEL, request.model) != request.model:
            raise errors.BadRequest("the body names its model in a way that the gateway reads otherwise", param="model")
        placement = self.candidates.placement(request, http)
        limits = self.routes.limits.get(placement.route)
        if placement.provider is not None:
            told = () if limits is None else (yield from self._reserve(limits, request, http, ticket))
            return self._outside(_Case(request, http, placement, _NOTHING, ticket, told))
        prefix = self._blocks.prefix(request, placement.model)
        if isinstance(prefix, Unread):
            prefix = yield from _read(prefix)
        if prefix.tokens is not None:
            request = request._replace(prompt_tokens=prefix.tokens)
        if self.gate.rules is not None and placement.relief is None:
            request = request._replace(prefix=b"")  # what may wait keeps no text that nobody reads any more
        told = () if limits is None else (yield from self._reserve(limits, request, http, ticket))
        case = _Case(request, http, placement, prefix, ticket, told)
        if placement.relief is not None:
            return (yield from self._inside_or_beside(case))
        if placement.spare is not None:
            return (yield from self._inside_or_out(case))
        return (yield from self._inside(case))

    def _inside_or_beside(self, case: _Case) -> Story:
        """Place a request, or at the ModelServer that takes what overflows, with a provider behind it if there is one."""
        beside = to_relief(case.placement)
        if self.gate.full(beside.server) or not self.gate.full(case.placement.server):
            try:
                return (yield from self._inside(case))
            except _OVERFLOWS:
                self.gate.leave(case.ticket)
        prefix = self._blocks.prefix(case.request, beside.model)
        if isinstance(prefix, Unread):
            prefix = yield from _read(prefix)
        place = self._inside if beside.spare is None else self._inside_or_out
        return (yield from place(case._replace(placement=beside, prefix=prefix)))

    def _inside_or_out(self, case: _Case) -> Story:
        """Place a request, or send it to the provider that takes what overflows, if it can be said in its words."""
        out = partial(self._outside, case._replace(placement=to_spare(case.placement)))
        if self.gate.full(case.placement.server):
            with suppress(errors.BadRequest):
                return out()
        try:
            return (yield from self._inside(case))
        except _OVERFLOWS as rejection:
            self.gate.leave(case.ticket)
            try:
                return out()
            except errors.BadRequest:
                raise rejection from None

    def _inside(self, case: _Case) -> Story:
        """Place a request at an endpoint of its ModelServer, when it is its turn."""
        request, http, placement, prefix, ticket, told = case
        candidates = self.candidates
        passed: Passed | None = None
        if self.gate.rules is not None:
            known = partial(candidates.known, request, placement, prefix)
            passed = yield from self.gate.turn(ticket, placement.server, http=http, request=request, known=known)
            if passed is not None and passed.waited_s:
                placement = candidates.still(placement)
        body, usage = rewrite.rewritten(
            request, model=placement.model if placement.model != request.model else None, usage=self._ask_usage
        )

        server, how = self.routes.servers.get(placement.server), self._scheduler.disaggregation
        roles = candidates.roles(placement.server)
        split: Split | None = None
        if roles is None or server is None or how is None:
            cycle = candidates.cycle(request, placement, prefix)
            result = self._schedule(cycle)
            if passed is not None:
                result = candidates.with_fallback(result, request, placement)
        else:
            fresh = partial(candidates.cycle, request, placement, prefix)
            expect, freed = partial(self._expect, prefix), partial(self.gate.freed, placement.server)
            asked = Asked(request, prefix, body or request.body, server, ticket, fresh, expect, freed)
            try:
                split = yield from self.prefilling.story(asked, how, roles, clock=self._clock, draw=self._draw)
            except errors.Saturated as rejection:
                raise _later(rejection) from None
            cycle, result, body = split.cycle, split.result, body if split.body is None else split.body
        shared = candidates.shared(request, placement, result, alone=split is not None)
        record = self._record(case, cycle, result=result, split=split, passed=passed, shared=shared)
        headers = split.headers if split is not None else ()
        return Decision(
            ticket=record.sent.ticket,
            endpoints=shared.endpoints,
            target=placement.server,
            body=body,
            usage=usage,
            explanation=explanation(record) if request.explain else "",
            headers=headers + shared.headers,
            told=told,
            names=_named(shared, body or request.body),
        )

    def _outside(self, case: _Case) -> Decision:
        """Send a request to an external provider: nothing is known of its endpoints, and nothing is learned of them."""
        request, _, placement, _, ticket, told = case
        assert placement.provider is not None  # noqa: S101 - for the types: callers ask before
        made = outward(request, placement.provider, usage=self._ask_usage)
        sent = Sent(
            ticket=ticket,
            request_id=request.id,
            model=request.model,
            engine_model=placement.provider.spec.model or request.model,
            target=placement.server,
            route=placement.route,
            path=request.path,
            stream=request.stream,
            endpoints=(made.address,),
            prompt_tokens=request.prompt_tokens,
            blocks=0,
            matched=0,
            at=self._clock(),
            outside=True,
            choices=request.choices,
            max_tokens=request.max_tokens,
        )
        self._world.ledger.open(sent)
        record = self._remember(Record(sent, placement.rule, None, _NOTHING))
        return Decision(
            ticket=ticket,
            endpoints=sent.endpoints,
            target=placement.server,
            body=made.body,
            usage=made.usage,
            explanation=explanation(record) if request.explain else "",
            told=told,
            provider=made.note,
        )

    def settle(self, outcome: Outcome) -> Settlement | None:
        """Take the record of a request that ended: its one outcome, or None if it has been settled or is not ours."""
        now = self._clock()
        settlement = self._world.ledger.settle(outcome, now)
        if settlement is not None:
            done = self._times.done(settlement)
            if done is not None:
                settlement = settlement._replace(done=done)
            charged = self.limiter.settle(settlement, now)
            if charged is not None:
                settlement = settlement._replace(charged=charged)
            self._learn(settlement)
            self._times.learn(settlement, now)
            self.gate.settle(settlement)
            self._remember_end(settlement)
        return settlement

    def relay(self, ticket: str) -> Sent | None:
        """Take that an open request goes on to the provider that overflows, and its place to who waits; None if it may not."""
        sent = self._world.ledger.relay(ticket)
        if sent is not None:
            self.gate.freed(sent.target)
        return sent

    def sent_at(self, ticket: str) -> float | None:
        """Return when an open request was sent (monotonic seconds), None if it is not open."""
        return self._world.ledger.sent_at(ticket)

    def expire(self) -> list[Settlement]:
        """Give up what can no longer be settled; to be called every few seconds."""
        now = self._clock()
        lost = self._world.ledger.expire(now)
        for settlement in lost:
            self.limiter.settle(settlement, now)
            self.gate.settle(settlement)
            self._remember_end(settlement)
        self.limiter.prune(now)
        self.gate.forget()
        return lost

    def endpoint_left(self, row: int) -> None:
        """Forget what the endpoint in `row` had: it is gone, or another engine runs in its place."""
        self._world.ledger.release(row)
        self._world.index.forget(row)
        if self._world.exact is not None:
            self._world.exact.left(row)

    def endpoint_restarted(self, row: int) -> None:
        """Forget what the endpoint in `row` held in its cache."""
        self._world.index.forget(row)
        if self._world.exact is not None:
            self._world.exact.restarted(row)

    # ---- the steps

    def _listed(self, path: str, allowed: frozenset[str] | None) -> Reply | None:
        """Answer for the list of models, or one of them; `allowed` are those that the caller may know of."""
        path = path.partition("?")[0]
        if path in paths.MODELS:
            if allowed is None:
                return Reply(200, self._listing, _JSON)
            return Reply(200, listing.listing(one for one in self.routes.models() if one.name in allowed), _JSON)
        if not path.startswith(paths.MODEL):
            return None
        name = path.removeprefix(paths.MODEL)
        for listed in self.routes.models():
            if listed.name == name and (allowed is None or name in allowed):
                return Reply(200, msgspec.json.encode(listing.entry(listed)), _JSON)
        raise errors.UnknownModel(
            f"the model {parse.shown(name)} does not exist; GET /v1/models lists what is served", param="model"
        )

    def _reserve(
        self, limits: Limits, request: InferenceRequest, http: HttpRequest, ticket: str
    ) -> Generator[Errand, Any, Headers]:
        """Charge what the request may take; returns what its answer tells of it."""
        limiter, choices = self.limiter, request.choices
        charges = limiter.charges(limits, request, tenant=http.tenant, key=http.key)
        if not charges:
            return ()
        if not limits.store:
            return limiter.admit(ticket, charges, route=limits.route, choices=choices, now=self._clock())
        try:
            taken = yield limiter.ask(ticket, charges, limits, choices=choices, now=self._clock())
        except errors.Busy:
            return limiter.alone(ticket, self._clock())
        return limiter.answered(ticket, taken, self._clock())

    def _schedule(self, cycle: Cycle) -> Result:
        """Order the candidates, and keep their scores: they are put into words only when somebody looks."""
        try:
            return self._scheduler.schedule(cycle, trace=True)
        except errors.Saturated as rejection:
            raise _later(rejection) from None

    def _record(  # noqa: PLR0913 - what a record is made of
        self,
        case: _Case,
        cycle: Cycle,
        *,
        result: Result,
        split: Split | None,
        passed: Passed | None,
        shared: Shared,
    ) -> Record:
        """Note the request as sent, and what its endpoint will hold."""
        request, _, placement, prefix, ticket, _ = case
        chain = prefix.hashes
        chosen = result.rows[0]
        at = cycle.rows.tolist().index(chosen)
        matched = int(cycle.matched[at])
        sent = Sent(
            ticket=ticket,
            request_id=request.id,
            model=request.model,
            engine_model=placement.model,
            target=placement.server,
            route=placement.route,
            path=request.path,
            stream=request.stream,
            endpoints=shared.endpoints,
            prompt_tokens=request.prompt_tokens,
            blocks=cycle.blocks,
            matched=matched,
            at=cycle.now,
            predicted_cached_tokens=_predicted(cycle, at, split),
            prefill_s=sum(one.seconds for one in split.told.tries) if split is not None else 0.0,
            waited_s=passed.waited_s if passed is not None else 0.0,
            further=shared.further,
            choices=request.choices,
            max_tokens=request.max_tokens,
        )
        if self._witness is not None:
            self._witness.decided(sent, cycle, prefix, result, http=case.http, passed=passed)
        kept = chain if prefix.words is None else prefix.words
        self._world.ledger.open(sent, kept[: prefix.lasting], split.loan if split is not None else None)
        self._expect(prefix, cycle, chosen)
        if passed is not None:
            self.gate.sent(ticket, matched * prefix.block_tokens)
        told = split.told if split is not None else None
        seen = prefix._replace(hashes=(), words=None)
        return self._remember(Record(sent, placement.rule, result.trace, seen, told, passed))

    def _remember(self, record: Record) -> Record:
        self.recent[record.sent.ticket] = record
        if len(self.recent) > self._remembered:
            self.recent.popitem(last=False)
        return record

    def _expect(self, prefix: Prefix, cycle: Cycle, row: int) -> None:
        """Remember that the endpoint in `row`, a candidate of the cycle, will hold the prefix."""
        world, chain = self._world, prefix.hashes
        world.index.learn(chain[: prefix.lasting], row)
        if world.exact is not None and prefix.exact:
            held = int(cycle.matched[cycle.rows.tolist().index(row)])
            world.exact.expect(chain, row, held=held, now=cycle.now)

    def _learn(self, settlement: Settlement) -> None:
        """After a failover the prefix is where the request was served, not where it was sent."""
        served = settlement.served
        if served and served != settlement.sent.endpoints[0] and served not in settlement.sent.further:
            row = self._world.table.row(served)
            if row is not None:
                self._world.index.learn(settlement.chain, row)

    def _remember_end(self, settlement: Settlement) -> None:
        if self._witness is not None:
            self._witness.settled(settlement)
        record = self.recent.get(settlement.sent.ticket)
        if record is not None:
            record.settlement = settlement._replace(chain=())  # long prompts have thousands of blocks


def _named(shared: Shared, body: bytes) -> tuple[tuple[str, str], ...]:
    """Tell who knows the model by another name than the body has, and where it has it."""
    if not shared.names:
        return ()
    start, length = rewrite.model_span(body)
    return ((dataplane.SPAN, f"{start}:{length}"), *shared.names)


def _read(unread: Unread) -> Generator[Errand, Any, Prefix]:
    """Have the prefix's text tokenized beside the loop; text blocks where there is no time for it."""
    try:
        made = yield unread.work if isinstance(unread.work, Call) else Aside(unread.work)
    except errors.Busy:
        return unread.otherwise()
    except BaseException:  # closed, or a bug: nobody waits for the text any more
        unread.otherwise()
        raise
    return unread.read(made)


def _later(rejection: errors.Saturated) -> errors.Saturated:
    """Say to those who are refused because all is busy when to ask again."""
    rejection.retry_after_s = rejection.retry_after_s or _SATURATED_RETRY_S
    return rejection


def _predicted(cycle: Cycle, at: int, split: Split | None) -> int | None:
    """Return the cached tokens that the candidate at position `at` will report; None if that is not known."""
    if split is not None and split.told.leg != "none":
        return split.predicted
    cached = -1 if cycle.cached_tokens is None else int(cycle.cached_tokens[at])
    return None if cached < 0 else cached
