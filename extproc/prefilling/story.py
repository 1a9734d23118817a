"""The prefill leg: the part of a request's story that a ModelServer with prefill and decode pods adds.

It owns the order of its steps: may the request be split, who decodes, what does the decider say, who prefills; then the
leg itself, try after try, or the header that lets the proxy in the decode pod perform it. Whatever fails, the request
goes on: a decode endpoint that may computes the prompt itself, and every reason is counted. A decode engine is asked
only when the prompt's blocks are there (SGLang excepted: its engines want both legs at once).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from extproc import errors
from extproc.prefilling.told import Counts, Told, Try
from extproc.scheduling.disaggregation import Roles, among, roles_by_group, roles_by_label
from extproc.types import Api, Call, Called
from matrixinfer.api import transfer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.kvcache.index import PrefixIndex
    from extproc.scheduling.disaggregation import Disaggregation, Pair, Verdict
    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Cycle, Draw
    from extproc.scheduling.scheduler import Result
    from extproc.traffic.ledger import Ledger, Loan
    from extproc.traffic.pools import Pools
    from extproc.types import Errand, InferenceRequest, Prefix
    from matrixinfer.api import networking

_SPLIT: Final = frozenset({Api.CHAT, Api.COMPLETIONS})
_GENERATES: Final = frozenset({Api.CHAT, Api.COMPLETIONS, Api.RESPONSES, Api.MESSAGES})
# Of the client's headers, those that an engine acts on; the rest is the gateway's business.
_PASSED: Final = ("authorization", "x-request-id", "traceparent", "tracestate", "baggage")
_OK: Final = range(200, 300)
_CLIENTS_FAULT: Final = range(400, 500)
_TOO_MANY: Final = 429
_QUERY_S: Final = 5.0  # a bootstrap server answers from memory
_ABORT_S: Final = 5.0


class Split(NamedTuple):
    """How the request goes on, whether it was split or not."""

    cycle: Cycle
    result: Result
    body: bytes | None  # None: as it was
    headers: tuple[tuple[str, str], ...]
    loan: Loan | None  # given back when the request ends
    told: Told


Telling = Generator["Errand", Any, Split]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as the legs need it."""

    request: InferenceRequest
    prefix: Prefix
    body: bytes  # as it goes to the engine
    server: networking.ModelServer
    ticket: str
    fresh: Callable[[], Cycle]  # the cycle over the server's candidates as they are now

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, counted or estimated."""
        return self.request.prompt_tokens if self.prefix.tokens is None else self.prefix.tokens


class Prefilling:
    """Knows the roles of every ModelServer's pods, and tells the prefill leg."""

    def __init__(self, *, table: EndpointTable, pools: Pools, ledger: Ledger, index: PrefixIndex) -> None:
        self.counts = Counts()
        self._table = table
        self._pools = pools
        self._ledger = ledger
        self._index = index
        self._known: dict[str, tuple[object, object, bool, Roles | None]] = {}

    def roles(self, name: str, server: networking.ModelServer | None, how: Disaggregation | None) -> Roles | None:
        """Return who prefills and decodes for a ModelServer; None where every pod does both."""
        if server is None or how is None:
            return None
        group = server.spec.workload_selector.pd_group
        if group is None and not how.by_label:
            return None
        rows = self._pools.ready(name)
        known = self._known.get(name)
        if known is None or known[0] is not rows or known[1] is not server or known[2] is not how.by_label:
            found = self._found(rows, group, by_label=how.by_label)
            known = self._known[name] = (rows, server, how.by_label, found)
        return known[3]

    def _found(self, rows: NDArray[np.intp], group: networking.PDGroup | None, *, by_label: bool) -> Roles | None:
        if group is not None:
            return roles_by_group(self._table, rows, group)
        roles = roles_by_label(self._table, rows) if by_label else None
        return roles if roles is not None and len(roles.prefill) else None

    def story(
        self, asked: Asked, how: Disaggregation, roles: Roles, *, clock: Callable[[], float], draw: Draw
    ) -> Telling:
        """Tell how the request is served. Raises NoEndpoints, Saturated, PrefillFailed."""
        plan = _Plan(self, asked, how, roles)
        told = plan.judged()
        if told is None:
            pair, told = plan.paired()
            if pair is not None:
                if how.settings.leg == "proxy":
                    return self._counted(plan.by_proxy(pair, told))
                split = yield from _Leg(plan, pair, told, clock=clock, draw=draw).story()
                if split is not None:
                    return self._counted(split)
        return self._counted(plan.alone(told))

    def _counted(self, split: Split) -> Split:
        self.counts.requests[split.told.leg, split.told.reason] += 1
        return split

    # ---- what the legs of a request write

    def lend(self, address: str, tokens: int) -> Loan:
        """Count a leg at its endpoint."""
        return self._ledger.lend(address, tokens)

    def give_back(self, loan: Loan) -> None:
        """End that."""
        self._ledger.give_back(loan)

    def learn(self, address: str, prefix: Prefix) -> None:
        """Remember that the endpoint holds the prefix."""
        row = self._table.row(address)
        if row is not None:
            self._index.learn(prefix.hashes, row)

    def ended(self, one: Try, *, sent_at: float, now: float) -> None:
        """Count a leg, and draw the conclusions for its endpoint."""
        self.counts.leg(one.result, one.seconds)
        if one.result == "ok":
            self._ledger.leg_served(one.endpoint)
        elif one.result in _FAULTS or one.result.startswith("5"):
            self._ledger.leg_failed(one.endpoint, sent_at=sent_at, now=now)


