"""The service that speaks with external providers: ext_proc calls of three filters of Envoy's.

One stands before every provider and sees the head of each try and of its answer; one stands before clients, and has the
answers that the first has marked translated; one stands in the relay, and asks how requests that engines have failed are said to
a provider. What is done is `extproc.providers`'; here messages become its calls, and what it says becomes messages. A
request without a note of the picker's is refused: nobody else may send to a provider.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError

from extproc.adapters import telemetry
from extproc.adapters.transport.calls import Status
from extproc.errors import Rejection
from extproc.protocol import codec
from extproc.protocol.messages import BodyMode
from extproc.providers import exchange, note
from extproc.types import HttpRequest
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from extproc.adapters.transport.calls import Call, Listener
    from extproc.providers.relay import Relay

_LOG: Final = logging.getLogger(__name__)
_SEND: Final = 1  # ProcessingMode.HeaderSendMode


class Outward:
    """Opens exchanges."""

    def __init__(self, relay: Relay | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """`relay`: None where no gateway asks it."""
        self.tries: Counter[tuple[str, str]] = Counter()  # provider, status of its answer
        self.relayed: Counter[tuple[str]] = Counter()  # provider
        self.relay = relay
        self._clock = clock

    def open(self, call: Call) -> Listener:
        """Return the listener of a call, whichever filter makes it."""
        return _Exchange(self, call)

    def metrics(self) -> Iterable[Metric]:
        """Yield what is counted."""
        yield telemetry.counter(
            "matrixinfer_provider_tries",
            "Tries at external providers, by the status of the answer.",
            {labels: number for labels, number in self.tries.items()},  # noqa: C416 - Counter is no Mapping[str, float]
            ("provider", "status"),
        )
        yield telemetry.counter(
            "matrixinfer_provider_failovers",
            "Requests that went on to an external provider because their engines had failed.",
            {labels: number for labels, number in self.relayed.items()},  # noqa: C416 - as above
            ("provider",),
        )

    def now(self) -> int:
        """Return seconds since the epoch."""
        return int(self._clock())


class _Exchange:
    """One call."""

    __slots__ = ("_answer", "_call", "_failed", "_service", "_try", "_whole")

    def __init__(self, service: Outward, call: Call) -> None:
        self._service = service
        self._call = call
        self._try: exchange.Try | None = None
        self._answer: exchange.Answer | None = None
        self._failed: HttpRequest | None = None  # by engines; its body is on the way
        self._whole = False  # the answer is collected

    def on_message(self, data: bytes) -> None:
        """Take a message; a bug ends this call only."""
        try:
            request = pb.ProcessingRequest.FromString(data)
        except DecodeError:
            self._call.finish(Status.INVALID_ARGUMENT, "not a ProcessingRequest")
            return
        try:
            self._take(request)
        except Exception:  # noqa: BLE001 - as said
            _LOG.exception("what goes to a provider or comes of it cannot be passed on")
            self._call.finish(Status.INTERNAL, "the picker failed on this message; its log says why")

    def on_end(self) -> None:
        """Take that Envoy says no more."""
        self._call.finish()

    def on_cancel(self) -> None:
        """Take that the exchange is over."""

    def on_drain(self) -> None:
        """Go on: the answer ends by itself, or with the grace."""

    def _take(self, request: Any) -> None:
        kind = request.WhichOneof("request")
        if kind == "request_headers":
            self._request(request)
        elif kind == "response_headers":
            if self._try is not None:
                self._head(self._try, request.response_headers)
            else:
                self._begin(request)
        elif kind == "request_body" and self._failed is not None:
            self._decide(self._failed._replace(body=request.request_body.body))
        elif kind == "response_body" and self._answer is not None:
            self._body(self._answer, request.response_body)
        else:
            self._call.finish(Status.INVALID_ARGUMENT, f"{kind} out of turn")

    # ---- before a provider

    def _request(self, request: Any) -> None:
        told = note.read(_noted(request))
        if told is None:
            self._relayed(request.request_headers)
            return
        self._try = exchange.Try(told)
        names = [one.key.lower() for one in request.request_headers.headers.headers]
        answer = pb.ProcessingResponse()
        _change(answer.request_headers.response, self._try.request(names, dataplane.CREDENTIALS))
        self._call.send(answer.SerializeToString())

    def _head(self, found: exchange.Try, message: Any) -> None:
        status, headers = _status(message)
        told = found.response(status, headers)
        self._service.tries[found.provider, str(status)] += 1
        answer = pb.ProcessingResponse()
        if isinstance(told, exchange.Replaced):
            _replace(answer.response_headers.response, told)
        else:
            _change(answer.response_headers.response, told)
        self._call.send(answer.SerializeToString())
        self._call.finish()

    # ---- in the relay

    def _relayed(self, message: Any) -> None:
        headers = _named(message)
        ticket = headers.get(dataplane.RELAY, "")
        if not ticket or message.end_of_stream:
            self._refuse(Rejection("This provider is only reached through the picker."))
            return
        self._failed = HttpRequest(headers.get(":method", ""), headers.get(":path", ""), headers, b"", ticket=ticket)
        self._call.send(codec.CONTINUE_REQUEST_HEADERS)

    def _decide(self, request: HttpRequest) -> None:
        relay = self._service.relay
        if relay is None:
            self._refuse(Rejection("This picker sends nothing on to providers."))
            return
        try:
            decision = relay.decide(request)
        except Rejection as rejection:
            self._refuse(rejection)
            return
        self._service.relayed[(decision.target.partition("/")[2],)] += 1
        body = decision.body
        length = None if body is None else len(body)
        self._call.send(codec.decided(decision, at_headers=False, length=length, body=body))
        self._call.finish()

    def _refuse(self, rejection: Rejection) -> None:
        self._call.send(codec.immediate(codec.refusal(rejection)))
        self._call.finish()

    # ---- before a client

    def _begin(self, request: Any) -> None:
        told = note.read(_noted(request))
        if told is None:  # an engine that marks its answer as if it were a provider
            self._call.send(codec.CONTINUE_RESPONSE_HEADERS)
            self._call.finish()
            return
        self._answer = exchange.Answer(told, self._service.now())
        status, headers = _status(request.response_headers)
        made = self._answer.response(status, headers, end=request.response_headers.end_of_stream)
        answer = pb.ProcessingResponse()
        response = answer.response_headers.response
        if isinstance(made, exchange.Replaced):
            _replace(response, made)
        else:
            _change(response, made.headers)
        if isinstance(made, exchange.Whole):
            self._whole = True
            answer.mode_override.response_header_mode = _SEND
            answer.mode_override.response_body_mode = BodyMode.BUFFERED
        self._call.send(answer.SerializeToString())
        if isinstance(made, exchange.Replaced):
            self._call.finish()

    def _body(self, found: exchange.Answer, message: Any) -> None:
        answer = pb.ProcessingResponse()
        response = answer.response_body.response
        if self._whole:
            told = found.whole(message.body)
            _change(response, told.headers)
            _put(response.header_mutation, ":status", str(told.status))
            _put(response.header_mutation, "content-length", str(len(told.body)))
            made = told.body
        else:
            made = found.piece(message.body, end=message.end_of_stream)
        if made:
            response.body_mutation.body = made
        else:
            response.body_mutation.clear_body = True
        self._call.send(answer.SerializeToString())
        if self._whole or message.end_of_stream:
            self._call.finish()


def _status(message: Any) -> tuple[int, dict[str, str]]:
    """Return an answer's status (0 if it cannot be read) and headers."""
    headers = _named(message)
    status = headers.get(":status", "")
    return (int(status) if status.isascii() and status.isdigit() else 0), headers


def _named(message: Any) -> dict[str, str]:
    return {one.key.lower(): one.raw_value.decode("utf-8", "replace") for one in message.headers.headers}


def _replace(response: Any, told: exchange.Replaced) -> None:
    """Put another answer in the place of one whose head has come."""
    _change(response, told.headers)
    _put(response.header_mutation, ":status", str(told.status))
    response.status = response.CONTINUE_AND_REPLACE
    response.body_mutation.body = told.body


def _noted(request: Any) -> str:
    """Return what the picker noted of the request when it decided."""
    namespaces = request.metadata_context.filter_metadata
    if dataplane.METADATA not in namespaces:
        return ""
    fields = namespaces[dataplane.METADATA].fields
    return str(fields[dataplane.PROVIDER].string_value) if dataplane.PROVIDER in fields else ""


def _change(response: Any, headers: exchange.Headers) -> None:
    for name, value in headers.put.items():
        _put(response.header_mutation, name, value)
    response.header_mutation.remove_headers.extend(headers.remove)


def _put(mutation: Any, name: str, value: str) -> None:
    option = mutation.set_headers.add()
    option.header.key = name
    option.header.raw_value = value.encode()
    option.append_action = option.OVERWRITE_IF_EXISTS_OR_ADD
