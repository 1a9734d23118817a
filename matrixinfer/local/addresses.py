"""Pod addresses: every stack on this machine claims /24 blocks of 127.0.0.0/8 and gives each pod one address.

A block is claimed by binding an abstract Unix socket of its name: the kernel lets one process have it, frees it when
the process dies, and scopes it to the network namespace, exactly as loopback addresses are.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FIRST_BLOCK = 10  # 127.10.0.0/24; what lies below is left to people's own habits (127.0.0.1, 127.0.1.1, 127.0.0.53)
PER_BLOCK = 254


class AddressesExhausted(Exception):
    """Every block of 127.0.0.0/8 is taken."""


class Addresses:
    """The addresses of one stack. A freed address comes back last, so that late callers do not meet a stranger."""

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []
        self._blocks = _blocks()
        self._free: deque[str] = deque()

    def take(self) -> str:
        """Return an address that no other stack uses. Raises AddressesExhausted."""
        if not self._free:
            self._claim()
        return self._free.popleft()

    def give_back(self, address: str) -> None:
        """Take note that the address has no user any more."""
        self._free.append(address)

    def close(self) -> None:
        """Leave all blocks to others."""
        while self._claims:
            self._claims.pop().close()
        self._free.clear()
        self._blocks = _blocks()

    def _claim(self) -> None:
        for block in self._blocks:
            claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                claim.bind(f"\0matrixinfer-{block}")
            except OSError as error:
                claim.close()
                if error.errno == errno.EADDRINUSE:
                    continue
                raise
            self._claims.append(claim)
            self._free.extend(f"{block}.{host}" for host in range(1, PER_BLOCK + 1))
            return
        raise AddressesExhausted("every /24 of 127.10.0.0 to 127.255.255.0 is claimed by a stack on this machine")


def _blocks() -> Iterator[str]:
    return (f"127.{second}.{third}" for second in range(FIRST_BLOCK, 256) for third in range(256))
