"""One HTTP exchange as the gateway tells it: messages and answers in, effects out. Pure; every body mode.

What the gateway's body mode allows:

- BUFFERED: the headers are let through to the buffer at once, with the name of the request, so that its record can be
  told from others if the client leaves while the decision is on its way; the answer comes with the body.
- BUFFERED_PARTIAL: the same; but Envoy routes the headers before the answer if the body was not complete by then.
- FULL_DUPLEX_STREAMED: nothing is answered until the body is there; then headers, the body in pieces, trailers.
- STREAMED: as above where the gateway sends the body early; else its headers are routed before there is a body, and
  the answer at the body's end is worth what the gateway makes of the metadata in it.
- NONE, and requests without a body: the answer comes with the headers. So it does where our own gateway has put the body
  beside them, with a name for the request, whatever the mode.

A gateway that does not say is taken for FULL_DUPLEX_STREAMED, which the endpoint-picker protocol demands. After the
answer the stream ends, and the response flows without us, unless the session `follows` it to tell the asker who
served and when it was over, or the response comes FULL_DUPLEX_STREAMED: Envoy has given away what it sent us, so an
end that crosses the first bytes would lose them. Such a response is echoed; response_body_mode NONE spares it.
What comes out of turn ends the stream with INVALID_ARGUMENT; nothing is sent after an end.
"""
# ruff: noqa: SLF001 - the table at the end names the session's own handlers

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from extproc.errors import TooLarge
from extproc.protocol import codec, messages
from extproc.protocol.effects import (
    INVALID_ARGUMENT,
    OK,
    UNIMPLEMENTED,
    Decide,
    Effect,
    Effects,
    Finish,
    Released,
    Send,
    Served,
    Withdraw,
)
from extproc.protocol.messages import BodyMode
from extproc.types import Decision, HttpRequest, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping


# ---- inputs beside the gateway's messages and the asker's Decision or Reply


@dataclass(frozen=True, slots=True)
class Wait:
    """The asker answers later, within `max_wait_s`."""

    max_wait_s: float


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The gateway has nothing more to say."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The stream is gone: the client left, or the gateway did."""


Input = messages.Message | Decision | Reply | Wait | HalfClosed | Cancelled


class State(Enum):
    """Where the exchange stands."""

    OPEN = auto()  # nothing came yet
    COLLECTING = auto()  # the request's body is on its way
    ASKED = auto()  # the asker has the request
    FOLLOWING = auto()  # decided; the response is to come
    RESPONDING = auto()  # the response passes by
    DONE = auto()


_NOTHING: Final[Effects] = ()
_END: Final = Finish(OK)
_LET_HEADERS: Final[Effects] = (Send(codec.CONTINUE_REQUEST_HEADERS),)
_LET_BODY: Final = Send(codec.CONTINUE_REQUEST_BODY)
_LET_TRAILERS: Final = Send(codec.CONTINUE_REQUEST_TRAILERS)
_CLEAR_BODY: Final = Send(codec.CLEAR_REQUEST_BODY)