_FAULTS: Final = frozenset({"refused", "broken", "timeout"})  # words of `Called.fault` that speak against an endpoint


class _Plan:
    """What can be done for one request."""

    def __init__(self, owner: Prefilling, asked: Asked, how: Disaggregation, roles: Roles) -> None:
        self.owner = owner
        self.asked = asked
        self.how = how
        self.roles = roles
        spec = asked.server.spec
        kind = spec.kv_connector.type if spec.kv_connector is not None else None
        self.connector = transfer.connector(spec.inference_engine, kind)
        self.legs: transfer.Legs | None = None
        self.cycle = asked.fresh()
        self.decode = among(self.cycle, roles.decode)

    def judged(self) -> Told | None:
        """Say why the request has no prefill leg; None if it gets one."""
        asked = self.asked
        if not len(self.decode.rows):
            raise errors.NoEndpoints("no decode endpoint of the pool is ready")
        if asked.request.api not in _SPLIT:
            return Told("none", "api")
        try:
            self.legs = transfer.Legs(self.connector, asked.body, vllm=asked.server.spec.inference_engine == "vLLM")
        except transfer.NotTransferable as error:
            return Told("none", str(error))
        self.verdict: Verdict = self.how.verdict(asked.tokens, self._cached())
        if not self.verdict.remote and len(self._able(self.decode)):
            return Told("none", self.verdict.reason, self.verdict.detail)
        return None

    def _cached(self) -> int:
        """Tokens of the prompt that the best decode endpoint holds."""
        cycle = self.decode
        if not cycle.blocks or not cycle.matched.any():
            return 0
        first = self.how.first(cycle).rows[0]
        matched = int(cycle.matched[cycle.rows == first][0])
        return self.asked.tokens * matched // cycle.blocks

    def paired(self) -> tuple[Pair | None, Told]:
        """Choose who prefills, and what is said of it."""
        reason, detail = self.verdict.reason, self.verdict.detail
        if not self.verdict.remote:
            reason, detail = "decode-only", "decode endpoints of this engine compute no prompts"
        try:
            pair = self.how.pair(self.cycle, self.roles)
        except errors.Saturated as error:
            return None, Told("none", "saturated", error.message)
        if pair is None:
            return None, Told("none", "no-prefill", "no prefill endpoint is ready for the decode endpoints")
        told = Told(
            self.how.settings.leg, reason, detail, self.connector, pair.prefill.addresses[0], pair.group or None
        )
        told.chosen = pair.prefill
        return pair, told

    def by_proxy(self, pair: Pair, told: Told) -> Split:
        """Let the proxy in the decode pod perform the leg."""
        asked, tries = self.asked, pair.prefill.addresses[: self.how.settings.tries]
        self.owner.learn(tries[0], asked.prefix)
        cycle = self.answering(self.cycle, self.roles, pair.group)
        return Split(
            cycle,
            self.how.decode(cycle),
            transfer.stripped(asked.body),
            ((transfer.PREFILLER, ",".join(tries)),),
            self.owner.lend(tries[0], asked.tokens),
            told,
        )

    def alone(self, told: Told) -> Split:
        """Let a decode endpoint compute everything. Raises PrefillFailed where none may."""
        cycle = self.asked.fresh()
        roles = self.roles_now()
        cycle = among(cycle, roles.decode)
        if self.asked.request.api in _GENERATES:
            able = self._able(cycle)
            if len(cycle.rows) and not len(able):
                raise errors.PrefillFailed(
                    f"this request needs a prefill endpoint ({told.reason}), and decode endpoints may not replace it",
                    retry_after_s=1,
                )
            cycle = among(cycle, able)
        if not len(cycle.rows):
            raise errors.NoEndpoints("no decode endpoint of the pool is ready")
        body = transfer.stripped(self.asked.body)
        return Split(cycle, self.how.decode(cycle), body, (), None, told)

    def answering(self, cycle: Cycle, roles: Roles, group: str | None) -> Cycle:
        """Return the cycle over the decode endpoints that may take the blocks of a prefill endpoint of `group`."""
        rows = [row for row in roles.decode.tolist() if group is None or roles.group[row] == group]
        return among(cycle, _rows(rows))

    def roles_now(self) -> Roles:
        """Return the roles as they are after a wait; pods may have come and gone."""
        server = self.asked.server
        name = f"{server.metadata.namespace}/{server.metadata.name}"
        return self.owner.roles(name, server, self.how) or self.roles

    def _able(self, cycle: Cycle) -> NDArray[np.intp]:
        """Rows that may compute a prompt and answer it, too."""
        fallback = self.how.settings.fallback
        if fallback == "always" or (fallback == "engine" and self.connector != "sglang"):
            return cycle.rows
        return _rows([row for row in cycle.rows.tolist() if row in self.roles.both])


