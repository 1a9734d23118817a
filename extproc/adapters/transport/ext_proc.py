"""Joins ext_proc calls, sessions and the asker: bytes become messages, messages effects, effects answers.

The asker is the director. It answers at once, or returns something that is `Parked` and answers later. Its bugs are
logged with their traceback, counted, and answered with 500; neither the call nor the connection breaks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from extproc.adapters.transport.calls import Call, Listener, Status
from extproc.errors import Rejection
from extproc.protocol import codec, effects
from extproc.protocol.session import Cancelled, HalfClosed, Input, Session, Wait
from extproc.types import Decision, HttpRequest, Reply

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
METHOD: Final = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
# What is parked is answered mostly within milliseconds, and a message more is dear: Envoy is asked for patience only then.
# The shortest time after which gateways give up is 200 ms, the default of their ext_proc filters.
_SHORT_S: Final = 0.03
_HALF_CLOSED: Final = HalfClosed()
_CANCELLED: Final = Cancelled()

Answer = Decision | Reply | Rejection


class Parked(Protocol):
    """A request that the asker holds back."""

    @property
    def max_wait_s(self) -> float:
        """The answer comes within this time, a refusal at the latest."""
        ...

    def then(self, answered: Callable[[Answer], None]) -> None:
        """Call `answered` once, when there is an answer."""
        ...

    def withdraw(self) -> None:
        """Forget it: the client is gone, and `answered` need not be called."""
        ...


class Asker(Protocol):
    """Decides requests."""

    def decide(self, request: HttpRequest) -> Decision | Reply | Parked:
        """Place `request`, answer it, or hold it back. Raises Rejection."""
        ...


class Follower(Protocol):
    """Wants to know how decided requests went, where no access log of the gateway tells."""

    def served(self, ticket: str, endpoint: str, status: int) -> None:
        """Take what the response's headers tell: the endpoint ("" if unknown) and the HTTP status (0 if unknown)."""
        ...

    def released(self, ticket: str) -> None:
        """Take that the exchange is over."""
        ...


class Overloaded(Rejection):
    """The bodies that wait for their answer take all the memory they may."""

    status = 503
    reason = "overloaded"
    type = "service_unavailable"
    code = "overloaded"


class ExtProcService:
    """Opens exchanges. With a `follower`, streams stay open while the response passes by: dearer, for other gateways."""

    def __init__(
        self,
        asker: Asker,
        *,
        max_body_bytes: int = 16 << 20,
        max_held_bytes: int = 1 << 30,
        follower: Follower | None = None,
        tickets: Callable[[], str] = str,
    ) -> None:
        """`tickets` gives every exchange a name ("": none), which gateways learn before the decision.

        `max_held_bytes` bounds the bodies of all exchanges that are collected or parked; beyond it, 503.
        """
        self.asker = asker
        self.max_body_bytes = max_body_bytes
        self.max_held_bytes = max_held_bytes
        self.follower = follower
        self.tickets = tickets
        self.held = 0  # bytes of bodies
        self.exchanges = 0  # opened
        self.bugs = 0  # exceptions of the asker that were no rejections
        self.protocol_errors = 0  # messages that could not be read, or came out of turn

    def open(self, call: Call) -> Listener:
        """Return the listener of one HTTP exchange."""
        self.exchanges += 1
        return _Exchange(self, call)

    def ask(self, request: HttpRequest) -> Decision | Reply | Parked:
        """Return the asker's answer, whatever happens inside it."""
        try:
            return self.asker.decide(request)
        except Rejection as rejection:
            return codec.refusal(rejection)
        except Exception:  # noqa: BLE001 - a bug met by one request: the others go on
            self.bugs += 1
            _LOG.exception("deciding %s %s failed", request.method, request.path)
            return codec.refusal(Rejection("The picker failed on this request; its log says why."))


class _Exchange:
    """One call and its session."""

    __slots__ = ("_call", "_held", "_parked", "_patience", "_service", "_session")

    def __init__(self, service: ExtProcService, call: Call) -> None:
        self._service = service
        self._call = call
        self._session = Session(service.max_body_bytes, follow=service.follower is not None, ticket=service.tickets())
        self._parked: Parked | None = None
        self._patience: asyncio.TimerHandle | None = None  # until Envoy is asked for some
        self._held = 0

    def on_message(self, data: bytes) -> None:
        try:
            message = codec.decode(data)
        except codec.Malformed as error:
            self._service.protocol_errors += 1
            self._take(_CANCELLED)  # the asker must not wait for a call that ends here
            self._call.finish(Status.INVALID_ARGUMENT, str(error))
            return
        self._take(message)
        if self._held and self._service.held > self._service.max_held_bytes:
            self._take(_CANCELLED)
            self._call.send(
                codec.immediate(
                    codec.refusal(Overloaded("Too many large requests wait for an answer; try again.", retry_after_s=1))
                )
            )
            self._call.finish()

    def on_end(self) -> None:
        self._take(_HALF_CLOSED)

    def on_cancel(self) -> None:
        self._take(_CANCELLED)

    def on_drain(self) -> None:
        """Go on: it ends with its answer, or the grace."""

    def _take(self, event: Input) -> None:
        call, session = self._call, self._session
        todo = session.step(event)
        held = session.held_bytes
        if held != self._held:
            self._service.held += held - self._held
            self._held = held
        for effect in todo:
            if isinstance(effect, effects.Send):
                call.send(effect.message)
            elif isinstance(effect, effects.Finish):
                self._service.protocol_errors += effect.status != Status.OK
                call.finish(effect.status, effect.message)
            elif isinstance(effect, effects.Decide):
                self._ask(effect.request)
            else:
                self._tell(effect)

    def _ask(self, request: HttpRequest) -> None:
        answer = self._service.ask(request)
        if isinstance(answer, Decision | Reply):
            self._take(answer)
            return
        self._parked = answer
        later = asyncio.get_running_loop().call_later
        self._patience = later(_SHORT_S, self._take, Wait(answer.max_wait_s))
        answer.then(self._answered)

    def _answered(self, answer: Answer) -> None:
        self._parked = None
        self._patient()
        self._take(codec.refusal(answer) if isinstance(answer, Rejection) else answer)

    def _patient(self) -> None:
        """Ask Envoy for no patience any more."""
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.cancel()

    def _tell(self, effect: effects.Effect) -> None:
        follower = self._service.follower
        if isinstance(effect, effects.Withdraw):
            parked, self._parked = self._parked, None
            self._patient()
            if parked is not None:
                parked.withdraw()
        elif follower is not None:
            if isinstance(effect, effects.Served):
                follower.served(effect.ticket, effect.endpoint, effect.status)
            elif isinstance(effect, effects.Released):
                follower.released(effect.ticket)
