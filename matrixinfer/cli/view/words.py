"""Numbers as people read them, in few columns."""

from __future__ import annotations

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
NOTHING = "-"  # where there is nothing to tell


def printable(text: str) -> str:
    """Return one line that does nothing to a terminal but fill it: names and ids may be whatever a client has sent."""
    return text if text.isprintable() else "".join(each if each.isprintable() else " " for each in text)


def number(value: float) -> str:
    """Return a count: 7, 950, 12.3k, 4.56M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}"


def rate(value: float) -> str:
    """Return something per second: 0, 0.25, 3.4, 120, 12.3k."""
    if value <= 0:
        return "0"
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else number(value)  # noqa: PLR2004 - three digits say enough


def percent(part: float, whole: float) -> str:
    """Return a share: 88%; nothing of nothing is nothing."""
    return f"{part / whole:.0%}" if whole > 0 else NOTHING


def seconds(value: float) -> str:
    """Return a time span: 850us, 12ms, 1.2s, 75s."""
    if value < 0.001:  # noqa: PLR2004 - a millisecond
        return f"{value * 1e6:.0f}us"
    if value < 1:
        return f"{value * 1e3:.1f}ms" if value < 0.01 else f"{value * 1e3:.0f}ms"  # noqa: PLR2004 - two digits say enough
    return f"{value:.1f}s" if value < 10 else f"{value:.0f}s"  # noqa: PLR2004 - two digits say enough


def ago(value: float) -> str:
    """Return an age: 0s, 12s, 4m, 3h, 2d."""
    for size, letter in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "m")):
        if value >= size:
            return f"{value / size:.0f}{letter}"
    return f"{value:.0f}s"


def clock(value: float) -> str:
    """Return a running time: 0:07, 12:34, 3:00:01."""
    whole = int(value)
    hours, minutes, rest = whole // _HOUR, whole % _HOUR // _MINUTE, whole % _MINUTE
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
