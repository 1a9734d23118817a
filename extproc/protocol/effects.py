"""What a session wants done, in the order it returns them; the transport's glue does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from extproc.types import HttpRequest

OK: Final = 0  # gRPC status codes that a session ends with
INVALID_ARGUMENT: Final = 3
UNIMPLEMENTED: Final = 12


@dataclass(frozen=True, slots=True)
class Send:
    """Put `message` on the stream."""

    message: bytes


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask for an answer to `request`: a Decision, a Reply, or Wait and later one of the two."""

    request: HttpRequest


@dataclass(frozen=True, slots=True)
class Withdraw:
    """The question is void: nobody waits for its answer any more."""


@dataclass(frozen=True, slots=True)
class Served:
    """The answer's headers came: from this endpoint ("" if the gateway does not tell), with this HTTP status."""

    ticket: str
    endpoint: str
    status: int


@dataclass(frozen=True, slots=True)
class Released:
    """The exchange that `ticket` names is over."""

    ticket: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the stream with this gRPC status."""

    status: int
    message: str = ""


Effect = Send | Decide | Withdraw | Served | Released | Finish
Effects = tuple[Effect, ...]
