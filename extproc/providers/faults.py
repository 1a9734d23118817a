"""Errors of providers, and our own about them, as error objects of the client's API.

What a provider says of the gateway's account (401, 402, 403) is never repeated: it may hold parts of the credential, and the
client can do nothing about it.
"""

from __future__ import annotations

from typing import Any, Final

from extproc.providers import events, fields
from extproc.providers.note import Speech

REFUSED: Final = frozenset({401, 402, 403})
BAD_GATEWAY: Final = 502
_OVERLOADED: Final = 529  # Anthropic's own status, which other clients do not know
_UNAVAILABLE: Final = 503
_SHOWN: Final = 2000  # characters of a provider's message
# By status: the types of Anthropic's API and of OpenAI's.
_TYPES: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    404: ("not_found_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    413: ("request_too_large", "invalid_request_error"),
    422: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("overloaded_error", "service_unavailable"),
    504: ("timeout_error", "timeout_error"),
    529: ("overloaded_error", "service_unavailable"),
}
_OTHER: Final = ("api_error", "upstream_error")
_STATUS: Final[dict[str, int]] = {
    "invalid_request_error": 400,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "timeout_error": 504,
}


def refused(client: Speech, name: str) -> bytes:
    """Write the answer to a request that the provider refused for the gateway's sake."""
    message = (
        f"The provider {name} does not accept the gateway's credential. Its operator has to change it; see its Secret."
    )
    return fields.encode(error(client, BAD_GATEWAY, message, code="provider_refused"))


def garbled(client: Speech, name: str) -> bytes:
    """Write the answer where the provider's cannot be understood."""
    message = f"The provider {name} answered something that is no answer of its API."
    return fields.encode(error(client, BAD_GATEWAY, message, code="provider_garbled"))


def status_for(client: Speech, status: int) -> int:
    """Return the status as the client's API knows it."""
    return _UNAVAILABLE if status == _OVERLOADED and client is Speech.OPENAI else status


def translated(client: Speech, status: int, body: bytes) -> bytes:
    """Write a provider's error for the client."""
    try:
        said = fields.decoded(body)
    except ValueError:
        said = None
    found = said.get("error") if isinstance(said, dict) else None
    told = found if isinstance(found, dict) else {}
    message = told.get("message")
    if not isinstance(message, str) or not message:
        message = f"The provider answered with status {status}."
    param, code = told.get("param"), told.get("code")
    return fields.encode(
        error(
            client,
            status,
            message[:_SHOWN],
            param=param if isinstance(param, str) else None,
            code=code if isinstance(code, str) else None,
        )
    )


def error(client: Speech, status: int, message: str, *, param: str | None = None, code: str | None = None) -> Any:
    """Build an error object."""
    theirs, ours = _TYPES.get(status, _OTHER)
    if client is Speech.ANTHROPIC:
        return {"type": "error", "error": {"type": theirs, "message": message}}
    return {"error": {"message": message, "type": ours, "param": param, "code": code}}


def event(client: Speech, said: Any, name: str) -> bytes:
    """Write an error that comes within a stream; `said` is the provider's error object, None for a stream that is broken."""
    told = said if isinstance(said, dict) else {}
    kind = told.get("type")
    status = _STATUS.get(kind, BAD_GATEWAY) if isinstance(kind, str) else BAD_GATEWAY
    message = told.get("message")
    if not isinstance(message, str) or not message:
        message = f"The provider {name} broke off its answer; send the request again."
    made = error(client, status, message[:_SHOWN], code=None if told else "stream_interrupted")
    return events.named(made) if client is Speech.ANTHROPIC else events.chunk(made)
