"""grpc.health.v1.Health: `Check` answers, `Watch` tells changes. `liveness` is up as long as we answer at all."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from extproc.adapters.transport.calls import Call, Listener, Service, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECK: Final = "/grpc.health.v1.Health/Check"
WATCH: Final = "/grpc.health.v1.Health/Watch"
LIVENESS: Final = "liveness"
READINESS: Final = ("", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")  # "" is the whole server


class Health(IntEnum):
    """HealthCheckResponse.ServingStatus."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


# HealthCheckRequest and -Response have one field of number 1: a string, an enum. So have these two.
def _asked(data: bytes) -> str:
    try:
        return str(StringValue.FromString(data).value)
    except DecodeError:
        return "\0"  # the name of no service


def _answer(health: Health) -> bytes:
    return bytes(Int32Value(value=health).SerializeToString())


class HealthService:
    """Holds readiness; opens both methods."""

    def __init__(self) -> None:
        self.ready = False  # for others to read: `set_ready` tells the watchers, too
        self._watchers: dict[_Watch, str] = {}

    def methods(self) -> Mapping[str, Service]:
        """Return the services to serve."""
        return {CHECK: _Opens(self, _Check), WATCH: _Opens(self, _Watch)}

    def health(self, name: str) -> Health:
        """Return how the service `name` is."""
        if name == LIVENESS:
            return Health.SERVING
        if name in READINESS:
            return Health.SERVING if self.ready else Health.NOT_SERVING
        return Health.SERVICE_UNKNOWN

    def set_ready(self, *, ready: bool) -> None:
        """Change readiness, and tell the watchers."""
        if ready == self.ready:
            return
        self.ready = ready
        for watcher, name in list(self._watchers.items()):
            if name in READINESS:
                watcher.tell(self.health(name))

    def watch(self, watcher: _Watch, name: str) -> None:
        """Tell `watcher` how `name` is, now and whenever it changes."""
        self._watchers[watcher] = name
        watcher.tell(self.health(name))

    def unwatch(self, watcher: _Watch) -> None:
        """Forget a watcher."""
        self._watchers.pop(watcher, None)


class _Check:
    def __init__(self, health: HealthService, call: Call) -> None:
        self._health, self._call = health, call

    def on_message(self, data: bytes) -> None:
        found = self._health.health(_asked(data))
        if found is Health.SERVICE_UNKNOWN:
            self._call.finish(Status.NOT_FOUND, "unknown service")
            return
        self._call.send(_answer(found))
        self._call.finish()

    def on_end(self) -> None:
        self._call.finish(Status.INVALID_ARGUMENT, "no request")

    def on_cancel(self) -> None:
        """Keep nothing."""

    def on_drain(self) -> None:
        """Go on: it is over soon anyway."""


class _Watch:
    def __init__(self, health: HealthService, call: Call) -> None:
        self._health, self._call = health, call

    def tell(self, health: Health) -> None:
        self._call.send(_answer(health))

    def on_message(self, data: bytes) -> None:
        self._health.watch(self, _asked(data))

    def on_end(self) -> None:
        """Go on: the request is all that a watcher says."""

    def on_cancel(self) -> None:
        self._health.unwatch(self)

    def on_drain(self) -> None:
        self._health.unwatch(self)
        self._call.send(_answer(Health.NOT_SERVING))
        self._call.finish(Status.UNAVAILABLE, "the server is stopping")


class _Opens:
    def __init__(self, health: HealthService, listener: type[_Check | _Watch]) -> None:
        self._health, self._listener = health, listener

    def open(self, call: Call) -> Listener:
        return self._listener(self._health, call)
