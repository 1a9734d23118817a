"""How long to wait before trying again: doubling, bounded, spread by chance. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays from `first_s`, doubling up to `most_s`; a draw takes off up to half, so that many do not come at once."""

    first_s: float = 0.05
    most_s: float = 30.0

    def delay_s(self, failures: int, draw: float) -> float:
        """Return the delay after this many failures in a row (from 1); `draw` is uniform in [0, 1)."""
        full = min(self.first_s * 2.0 ** min(failures - 1, 60), self.most_s)
        return full * (1 - draw / 2)
