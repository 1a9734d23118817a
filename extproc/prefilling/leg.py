"""The leg as the gateway performs it: one prefill endpoint after the other, within the time that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from extproc import errors
from extproc.prefilling.plan import Split
from extproc.prefilling.told import Told, Try
from extproc.types import Call, Called
from matrixinfer.api import transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from extproc.prefilling.plan import Plan
    from extproc.scheduling.disaggregation import Pair
    from extproc.scheduling.framework import Draw
    from extproc.types import Errand

# Of the client's headers, those that an engine acts on; the rest is the gateway's business.
_PASSED: Final = ("authorization", "x-request-id", "traceparent", "tracestate", "baggage")
_OK: Final = range(200, 300)
_CLIENTS_FAULT: Final = range(400, 500)
_TOO_MANY: Final = 429
_QUERY_S: Final = 5.0  # a bootstrap server answers from memory
_ABORT_S: Final = 5.0
# The request goes there through Envoy once the story is told, and may come after its end: on a busy machine seconds after.
_AGAIN_S: Final = (0.2, 1.0, 3.0, 9.0)


class Leg:
    """The leg as the gateway performs it: one prefill endpoint after the other, within its time."""

    def __init__(self, plan: Plan, pair: Pair, told: Told, *, clock: Callable[[], float], draw: Draw) -> None:
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
        return Split(cycle, plan.how.decode(cycle), body, (), None, told, plan.predicted(told.endpoint))

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
            self._plan.learn(address)
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
            asked.freed()
            if word == "ok":
                return None
            end = b'{"rid":"%b"}' % leg.key.encode()
            url = f"http://{result.addresses[0]}/abort_request"
            return Call("POST", url, _ABORT_S, {"content-type": "application/json"}, end, again_s=_AGAIN_S)

        try:
            sent: Called = yield self._call(address, legs.prefill(leg), legs.headers(leg))._replace(ended=over)
        except errors.Busy:
            sent = Called(fault="busy")
        if sent.fault:
            over(sent)
            return None
        plan.learn(address)
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
