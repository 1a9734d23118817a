"""Turns in virtual time: the picker's own gate, by the configuration's rules and detector, with the run's clock.

A request is asked for with `ask`; whoever may go, or is refused, is told by `heard`, after each event of which the gate was told.
Between a turn's coming and its request's being sent no time passes. A body counts as four bytes for each token of its prompt.

`behind` says how fair it was: what another tenant of the same band was served more than this one, both by their weights, in the
worst stretch in which both waited all the time. Tokens count as the default fairness policy prices them, whatever is
configured, so that configurations can be compared.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from extproc import errors
from extproc.plugins.virtual_token_counter_fairness_policy import VirtualTokenCounterFairnessPolicy
from extproc.traffic.flow import callers
from extproc.traffic.flow.gate import Gate
from matrixinfer.cli.simulate.engine import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.flow import FlowControl
    from extproc.traffic.flow.gate import Detector
    from extproc.traffic.flow.queue import Band
    from extproc.types import HttpRequest, InferenceRequest

BYTES_PER_TOKEN: Final = 4  # of a body: what the picker takes text for
_FORGET_EVERY_S: Final = 5.0  # as the picker does
_PRICES: Final[Any] = VirtualTokenCounterFairnessPolicy(VirtualTokenCounterFairnessPolicy.Params()).prices()


class Verdict(NamedTuple):
    """A request goes on, or is refused."""

    number: int
    refusal: errors.Rejection | None  # None: it goes on


class _Waiting(NamedTuple):
    """A request that waits."""

    who: callers.Caller
    band: Band


class _Contest(NamedTuple):
    """A turn that others waited for, too."""

    who: callers.Caller
    tenants: tuple[str, ...]  # that waited in its band, its own among them


class Turns:
    """Who goes when, at one picker."""

    def __init__(
        self, rules: FlowControl, detector: Detector, *, table: EndpointTable, pool: str, rows: NDArray[Any]
    ) -> None:
        """`rows`: of all engines of `pool`."""
        self.rules = dataclasses.replace(rules, redis="")  # pickers tell each other nothing
        self.expires_at = NEVER  # when `expire` has to be called
        self.behind: dict[str, float] = {}  # by tenant: tokens, at most
        self.now = 0.0
        self._pool = pool
        self.gate = Gate(table, lambda _server: (rows,), lambda: self.now)
        self.gate.alarm = self._wake_at
        self.gate.use(self.rules, detector)
        self._waiting: dict[int, _Waiting] = {}
        self._heard: deque[Verdict] = deque()
        self._contests: dict[int, _Contest] = {}  # turns that have come, and are not sent
        self._gaps: dict[int, dict[str, dict[str, float]]] = {}  # by priority: tokens that one waits behind another
        self._forget_at = _FORGET_EVERY_S

    # ---- what happens

    def at(self, now: float) -> None:
        """Let it be `now`."""
        self.now = now
        if now >= self._forget_at:
            self._forget_at = now + _FORGET_EVERY_S
            self.gate.forget()

    def ask(self, number: int, http: HttpRequest, request: InferenceRequest, known: Callable[[], int]) -> None:
        """Take a request; `known` tells how many tokens of its prompt an endpoint with a place has."""
        gate = self.gate
        story = gate.turn(request.id, self._pool, http=http, request=request, known=known)
        try:
            turn: Any = next(story)
        except StopIteration:
            self._heard.append(Verdict(number, None))
            return
        except errors.Rejection as refusal:
            self._heard.append(Verdict(number, refusal))
            return
        who = callers.caller(self.rules, http)
        band = gate.queues[self._pool].bands[who.priority]
        if len(band.flows[who.tenant]) == 1:
            gaps = self._gaps.setdefault(who.priority, {})
            gaps[who.tenant] = {}
            for other in band.flows:
                gaps[other].pop(who.tenant, None)
        self._waiting[number] = _Waiting(who, band)
        turn.then(lambda verdict: self._over(number, verdict))

    def expire(self) -> None:
        """Refuse those that have waited too long."""
        at = self.gate.expire(self.now)
        self.expires_at = NEVER if at is None else at

    def heard(self) -> Iterator[Verdict]:
        """Yield who goes on now, and who is refused. Others may follow from what is done about one."""
        while self._heard:
            yield self._heard.popleft()

    def sent(self, number: int, *, prompt: int, cached: int, output: int) -> None:
        """Take that a request was placed where `cached` tokens of its prompt are known; its answer will have `output`."""
        contest = self._contests.pop(number, None)
        if contest is not None:
            self._count(contest, _PRICES.weighed(prompt, min(cached, prompt), output))
        self.gate.sent(str(number), cached)

    def failed(self, number: int) -> None:
        """Take that a request whose turn had come could not be placed."""
        self._contests.pop(number, None)
        self.gate.leave(str(number))

    # ---- steps

    def _wake_at(self, at: float) -> None:
        self.expires_at = min(self.expires_at, at)

    def _over(self, number: int, refusal: Exception | None) -> None:
        """Hear the gate's word, within what the gate does: what follows is done when that is through."""
        who, band = self._waiting.pop(number)
        assert refusal is None or isinstance(refusal, errors.Rejection)  # noqa: S101 - the gate says nothing else
        if refusal is None:
            tenants = tuple(band.flows) if who.tenant in band.flows else (who.tenant, *band.flows)
            if len(tenants) > 1:
                self._contests[number] = _Contest(who, tenants)
        self._heard.append(Verdict(number, refusal))

    def _count(self, contest: _Contest, tokens: float) -> None:
        """Note what a request took before the eyes of those that waited beside it."""
        gaps, behind, taker = self._gaps[contest.who.priority], self.behind, contest.who.tenant
        taken, own = tokens / callers.weight(self.rules, taker), gaps[taker]
        for tenant in contest.tenants:
            if tenant == taker or tenant not in gaps:  # it did not wait for as much as a moment
                continue
            own[tenant] = max(own.get(tenant, 0.0) - taken, 0.0)
            gap = gaps[tenant][taker] = gaps[tenant].get(taker, 0.0) + taken
            if gap > behind.get(tenant, 0.0):
                behind[tenant] = gap