class Session:
    """One exchange. `step` takes what happened and returns what is to be done, in order."""

    __slots__ = (
        "_along",
        "_caller",
        "_chunks",
        "_config",
        "_follow",
        "_headers",
        "_limit",
        "_mode",
        "_offered",
        "_row",
        "_state",
        "_subset",
        "_ticket",
        "_trailers",
        "held_bytes",
    )

    def __init__(self, max_body_bytes: int, *, follow: bool = False, ticket: str = "") -> None:
        """`ticket` names the request; a gateway that buffers the body learns it before there is a decision to lose."""
        self._limit = max_body_bytes
        self._offered = ticket
        self._follow = follow
        self._state = State.OPEN
        self._row = _TABLE[State.OPEN]
        self._headers: Mapping[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        self._caller: messages.Caller | None = None
        self._config: messages.ProtocolConfig | None = None
        self._mode: int = BodyMode.NONE
        self._chunks: list[bytes] = []
        self._along = False  # the body came with the headers
        self.held_bytes = 0  # of the request's body
        self._trailers = False  # the request ended with trailers that want an answer
        self._ticket = ""

    @property
    def state(self) -> State:
        """Where the exchange stands."""
        return self._state

    def step(self, event: Input) -> Effects:
        """Take one input. Never raises for what a gateway sends."""
        handler = self._row.get(type(event))
        if handler is None:
            return self._finish(INVALID_ARGUMENT, f"{type(event).__name__} out of turn: {_HINTS[self._state]}")
        return handler(self, event)

    def _go(self, state: State) -> None:
        self._state = state
        self._row = _TABLE[state]

    # ---- the request

    def _request_headers(self, event: messages.RequestHeaders) -> Effects:
        self._headers, self._subset, self._config = event.headers, event.subset, event.config
        self._caller = event.caller
        if event.body is not None:
            return self._whole(event.body, event.ticket)
        mode = BodyMode.FULL_DUPLEX_STREAMED if event.config is None else event.config.request_body_mode
        if event.end or mode == BodyMode.NONE:
            self._mode = BodyMode.NONE
            return self._ask()
        self._mode = mode
        self._go(State.COLLECTING)
        if mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
            return (Send(codec.admitted(self._offered)),) if self._offered else _LET_HEADERS
        if mode == BodyMode.FULL_DUPLEX_STREAMED:
            return _NOTHING
        if mode == BodyMode.STREAMED:
            return _NOTHING if self._early else _LET_HEADERS
        return self._finish(
            UNIMPLEMENTED, f"request_body_mode {mode} is not supported: use BUFFERED or FULL_DUPLEX_STREAMED"
        )

    def _whole(self, body: bytes, ticket: str) -> Effects:
        self._along = True
        self._offered = ticket or self._offered
        self.held_bytes = len(body)
        if self.held_bytes > self._limit:
            return self._refuse_size(f"the body is over the limit of {self._limit} bytes")
        self._chunks.append(body)
        return self._ask()

    @property
    def _early(self) -> bool:
        return self._config is not None and self._config.early_body

    def _request_body(self, event: messages.RequestBody) -> Effects:
        if event.subset is not None:
            self._subset = event.subset
        self.held_bytes += len(event.data)
        if self.held_bytes > self._limit:
            return self._refuse_size(f"the body is over the limit of {self._limit} bytes")
        self._chunks.append(event.data)
        if event.end or self._mode == BodyMode.BUFFERED:  # a buffered body with trailers comes without its end
            return self._ask()
        if self._mode == BodyMode.BUFFERED_PARTIAL:
            length = self._headers.get("content-length", "")
            if length.isascii() and length.isdigit() and int(length) > self.held_bytes:
                return self._refuse_size(f"the body is over the gateway's buffer of {self.held_bytes} bytes")
            return self._ask()
        return _NOTHING

    def _request_trailers(self, event: messages.RequestTrailers) -> Effects:
        if event.subset is not None:
            self._subset = event.subset
        self._trailers = True
        return self._ask()

    def _ask(self) -> Effects:
        self._go(State.ASKED)
        chunks, headers = self._chunks, self._headers
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        method, path = headers.get(":method", ""), headers.get(":path", "")
        if self._caller is not None:
            return (Decide(HttpRequest(method, path, headers, body, self._subset, self._offered, *self._caller)),)
        return (Decide(HttpRequest(method, path, headers, body, self._subset, self._offered)),)

    # ---- the answer

    def _decision(self, decision: Decision) -> Effects:
        self._ticket = decision.ticket
        mode = self._mode
        if mode in (BodyMode.BUFFERED, BodyMode.BUFFERED_PARTIAL):
            answer = self._decided_body(decision)
        elif mode == BodyMode.FULL_DUPLEX_STREAMED:
            answer = self._decided_duplex(decision)
        elif mode == BodyMode.STREAMED:
            answer = self._decided_streamed(decision)
        else:
            body = decision.body if self._along else None
            length = None if body is None else len(body)
            complete = self._along
            answer = (Send(codec.decided(decision, at_headers=True, length=length, body=body, complete=complete)),)
        self._go(State.FOLLOWING)
        if self._follow or self._response_mode == BodyMode.FULL_DUPLEX_STREAMED:
            self._drop_body()
            return answer
        return answer + self._finish()

    def _decided_body(self, decision: Decision) -> Effects:
        body = decision.body
        if body is None:
            return (Send(codec.decided(decision, at_headers=False)),)
        # Envoy drops content-length of a partly buffered body itself, and only then.
        length = len(body) if self._mode == BodyMode.BUFFERED else None
        return (Send(codec.decided(decision, at_headers=False, length=length, body=body)),)

    def _decided_duplex(self, decision: Decision) -> Effects:
        body = b"".join(self._chunks) if decision.body is None else decision.body
        answer: Effects = (
            Send(codec.decided(decision, at_headers=True, length=len(body))),
            *map(Send, codec.echoed(body, end=not self._trailers, request=True)),
        )
        return (*answer, _LET_TRAILERS) if self._trailers else answer

    def _decided_streamed(self, decision: Decision) -> Effects:
        chunks = len(self._chunks)  # each of them wants an answer
        early, body = self._early, decision.body
        answer: list[Effect] = [Send(codec.decided(decision, at_headers=True))] if early else []
        if chunks:
            rest = _LET_BODY if body is None else _CLEAR_BODY
            if not early:
                answer.append(Send(codec.decided(decision, at_headers=False, body=body, reroute=False)))
            else:
                answer.append(rest if body is None else Send(codec.replaced_chunk(body)))
            answer.extend([rest] * (chunks - 1))
        if self._trailers:
            answer.append(_LET_TRAILERS)
        return tuple(answer)

    def _reply(self, reply: Reply) -> Effects:
        self._go(State.RESPONDING)
        return (Send(codec.immediate(reply)), *self._finish())

    def _refuse_size(self, message: str) -> Effects:
        return self._reply(codec.refusal(TooLarge(message)))

    def _wait(self, wait: Wait) -> Effects:
        if self._mode == BodyMode.FULL_DUPLEX_STREAMED:  # no message is owed there, so no clock runs
            return _NOTHING
        return (Send(codec.waiting(wait.max_wait_s)),)

    # ---- the response

    def _response_headers(self, event: messages.ResponseHeaders) -> Effects:
        if event.config is not None:
            self._config = event.config
        told = self._respond()
        if self._follow and self._ticket:
            told = (Served(self._ticket, event.served, event.status),)
        answer = (*told, Send(codec.CONTINUE_RESPONSE_HEADERS))
        if event.end or (self._response_mode == BodyMode.NONE and not self._follow):
            return answer + self._finish()
        return answer

    def _response_body(self, event: messages.ResponseBody) -> Effects:
        told = self._respond()
        if self._response_mode == BodyMode.FULL_DUPLEX_STREAMED:
            answer: Effects = tuple(map(Send, codec.echoed(event.data, end=event.end, request=False)))
        else:
            answer = (Send(codec.CONTINUE_RESPONSE_BODY),)
        return told + answer + (self._finish() if event.end else _NOTHING)

    def _response_trailers(self, _event: messages.ResponseTrailers) -> Effects:
        return (*self._respond(), Send(codec.CONTINUE_RESPONSE_TRAILERS), *self._finish())

    def _respond(self) -> Effects:
        """Let a response pass by. Before a decision it is one of the gateway's own, and a question is void."""
        void = self._state is State.ASKED
        self._go(State.RESPONDING)
        self._drop_body()
        return (Withdraw(),) if void else _NOTHING

    @property
    def _response_mode(self) -> int:
        return BodyMode.FULL_DUPLEX_STREAMED if self._config is None else self._config.response_body_mode

    def _late_body(self, event: messages.RequestBody) -> Effects:
        """Let the rest of a request pass whose response is there already."""
        if self._mode == BodyMode.FULL_DUPLEX_STREAMED:
            return tuple(map(Send, codec.echoed(event.data, end=event.end, request=True)))
        return (_LET_BODY,)

    def _late_trailers(self, _event: messages.RequestTrailers) -> Effects:
        return (_LET_TRAILERS,)

    # ---- the end

    def _half_closed(self, _event: HalfClosed) -> Effects:
        return self._finish()

    def _cancelled(self, _event: Cancelled) -> Effects:
        return self._finish()[:-1]  # nobody is there to be told

    def _ignored(self, _event: Input) -> Effects:
        return _NOTHING

    def _drop_body(self) -> None:
        self._chunks, self.held_bytes = [], 0

    def _finish(self, status: int = OK, message: str = "") -> Effects:
        """End the stream; an asker who still works on it, or follows it, is told first."""
        state = self._state
        self._go(State.DONE)
        self._drop_body()
        end = _END if status == OK else Finish(status, message)
        if state is State.ASKED:
            return (Withdraw(), end)
        if self._follow and self._ticket:
            return (Released(self._ticket), end)
        return (end,)


_Handler = Callable[[Session, Any], Effects]

_RESPONSE: Final[dict[type, _Handler]] = {
    messages.ResponseHeaders: Session._response_headers,
    messages.ResponseBody: Session._response_body,
    messages.ResponseTrailers: Session._response_trailers,
    Cancelled: Session._cancelled,
    HalfClosed: Session._half_closed,
}
_LATE_ANSWER: Final[dict[type, _Handler]] = {
    Decision: Session._ignored,
    Reply: Session._ignored,
    Wait: Session._ignored,
}
_TABLE: Final[dict[State, dict[type, _Handler]]] = {
    State.OPEN: {**_RESPONSE, messages.RequestHeaders: Session._request_headers},
    State.COLLECTING: {
        **_RESPONSE,
        messages.RequestBody: Session._request_body,
        messages.RequestTrailers: Session._request_trailers,
    },
    State.ASKED: {
        **_RESPONSE,
        messages.RequestTrailers: Session._ignored,  # those of a buffered body, which is with the asker already
        Decision: Session._decision,
        Reply: Session._reply,
        Wait: Session._wait,
        HalfClosed: Session._ignored,  # the answer is still wanted
    },
    State.FOLLOWING: {**_RESPONSE, **_LATE_ANSWER},
    State.RESPONDING: {
        **_RESPONSE,
        **_LATE_ANSWER,
        messages.RequestBody: Session._late_body,
        messages.RequestTrailers: Session._late_trailers,
    },
    State.DONE: dict.fromkeys(
        (
            *(messages.RequestHeaders, messages.RequestBody, messages.RequestTrailers),
            *_RESPONSE,
            *_LATE_ANSWER,
        ),
        Session._ignored,
    ),
}
_HINTS: Final = {
    State.OPEN: "the request's headers come first (request_header_mode: SEND)",
    State.COLLECTING: "the request's body is on its way",
    State.ASKED: "the request was complete",
    State.FOLLOWING: "the request was answered",
    State.RESPONDING: "the response was on its way",
}
