"""A clock for deadlines that others rely on: it goes on while this process, or the whole machine, sleeps."""

from __future__ import annotations

import time

_CLOCK = getattr(
    time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC
)  # where there is none, a sleeping machine stops the clock


def boottime() -> float:
    """Return seconds since some moment in the past."""
    return time.clock_gettime(_CLOCK)
