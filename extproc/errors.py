"""The picker's errors, named for what happens next.

A `Rejection` answers the client: status and reason sit on the class, the message says what to change. A `ConfigError`
stops the start (or keeps the last good configuration) and names the key.
"""

from __future__ import annotations

from typing import ClassVar


class Rejection(Exception):
    """A request that the picker answers itself, with an OpenAI error object."""

    status: ClassVar[int] = 500
    reason: ClassVar[str] = "internal"  # stable word: response header, metric label
    type: ClassVar[str] = "internal_error"  # OpenAI error `type`
    code: ClassVar[str | None] = None  # OpenAI error `code`

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        """`param` names the field of the body at fault; `retry_after_s` becomes the header `retry-after`."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: tuple[tuple[str, str], ...] = ()  # further ones of the answer


class BadRequest(Rejection):
    """The body or a header cannot be understood."""

    status = 400
    reason = "bad-request"
    type = "invalid_request_error"


class UnknownModel(Rejection):
    """No route serves the model that was asked for."""

    status = 404
    reason = "unknown-model"
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(Rejection):
    """No such path."""

    status = 404
    reason = "not-found"
    type = "invalid_request_error"


class MethodNotAllowed(Rejection):
    """The path exists for another method."""

    status = 405
    reason = "method-not-allowed"
    type = "invalid_request_error"


class TooLarge(Rejection):
    """The body is over the limit."""

    status = 413
    reason = "too-large"
    type = "invalid_request_error"
    code = "request_too_large"


class UnsupportedMediaType(Rejection):
    """The body is not sent as JSON."""

    status = 415
    reason = "unsupported-media-type"
    type = "invalid_request_error"


class NoEndpoints(Rejection):
    """The route's targets have no endpoint that is ready (or none that the gateway's subset allows)."""

    status = 503
    reason = "no-endpoints"
    type = "service_unavailable"
    code = "no_endpoints"


class Saturated(Rejection):
    """Every endpoint was filtered out."""

    status = 429
    reason = "saturated"
    type = "rate_limit_exceeded"
    code = "saturated"


class Shed(Rejection):
    """All is busy, and requests of this priority do not wait."""

    status = 429
    reason = "shed"
    type = "rate_limit_exceeded"
    code = "saturated"


class QueueFull(Rejection):
    """As many wait as may."""

    status = 429
    reason = "queue-full"
    type = "rate_limit_exceeded"
    code = "saturated"


class Displaced(Rejection):
    """Others took the place in the queue."""

    status = 429
    reason = "displaced"
    type = "rate_limit_exceeded"
    code = "saturated"


class WaitedTooLong(Rejection):
    """No place came free in time."""

    status = 429
    reason = "waited-too-long"
    type = "rate_limit_exceeded"
    code = "saturated"


class LimitReached(Rejection):
    """A limit of the route or of the caller leaves no room."""

    status = 429
    reason = "limit-reached"
    type = "rate_limit_exceeded"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after_s: int, headers: tuple[tuple[str, str], ...]) -> None:
        """`headers` tell what is left of the limits."""
        super().__init__(message, retry_after_s=retry_after_s)
        self.headers = headers


class PrefillFailed(Rejection):
    """No prefill endpoint computed the prompt, and no decode endpoint may do it alone."""

    status = 503
    reason = "prefill-failed"
    type = "service_unavailable"
    code = "prefill_failed"


class EngineFailed(Rejection):
    """Every try failed before an answer began. Mostly it is Envoy that says so."""

    status = 503
    reason = "engine-failed"
    type = "service_unavailable"
    code = "engine_failed"


class Busy(Exception):
    """An errand that cannot be run now: as many as may are waiting. The story goes on without."""


class ConfigError(Exception):
    """A configuration that cannot be used; `path` is the key, as in `plugins[2].parameters.threshold`."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message
