"""Envoy's access log stream: a long-lived call whose every message is settled as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from extproc.protocol import access_log

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.adapters.transport.calls import Call, Listener
    from extproc.types import Outcome

METHOD: Final = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"


class AccessLogService:
    """Gives every outcome to `settle`, in order."""

    def __init__(self, settle: Callable[[Outcome], None]) -> None:
        self._settle = settle

    def open(self, call: Call) -> Listener:
        """Return the listener of one Envoy worker's stream."""
        return _Stream(call, self._settle)


class _Stream:
    def __init__(self, call: Call, settle: Callable[[Outcome], None]) -> None:
        self._call, self._settle = call, settle

    def on_message(self, data: bytes) -> None:
        for outcome in access_log.decode(data):
            self._settle(outcome)

    def on_end(self) -> None:
        self._finish()

    def on_cancel(self) -> None:
        """Keep nothing: what came is settled already."""

    def on_drain(self) -> None:
        self._finish()

    def _finish(self) -> None:
        self._call.send(b"")  # StreamAccessLogsResponse, which has no fields
        self._call.finish()
