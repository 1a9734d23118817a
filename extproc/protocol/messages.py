"""What a gateway tells us on an ext_proc stream, as small values; `codec` makes them, `session` lives on them.

Named tuples, not dataclasses: one is built for every message, and a frozen dataclass takes three times as long.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class BodyMode(IntEnum):
    """How the gateway sends a body; numbers are the protocol's (`ProcessingMode.BodySendMode`)."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4
    GRPC = 5


class ProtocolConfig(NamedTuple):
    """What the first message of a stream says about those that follow."""

    request_body_mode: int  # a BodyMode, or a number that is newer than we are
    response_body_mode: int
    early_body: bool  # chunks of a STREAMED body come without waiting for the answer to the headers


class Caller(NamedTuple):
    """Who asks, as the gateway vouches for it."""

    tenant: str = ""
    key: str = ""  # name of the API key
    allowed: frozenset[str] | None = None  # models that may be listed; told with requests for the list only


class RequestHeaders(NamedTuple):
    """The request's head. Names are lower case, pseudo-headers included; repeated headers are joined with a comma."""

    headers: Mapping[str, str]
    end: bool  # no body follows
    config: ProtocolConfig | None = None  # None: a gateway that does not say
    subset: tuple[str, ...] | None = None
    caller: Caller | None = None  # None: nobody was asked
    body: bytes | None = None  # all of it, where it comes along
    ticket: str = ""  # the request's name, where it came with the body


class RequestBody(NamedTuple):
    """A piece of the request's body; all of it in the buffered modes."""

    data: bytes
    end: bool
    subset: tuple[str, ...] | None = None


class RequestTrailers(NamedTuple):
    """The request is over."""

    subset: tuple[str, ...] | None = None


class ResponseHeaders(NamedTuple):
    """The answer's head, and the endpoint that gave it where the gateway tells."""

    status: int  # 0 if it could not be read
    end: bool
    served: str = ""  # "ip:port"
    config: ProtocolConfig | None = None


class ResponseBody(NamedTuple):
    """A piece of the answer's body."""

    data: bytes
    end: bool


class ResponseTrailers(NamedTuple):
    """The answer is over."""


Message = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers
