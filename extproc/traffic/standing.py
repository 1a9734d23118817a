"""Standing: how long an endpoint that failed is avoided.

Every failure is a strike; the first costs one second, each further one twice as much, up to a bound. A strike is
forgotten for every `forget_s` without one in which the endpoint might be chosen, and all of them at the first success.
Only what was sent when the last strike had been served counts as another: an engine that dies fails all that it was
computing, and one that is avoided gets requests only where there is no better one; neither tells anything new.
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
    until: float  # avoided


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
        if before is not None and sent_at < before.until:
            return
        count = 1
        if before is not None:
            count += max(before.count - int((now - before.until) / _FORGET_S), 0)
        until = now + min(_FIRST_S * 2 ** min(count - 1, _EXPONENT), _LONGEST_S)
        self._strikes[address] = _Strikes(count, until)
        self._table.avoid_until[row] = max(self._table.avoid_until[row], until)

    def served(self, address: str) -> None:
        """Forget the strikes of `address`: it answered."""
        if self._strikes.pop(address, None) is not None:
            row = self._table.row(address)
            if row is not None:
                self._table.avoid_until[row] = 0.0
