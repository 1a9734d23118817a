"""The little of protobuf's wire format that the hot answers are written with.

upb takes 12 µs to build and serialise a decided answer, because every nested message is an object; writing lengths
and bytes takes 3. Answers that are not on the fast path are built with the generated classes.
"""

from __future__ import annotations

ONE_BYTE = 0x80
_SHORT = tuple(bytes([n]) if n < ONE_BYTE else bytes([n & 0x7F | ONE_BYTE, n >> 7]) for n in range(1 << 14))


def varint(number: int) -> bytes:
    """Return `number`, not negative, in base 128."""
    if number < len(_SHORT):
        return _SHORT[number]
    out = bytearray()
    while number >= ONE_BYTE:
        out.append(number & 0x7F | ONE_BYTE)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(tag: bytes, payload: bytes) -> bytes:
    """Return a length-delimited field: string, bytes or message."""
    size = len(payload)
    return tag + (_SHORT[size] if size < len(_SHORT) else varint(size)) + payload
