"""gRPC's message framing: a flag byte and a length before each message, cut anywhere by HTTP/2.

Written for the common case that one DATA frame carries exactly one message; a message in pieces is joined once.
"""

from __future__ import annotations

import struct
from typing import Final

from extproc.adapters.transport.calls import Status

_PREFIX: Final = struct.Struct(">BI")
PREFIX_BYTES: Final = _PREFIX.size


class FramingError(Exception):
    """A message that ends its call with `status`."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def frame(message: bytes) -> bytes:
    """Return `message` as it goes on the wire."""
    return _PREFIX.pack(0, len(message)) + message


class Reassembler:
    """The messages of one call, out of its pieces."""

    __slots__ = ("_need", "_pieces", "held")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._need = 0
        self.held = 0  # bytes of an unfinished message

    def feed(self, data: bytes, limit: int) -> list[bytes]:
        """Return the messages that `data` completes. Raises FramingError and holds nothing then."""
        if self._pieces:
            self._pieces.append(data)
            self.held += len(data)
            if self.held < self._need:
                return []
            if self.held == self._need > PREFIX_BYTES:  # one message, mostly: its length was seen, and checked
                self._pieces[0] = self._pieces[0][PREFIX_BYTES:]
                message = b"".join(self._pieces)
                self.drop()
                return [message]
            data = b"".join(self._pieces)
            self.drop()
        found: list[bytes] = []
        position, end = 0, len(data)
        while end - position >= PREFIX_BYTES:
            flag, size = _PREFIX.unpack_from(data, position)
            if flag:
                raise FramingError(Status.UNIMPLEMENTED, "compressed messages are not supported")
            if size > limit:
                raise FramingError(Status.RESOURCE_EXHAUSTED, f"message of {size} bytes, the limit is {limit}")
            start = position + PREFIX_BYTES
            if start + size > end:
                self._hold(data[position:], PREFIX_BYTES + size)
                return found
            found.append(data[start : start + size])
            position = start + size
        if position < end:
            self._hold(data[position:], PREFIX_BYTES)
        return found

    def drop(self) -> None:
        """Forget an unfinished message."""
        self._pieces = []
        self.held = 0

    def _hold(self, rest: bytes, need: int) -> None:
        self._pieces = [rest]
        self._need = need
        self.held = len(rest)