class _Leg:
    """The leg as the gateway performs it: one prefill endpoint after the other, within its time."""

    def __init__(self, plan: _Plan, pair: Pair, told: Told, *, clock: Callable[[], float], draw: Draw) -> None:
        self._owner = plan.owner
        self._plan = plan
        self._pair = pair
        self._told = told
        self._clock = clock
        self._draw = draw
        self._until = clock() + plan.how.settings.timeout_s

    def story(self) -> Generator[Errand, Any, Split | None]:
        """Try. Returns None where no prefill endpoint did it, with the reason told."""
        plan, told = self._plan, self._told
        body: bytes | None = None
        for number, address in enumerate(self._pair.prefill.addresses[: plan.how.settings.tries]):
            leg = self._leg(address, number)
            told.endpoint = address
            if transfer.concurrent(plan.connector):
                split = yield from self._both(address, leg)
                if split is not None:
                    return split
            else:
                body = yield from self._first(address, leg)
                if body is not None:
                    break
            last = told.tries[-1].result
            if (last.isdigit() and int(last) in _CLIENTS_FAULT and int(last) != _TOO_MANY) or last == "busy":
                break  # the next one would say the same
        if body is None:
            told.leg, told.reason, told.detail = "none", "prefill-failed", f"{told.reason}: {told.tries[-1].result}"
            return None
        cycle = plan.answering(plan.asked.fresh(), plan.roles_now(), self._pair.group)
        if not len(cycle.rows):
            raise errors.NoEndpoints("the decode endpoints left while the prompt was computed", retry_after_s=1)
        return Split(cycle, plan.how.decode(cycle), body, (), None, told)

    def _leg(self, address: str, number: int) -> transfer.Leg:
        return transfer.Leg(
            host=address.rpartition(":")[0].strip("[]"),
            key=f"xfer-{self._plan.asked.ticket}-{number}",
            room=int(self._draw.random() * (1 << 53)),
            bootstrap_port=self._plan.how.settings.bootstrap_port,
        )

    def _first(self, address: str, leg: transfer.Leg) -> Generator[Errand, Any, bytes | None]:
        """Perform the leg; returns the decode engine's body, None if it failed."""
        owner, asked, sent_at = self._owner, self._plan.asked, self._clock()
        loan = owner.lend(address, asked.tokens)
        result = "abandoned"  # the client left
        body: bytes | None = None
        try:
            result, body = yield from self._performed(address, leg)
        finally:
            owner.give_back(loan)
            now = self._clock()
            one = Try(address, result, now - sent_at)
            self._told.tries.append(one)
            owner.ended(one, sent_at=sent_at, now=now)
        if body is not None:
            owner.learn(address, asked.prefix)
        return body

    def _performed(self, address: str, leg: transfer.Leg) -> Generator[Errand, Any, tuple[str, bytes | None]]:
        legs = self._plan.legs
        if legs is None:
            raise RuntimeError("a request without legs is not split")
        try:
            if transfer.asks_bootstrap(self._plan.connector):
                timeout_s = min(self._left(), _QUERY_S)
                known: Called = yield Call("GET", f"{leg.bootstrap}/query", timeout_s)
                if known.status not in _OK:
                    return known.fault or f"bootstrap-{known.status}", None
                engine = transfer.engine(known.body, leg.room)
                leg = transfer.Leg(leg.host, leg.key, leg.room, leg.bootstrap_port, engine)
            called: Called = yield self._call(address, legs.prefill(leg), legs.headers(leg))
            if called.fault or called.status not in _OK:
                return called.fault or str(called.status), None
            return "ok", legs.decode(leg, called.body)
        except errors.Busy:
            return "busy", None
        except transfer.NotTransferable as error:
            return str(error), None

    def _both(self, address: str, leg: transfer.Leg) -> Generator[Errand, Any, Split | None]:
        """Send the leg on its way, and the request after it; if the leg fails, end the request at its engine."""
        owner, plan, sent_at = self._owner, self._plan, self._clock()
        asked, legs = plan.asked, plan.legs
        if legs is None:
            raise RuntimeError("a request without legs is not split")
        cycle = plan.answering(asked.fresh(), plan.roles_now(), self._pair.group)
        if not len(cycle.rows):
            raise errors.NoEndpoints("no decode endpoint of the pool is ready")
        result = plan.how.decode(cycle)
        loan = owner.lend(address, asked.tokens)

        def over(called: Called) -> Call | None:
            owner.give_back(loan)
            now = self._clock()
            word = called.fault or ("ok" if called.status in _OK else str(called.status))
            one = Try(address, word, now - sent_at)
            self._told.tries.append(one)
            owner.ended(one, sent_at=sent_at, now=now)
            if word == "ok":
                return None
            end = b'{"rid":"%b"}' % leg.key.encode()
            url = f"http://{result.addresses[0]}/abort_request"
            return Call("POST", url, _ABORT_S, {"content-type": "application/json"}, end)

        try:
            sent: Called = yield self._call(address, legs.prefill(leg), legs.headers(leg))._replace(ended=over)
        except errors.Busy:
            sent = Called(fault="busy")
        if sent.fault:
            over(sent)
            return None
        owner.learn(address, asked.prefix)
        return Split(cycle, result, legs.decode(leg, b""), (), None, self._told)

    def _call(self, address: str, body: bytes, more: Mapping[str, str]) -> Call:
        asked = self._plan.asked
        client = asked.request.headers
        headers = {name: client[name] for name in _PASSED if name in client}
        scheme = asked.server.spec.workload_port.protocol
        return Call(
            "POST",
            f"{scheme}://{address}{asked.request.path}",
            self._left(),
            {**headers, "content-type": "application/json", **more},
            body,
        )

    def _left(self) -> float:
        return max(self._until - self._clock(), 0.001)


def _rows(rows: list[int]) -> NDArray[np.intp]:
    return np.array(rows, dtype=np.intp)
