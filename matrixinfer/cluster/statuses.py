"""What an API server answers when it refuses, and what it means for the caller. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from matrixinfer.cluster.lease import NotLeader
from matrixinfer.cluster.protocol import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_BY_REASON: Final[Mapping[str, type[ClusterError]]] = {
    "NotFound": NotFound,
    "AlreadyExists": AlreadyExists,
    "Conflict": Conflict,
    "Invalid": Invalid,
    "BadRequest": Invalid,
    "RequestEntityTooLarge": Invalid,
    "Expired": Expired,
    "Gone": Expired,
    "Forbidden": Forbidden,
}
_BY_CODE: Final[Mapping[int, type[ClusterError]]] = {
    400: Invalid,
    401: Unavailable,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    413: Invalid,
    422: Invalid,
    429: Unavailable,
}
_SERVER_FAULTS: Final = 500
_FENCE: Final = "'matrixinfer-leader'"  # the policy that the chart installs, as the API server names it
_LONGEST: Final = 500  # of a body that is no Status: a proxy's page


def refusal(code: int, body: bytes) -> ClusterError:
    """Return the error that an answer with this HTTP status means."""
    try:
        status = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        text = body[:_LONGEST].decode(errors="replace").strip()
        return _kind_of(code, "")(
            f"the API server answered {code}: {text}" if text else f"the API server answered {code}"
        )
    return error_of(status | {"code": status.get("code") or code})


def error_of(status: Mapping[str, Any]) -> ClusterError:
    """Return the error that a Status object means; watches bring it as an event."""
    code = int(status.get("code") or _SERVER_FAULTS)
    message = str(status.get("message") or status.get("reason") or f"the API server answered {code}")
    if _FENCE in message:
        return NotLeader(message)
    return _kind_of(code, str(status.get("reason") or ""))(message)


def _kind_of(code: int, reason: str) -> type[ClusterError]:
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    if code >= _SERVER_FAULTS:
        return Unavailable  # a webhook that is down, a leader election of etcd: all of it passes
    return _BY_CODE.get(code, ClusterError)
