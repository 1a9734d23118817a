"""One HTTP/2 connection of the nghttp2 transport (`ngh2`), and the gRPC calls on it.

The engine does frames, HPACK and flow control; here its events become calls, and answers frames. Three facts about it
shape the code: it runs ahead of its events, so a stream may be gone before we hear of it; Envoy ends every exchange
with a reset, so its reset limit is raised; it queues what a peer does not take, so a connection whose peer does not
read is not read from either.
"""
# ruff: noqa: SLF001 - the table of events names the connection's own handlers

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import ngh2

from extproc.adapters.transport.calls import Listener, Service, Status
from extproc.adapters.transport.framing import FramingError, Reassembler, frame

if TYPE_CHECKING:
    from extproc.adapters.transport.ngh2_server import NgServer

_LOG = logging.getLogger(__name__)
_HEADERS: Final = [(b":status", b"200"), (b"content-type", b"application/grpc")]
_OK_TRAILERS: Final = [(b"grpc-status", b"0")]
_WRONG_TYPE: Final = [(b":status", b"415")]
_MESSAGE_SAFE: Final = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"  # what grpc-message needs no escape for
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_TIMEOUT_DIGITS: Final = 8
_PING: Final = b"\0" * 8
_MAX_FRAME: Final = 1 << 20
_LARGE: Final = 1 << 14  # messages from this size on are worth a look at what is queued


class _Drain(Enum):
    """How far a connection is on its way out."""

    NO = auto()
    ANNOUNCED = auto()  # GOAWAY without a last stream, and a PING: what is on the wire is still served
    LAST = auto()  # the PING came back: GOAWAY with the last stream


