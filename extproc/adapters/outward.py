"""The service that stands before external providers: ext_proc calls of their clusters' filters, one for each try.

What is done is `extproc.providers`'; here messages of the protocol become its calls, and what it says becomes messages. A request
without a note of the picker's is refused: the filter stands before providers only, and nobody else may send there.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf.message import DecodeError

from extproc.adapters.transport.calls import Status
from extproc.errors import Rejection
from extproc.protocol import codec
from extproc.protocol.messages import BodyMode
from extproc.providers import exchange, note
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.adapters.transport.calls import Call, Listener

_LOG: Final = logging.getLogger(__name__)
_SEND: Final = 1  # ProcessingMode.HeaderSendMode
_SKIP: Final = 2


class Outward:
    """Opens exchanges. The counts are of tries."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.tries = 0
        self.strangers = 0  # without a note of ours
        self.bugs = 0
        self._clock = clock

    def open(self, call: Call) -> Listener:
        """Return the listener of one try."""
        self.tries += 1
        return _Try(self, call, int(self._clock()))


class _Try:
    """One call."""

    __slots__ = ("_call", "_exchange", "_now", "_service", "_whole")

    def __init__(self, service: Outward, call: Call, now: int) -> None:
        self._service = service
        self._call = call
        self._now = now
        self._exchange: exchange.Exchange | None = None
        self._whole = False  # the answer is collected

    def on_message(self, data: bytes) -> None:
        """Take a message; a bug ends this try only."""
        try:
            request = pb.ProcessingRequest.FromString(data)
        except DecodeError:
            self._call.finish(Status.INVALID_ARGUMENT, "not a ProcessingRequest")
            return
        try:
            self._take(request)
        except Exception:  # noqa: BLE001 - as said
            self._service.bugs += 1
            _LOG.exception("a provider's answer cannot be passed on")
            self._call.finish(Status.INTERNAL, "the picker failed on this answer; its log says why")

    def on_end(self) -> None:
        """Take that Envoy says no more."""
        self._call.finish()

    def on_cancel(self) -> None:
        """Take that the try is over."""

    def on_drain(self) -> None:
        """Go on: the answer ends by itself, or with the grace."""

    def _take(self, request: Any) -> None:
        kind = request.WhichOneof("request")
        if kind == "request_headers":
            self._request(request)
            return
        found = self._exchange
        if found is None:
            self._call.finish(Status.INVALID_ARGUMENT, f"{kind} before the request's headers")
        elif kind == "response_headers":
            self._response(found, request.response_headers)
        elif kind == "response_body":
            self._body(found, request.response_body)
        else:
            self._call.finish(Status.INVALID_ARGUMENT, f"{kind} was not asked for")

    def _request(self, request: Any) -> None:
        told = note.read(_noted(request))
        if told is None:
            self._service.strangers += 1
            refusal = codec.refusal(Rejection("This provider is only reached through the picker."))
            self._call.send(codec.immediate(refusal))
            self._call.finish()
            return
        self._exchange = exchange.Exchange(told, self._now)
        names = [one.key.lower() for one in request.request_headers.headers.headers]
        answer = pb.ProcessingResponse()
        _change(answer.request_headers.response, self._exchange.request(names, dataplane.CREDENTIALS))
        self._call.send(answer.SerializeToString())

    def _response(self, found: exchange.Exchange, message: Any) -> None:
        headers = {one.key.lower(): one.raw_value.decode("utf-8", "replace") for one in message.headers.headers}
        status = headers.get(":status", "")
        told = found.response(int(status) if status.isdigit() else 0, headers, end=message.end_of_stream)
        answer = pb.ProcessingResponse()
        response = answer.response_headers.response
        _change(response, told.headers)
        if isinstance(told, exchange.Replaced):
            _put(response.header_mutation, ":status", str(told.status))
            response.status = response.CONTINUE_AND_REPLACE
            response.body_mutation.body = told.body
        elif isinstance(told, exchange.Whole):
            self._whole = True
            answer.mode_override.response_header_mode = _SEND
            answer.mode_override.response_body_mode = BodyMode.BUFFERED
        elif isinstance(told, exchange.Pass):
            answer.mode_override.response_header_mode = _SEND
            answer.mode_override.response_body_mode = BodyMode.NONE
        self._call.send(answer.SerializeToString())
        if not isinstance(told, exchange.Streamed | exchange.Whole):
            self._call.finish()

    def _body(self, found: exchange.Exchange, message: Any) -> None:
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
