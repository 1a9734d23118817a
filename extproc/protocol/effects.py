"""What a session wants done, in the order it returns them; the transport's glue does it.

Named tuples for the same reason as `messages`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from extproc.types import HttpRequest

OK: Final = 0  # gRPC status codes that a session ends with
INVALID_ARGUMENT: Final = 3
UNIMPLEMENTED: Final = 12


class Send(NamedTuple):
    """Put `message` on the stream."""

    message: bytes


class Decide(NamedTuple):
    """Ask for an answer to `request`: a Decision, a Reply, or Wait and later one of the two."""

    request: HttpRequest


class Withdraw(NamedTuple):
    """The question is void: nobody waits for its answer any more."""


class Served(NamedTuple):
    """The answer's headers came: from this endpoint ("" if the gateway does not tell), with this HTTP status."""

    ticket: str
    endpoint: str
    status: int


class Released(NamedTuple):
    """The exchange that `ticket` names is over."""

    ticket: str


class Finish(NamedTuple):
    """End the stream with this gRPC status."""

    status: int
    message: str = ""


Effect = Send | Decide | Withdraw | Served | Released | Finish
Effects = tuple[Effect, ...]
