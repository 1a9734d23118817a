"""Clocks: one for deadlines that others rely on, and one that agrees with a server about what time it is."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOCK = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # where there is none, a sleeping machine stops the clock


def boottime() -> float:
    """Return seconds since some moment in the past; it goes on while this process, or the whole machine, sleeps."""
    return time.clock_gettime(_CLOCK)


class ServerClock:
    """The time of day as a server has it, who dates what happens: this machine's, put right by the dates of answers.

    Such a date is cut to the second and as old as the answer was long on its way, so nothing is put right that this explains.
    """

    def __init__(self, local: Callable[[], float] = time.time) -> None:
        self.ahead_s = 0.0  # how far the server's clock is before ours, for all that is known
        self._local = local

    def __call__(self) -> float:
        """Return seconds since 1970."""
        return self._local() + self.ahead_s

    def heard(self, date: str | None, took_s: float) -> None:
        """Take note of an answer's Date, and of how long ago it was asked for."""
        try:
            said = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        now = self._local()
        least, most = said - now, said + 1.0 - (now - took_s)
        self.ahead_s = min(max(0.0, least), most)
