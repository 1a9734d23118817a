"""Standing: how long an endpoint that failed is avoided.

Every failure is a strike; the first costs one second, each further one twice as much, up to a bound. A strike is
forgotten for every `forget_s` without a new one, and all of them at the first success. An engine that dies fails all
that it was computing: requests that were sent before the last strike tell nothing new, and are no strikes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from extproc.scheduling.endpoints import EndpointTable

_FIRST_S: Final = 1.0  # Envoy retries within milliseconds; a second keeps the next requests away from a restart
_LONGEST_S: Final = 30.0  # an engine that is back must not stay idle; its pod's readiness decides about longer
_FORGET_S: Final = 10.0
_EXPONENT: Final = 5  # 2**5 s is over the bound


@dataclass(frozen=True, slots=True)
class _Strikes:
    count: int
    at: float


class Standing:
    """Writes the table's `avoid_until`."""

    def __init__(self, table: EndpointTable) -> None:
        self._table = table
        self._strikes: dict[str, _Strikes] = {}

    def failed(self, address: str, *, sent_at: float, now: float) -> None:
        """Avoid `address`, which failed a request sent then, for a while; does nothing if it is not in the table."""
        row = self._table.row(address)
        if row is None:
            return
        if len(self._strikes) > len(self._table):  # of endpoints that left
            self._strikes = {
                each: strikes for each, strikes in self._strikes.items() if self._table.row(each) is not None
            }
        before = self._strikes.get(address)
        if before is not None and sent_at < before.at:
            return
        count = 1
        if before is not None:
            count += max(before.count - int((now - before.at) / _FORGET_S), 0)
        self._strikes[address] = _Strikes(count, now)
        avoided = min(_FIRST_S * 2 ** min(count - 1, _EXPONENT), _LONGEST_S)
        self._table.avoid_until[row] = max(self._table.avoid_until[row], now + avoided)

    def served(self, address: str) -> None:
        """Forget the strikes of `address`: it answered."""
        if self._strikes.pop(address, None) is not None:
            row = self._table.row(address)
            if row is not None:
                self._table.avoid_until[row] = 0.0