class NgCall:
    """One stream of a connection."""

    __slots__ = ("_connection", "_started", "_stream", "done", "lingers", "listener", "messages", "timer")

    def __init__(self, connection: Connection, stream: int) -> None:
        self._connection = connection
        self._stream = stream
        self._started = False
        self.messages = Reassembler()
        self.listener: Listener | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.done = False
        self.lingers = False  # ended by a drain: its listener still hears what was on its way

    def send(self, message: bytes) -> None:
        """Queue one message."""
        if self.done:
            return
        connection, stream = self._connection, self._stream
        engine = connection.engine
        try:
            if not self._started:
                self._started = True
                engine.send_response(stream, _HEADERS)
            engine.send_data(stream, frame(message))
            if len(message) >= _LARGE or connection.paused:
                connection.watch_unsent(self, stream)
        except ngh2.NGH2Error:  # the stream was reset already
            self.lost()
        connection.flush_soon()

    def finish(self, status: int = Status.OK, message: str = "") -> None:
        """End the stream with trailers."""
        if self.done:
            return
        self._over()
        trailers = _OK_TRAILERS
        if status or message:
            trailers = [(b"grpc-status", b"%d" % status), (b"grpc-message", quote(message, _MESSAGE_SAFE).encode())]
        engine = self._connection.engine
        try:
            if self._started:
                engine.send_trailers(self._stream, trailers)
            else:
                engine.send_response(self._stream, _HEADERS + trailers, end_stream=True)
        except ngh2.NGH2Error:  # the stream was reset already
            pass
        self._connection.flush_soon()

    def refuse_type(self) -> None:
        """Answer a request that is no gRPC."""
        self._over()
        with suppress(ngh2.NGH2Error):
            self._connection.engine.send_response(self._stream, _WRONG_TYPE, end_stream=True)

    def lost(self) -> None:
        """Tell the listener, once, that nobody is there any more."""
        if not self.done:
            self._over()
            if self.listener is not None:
                self._connection.guarded(self, self.listener.on_cancel)

    def expire(self) -> None:
        """End the call whose deadline passed."""
        if not self.done:
            self.finish(Status.DEADLINE_EXCEEDED, "deadline exceeded")
            if self.listener is not None:
                self._connection.guarded(self, self.listener.on_cancel)

    def _over(self) -> None:
        self.done = True
        if self.messages.held:
            self._connection.release(self.messages)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Connection(asyncio.Protocol):
    """One HTTP/2 connection."""

    def __init__(self, server: NgServer) -> None:
        self._server = server
        self._calls: dict[int, NgCall] = {}
        self._transport: asyncio.Transport | None = None
        self._inside = False  # while input is handled: one flush at its end is enough
        self._scheduled = False
        self._ended = False  # the engine is through with this connection
        self._drain = _Drain.NO
        self._silent = self._asked = False  # nothing came since the last beat; and we asked why
        self.paused = False  # the peer does not take what we wrote
        self.engine: Any = None

    # ---- from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start HTTP/2."""
        server = self._server
        if not server.admit(self):
            transport.close()
            return
        self._transport = cast("asyncio.Transport", transport)  # uvloop's do not inherit from it
        limits = server.limits
        self.engine = ngh2.Connection(
            ngh2.Role.SERVER,
            ngh2.Configuration(
                max_inbound_header_list_size=limits.max_header_bytes,
                stream_reset_rate_limit=(limits.reset_burst, limits.resets_per_s),
            ),
        )
        self.engine.initiate_connection(
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
                ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
                ngh2.Setting.MAX_FRAME_SIZE: _MAX_FRAME,
            }
        )
        self.engine.set_local_window_size(limits.connection_window_bytes)
        self._flush()

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell every call."""
        if self._transport is None:
            return
        self._transport = None
        for call in list(self._calls.values()):
            self._gone(call)
        self._calls.clear()
        self._server.forget(self)

    def pause_writing(self) -> None:
        """Stop reading, too: answers to what we would read could only pile up."""
        self.paused = True
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle what came, then send what it caused."""
        if self._transport is None:
            return
        self._inside = True
        self._silent = self._asked = False
        try:
            self._receive(data)
        finally:
            self._inside = False
        self._flush()

    # ---- HTTP/2 events

    def _receive(self, data: bytes) -> None:
        engine = self.engine
        try:
            engine.receive_data(data)
        except ngh2.NGH2Error as error:
            _LOG.warning("HTTP/2 connection ends: %s", error)
            self._ended = True
        for event in engine.events():
            handler = _EVENTS.get(type(event))
            if handler is not None:
                handler(self, event)

    def _data(self, event: Any) -> None:
        call = self._calls.get(event.stream_id)
        if call is None or (call.done and not call.lingers):
            return
        if event.data:
            self._feed(call, event.data)
        if event.end_stream:
            self._half_closed(call)

    def _request(self, event: Any) -> None:
        call = self._calls[event.stream_id] = NgCall(self, event.stream_id)
        path, kind, timeout = _grpc_headers(event.headers)
        if not kind.startswith(b"application/grpc"):
            call.refuse_type()
        elif (service := self._server.services.get(path)) is None:
            call.finish(Status.UNIMPLEMENTED, f"unknown method {path.decode('latin-1')}")
        elif (seconds := _seconds(timeout)) is None:
            call.finish(Status.INVALID_ARGUMENT, "grpc-timeout cannot be read")
        else:
            if timeout:
                call.timer = self._server.loop.call_later(seconds, call.expire)
            self._open(call, service)
            if event.end_stream:
                self._half_closed(call)

    def _open(self, call: NgCall, service: Service) -> None:
        try:
            call.listener = service.open(call)
            if self._drain is not _Drain.NO:
                self._tell_drain(call)
        except Exception:  # noqa: BLE001 - one call's bug is not the connection's
            self._failed(call)

    def _trailers(self, event: Any) -> None:
        call = self._calls.get(event.stream_id)
        if call is not None:
            self._half_closed(call)

    def _stream_closed(self, event: Any) -> None:
        call = self._calls.pop(event.stream_id, None)
        if call is not None:
            self._gone(call)
        if self._drain is _Drain.LAST and not self._calls:
            self.flush_soon()

    def _gone(self, call: NgCall) -> None:
        """Part with a call whose stream is closed: call and listener know each other, and neither waits for the collector."""
        if call.messages.held:
            self.release(call.messages)
        if not call.done:
            call.lost()
        call.listener = None

    def _connection_closed(self, _event: Any) -> None:
        self._ended = True

    def _feed(self, call: NgCall, data: bytes) -> None:
        server, pieces, listener = self._server, call.messages, call.listener
        if listener is None:
            return
        server.held -= pieces.held
        try:
            found = pieces.feed(data, server.limits.max_message_bytes)
            server.held += pieces.held
            for message in found:
                listener.on_message(message)
                if call.done and not call.lingers:
                    return
        except FramingError as error:
            self._cut(call, error.status, error.message)
            return
        except Exception:  # noqa: BLE001 - one call's bug is not the connection's
            self._failed(call)
        if pieces.held and server.held > server.limits.max_held_bytes:
            self._cut(call, Status.RESOURCE_EXHAUSTED, "unfinished messages take all the memory they may")

    def _half_closed(self, call: NgCall) -> None:
        listener = call.listener
        if call.done or listener is None:
            return
        if call.messages.held:
            self._cut(call, Status.INTERNAL, "the stream ended inside a message")
        else:
            self.guarded(call, listener.on_end)

    def _cut(self, call: NgCall, status: Status, message: str) -> None:
        """End a call that its peer broke."""
        if not call.done:
            call.finish(status, message)
            if call.listener is not None:
                self.guarded(call, call.listener.on_cancel)

    def release(self, pieces: Reassembler) -> None:
        """Drop the unfinished message of a call that is over."""
        self._server.held -= pieces.held
        pieces.drop()

    def guarded(self, call: NgCall, tell: Any) -> None:
        """Tell a listener; its bug ends its call only."""
        try:
            tell()
        except Exception:  # noqa: BLE001 - as above
            self._failed(call)

    def _failed(self, call: NgCall) -> None:
        _LOG.exception("a service failed")
        call.finish(Status.UNKNOWN, "the service failed; its log says why")

    # ---- output

    def watch_unsent(self, call: NgCall, stream: int) -> None:
        """Reset a call whose peer takes nothing while answers pile up."""
        if self.engine.queued_body_size(stream) > self._server.limits.max_unsent_bytes:
            self.engine.reset_stream(stream, int(ngh2.ErrorCode.ENHANCE_YOUR_CALM))
            call.lost()

    def flush_soon(self) -> None:
        """Send what is queued, when the loop comes round; while input is handled, its end does."""
        if not self._inside and not self._scheduled:
            self._scheduled = True
            self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        transport = self._transport
        if transport is None or (self.paused and not self._ended):
            return
        try:
            data = self.engine.data_to_send()
        except ngh2.NGH2Error as error:
            _LOG.warning("HTTP/2 connection breaks: %s", error)
            transport.abort()
            return
        for event in self.engine.events():  # what ended with this output
            kind = type(event)
            if kind is ngh2.StreamClosed:
                self._stream_closed(event)
            elif kind is ngh2.ConnectionClosed:
                self._ended = True
        if data:
            transport.write(data)
        if self._ended or (self._drain is _Drain.LAST and not self._calls):
            transport.close()

    # ---- keepalive and the end

    def keepalive(self) -> None:
        """Ask a connection whether it lives; give up one that was silent since it was asked."""
        if self._transport is None:
            return
        if self._asked:
            _LOG.warning("HTTP/2 connection does not answer")
            self._transport.abort()
        elif self._silent:
            self._asked = True
            with suppress(ngh2.NGH2Error):  # it is closing already
                self.engine.ping(_PING)
            self.flush_soon()
        self._silent = True

    def drain(self) -> None:
        """Announce the end; what is on its way is still served."""
        if self._transport is not None and self._drain is _Drain.NO:
            self._drain = _Drain.ANNOUNCED
            with suppress(ngh2.NGH2Error):  # it is closing already
                self.engine.send_shutdown_notice()
                self.engine.ping(_PING)
            self.flush_soon()

    def _pinged(self, _event: Any) -> None:
        if self._drain is _Drain.ANNOUNCED:  # what came together with it is still served
            self._server.loop.call_soon(self._say_last)

    def _say_last(self) -> None:
        """Name the last call that is served; clients make those after it anew, elsewhere."""
        if self._transport is None or self._drain is not _Drain.ANNOUNCED:
            return
        self._drain = _Drain.LAST
        with suppress(ngh2.NGH2Error):  # it is closing already
            self.engine.send_goaway()
        for call in list(self._calls.values()):
            self._tell_drain(call)
        self._flush()

    def _tell_drain(self, call: NgCall) -> None:
        if call.listener is not None and not call.done:
            self.guarded(call, call.listener.on_drain)
            call.lingers = call.done

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None:
            self._transport.abort()


_EVENTS: Final = {
    ngh2.DataReceived: Connection._data,
    ngh2.RequestReceived: Connection._request,
    ngh2.StreamClosed: Connection._stream_closed,
    ngh2.TrailersReceived: Connection._trailers,
    ngh2.PingAcknowledged: Connection._pinged,
    ngh2.ConnectionClosed: Connection._connection_closed,
}


def _grpc_headers(headers: Any) -> tuple[bytes, bytes, bytes]:
    """Return path, content-type and grpc-timeout."""
    path = kind = timeout = b""
    for name, value in headers:
        if name == b":path":
            path = value
        elif name == b"content-type":
            kind = value
        elif name == b"grpc-timeout":
            timeout = value
    return path, kind, timeout


def _seconds(timeout: bytes) -> float | None:
    """Return the seconds of a grpc-timeout header, 0 if there is none, None if it cannot be read."""
    if not timeout:
        return 0.0
    digits, unit = timeout[:-1], _UNITS.get(timeout[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _MAX_TIMEOUT_DIGITS:
        return None
    return int(digits) * unit
