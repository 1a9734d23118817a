"""Counters, gauges and histograms, rendered as Prometheus text the way prometheus_client orders and words it.

Kept apart from that library for one reason: a page of an engine's size takes it several milliseconds, and a scraper asks every
few tens of milliseconds. Here a family's text is made again only when one of its values has changed.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

Labels = tuple[tuple[str, str], ...]


def number(value: float) -> str:
    """Give a value as Go and prometheus_client write it."""
    text = repr(float(value))
    if text in ("inf", "-inf", "nan"):
        return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}[text]
    dot = text.find(".")
    if value > 0 and dot > 6:  # noqa: PLR2004 (Go's rule for exponents)
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return text


def labelled(labels: Labels) -> str:
    """Labels in braces, sorted by name; nothing for none."""
    if not labels:
        return ""
    inner = ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(labels))
    return f"{{{inner}}}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class Family:
    """What all kinds share: the name, its comments, and the text kept until a value changes."""

    kind = ""

    def __init__(self, name: str, help_text: str) -> None:
        self.name = name
        self.help = help_text
        self._text: str | None = None

    def text(self) -> str:
        """Give the family's part of the page."""
        if self._text is None:
            self._text = "".join(self._lines())
        return self._text

    def _lines(self) -> Iterable[str]:
        raise NotImplementedError

    def _comments(self, suffix: str = "", kind: str = "") -> str:
        name = f"{self.name}{suffix}"
        return f"# HELP {name} {self.help}\n# TYPE {name} {kind or self.kind}\n"


class Gauge(Family):
    """Values that are set, or asked for when the page is made."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str) -> None:
        super().__init__(name, help_text)
        self._values: dict[str, float] = {}
        self._asked: dict[str, Callable[[], float]] = {}

    def set(self, labels: Labels, value: float) -> None:
        """Set one series."""
        self._values[labelled(labels)] = value
        self._text = None

    def ask(self, labels: Labels, read: Callable[[], float]) -> None:
        """Read one series when the page is made."""
        self._asked[labelled(labels)] = read

    def replace(self, values: Mapping[Labels, float]) -> None:
        """Set all series; others are gone."""
        self._values = {labelled(labels): value for labels, value in values.items()}
        self._text = None

    def text(self) -> str:
        """Give the family's part of the page."""
        for labels, read in self._asked.items():
            value = read()
            if self._values.get(labels) != value:
                self._values[labels] = value
                self._text = None
        return super().text()

    def _lines(self) -> Iterable[str]:
        yield self._comments()
        for labels, value in self._values.items():
            yield f"{self.name}{labels} {number(value)}\n"


class Counter(Family):
    """Values that grow; `name` is without the `_total` that the page shows."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, series: Iterable[Labels] = (), *, created: bool = True) -> None:
        super().__init__(name, help_text)
        self._values: dict[Labels, float] = {}
        self._asked: dict[Labels, Callable[[], float]] = {}
        self._texts: dict[Labels, str] = {}
        self._created: dict[Labels, str] = {}
        self._with_created = created
        for labels in series:
            self.add(labels, 0)

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Grow one series; it begins with the first call."""
        known = self._values.get(labels)
        if known is None:
            self._texts[labels] = labelled(labels)
            self._created[labels] = number(time.time())
            known = 0
        self._values[labels] = known + amount
        self._text = None

    def ask(self, labels: Labels, read: Callable[[], float]) -> None:
        """Read one series when the page is made."""
        self.add(labels, 0)
        self._asked[labels] = read

    def text(self) -> str:
        """Give the family's part of the page."""
        for labels, read in self._asked.items():
            value = read()
            if self._values[labels] != value:
                self._values[labels] = value
                self._text = None
        return super().text()

    def value(self, labels: Labels) -> float:
        """One series' value."""
        return self._values[labels]

    def _lines(self) -> Iterable[str]:
        yield self._comments("_total")
        for labels, value in self._values.items():
            yield f"{self.name}_total{self._texts[labels]} {number(value)}\n"
        if self._with_created:
            yield self._comments("_created", "gauge")
            for labels, created in self._created.items():
                yield f"{self.name}_created{self._texts[labels]} {created}\n"


class _Buckets:
    """One series of a histogram or summary."""

    __slots__ = ("count", "counts", "created", "heads", "labels", "total")

    def __init__(self, name: str, labels: Labels, bounds: Sequence[float]) -> None:
        edges = [*map(number, bounds), "+Inf"] if bounds else []
        self.heads = [f"{name}_bucket{labelled((*labels, ('le', edge)))} " for edge in edges]
        self.labels = labelled(labels)
        self.counts = [0] * len(edges)
        self.count = 0
        self.total = 0.0
        self.created = number(time.time())


class Histogram(Family):
    """Distributions over fixed bounds; without bounds, a summary."""

    def __init__(self, name: str, help_text: str, bounds: Sequence[float], series: Iterable[Labels] = ()) -> None:
        super().__init__(name, help_text)
        self.kind = "histogram" if bounds else "summary"
        self._bounds = tuple(bounds)
        self._series: dict[Labels, _Buckets] = {labels: _Buckets(name, labels, self._bounds) for labels in series}

    def observe(self, labels: Labels, value: float, times: int = 1) -> None:
        """Count a value in, several times if it was seen several times."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Buckets(self.name, labels, self._bounds)
        if series.counts:
            series.counts[bisect_left(self._bounds, value)] += times
        series.count += times
        series.total += value * times
        self._text = None

    def _lines(self) -> Iterable[str]:
        yield self._comments()
        for series in self._series.values():
            below = 0
            for head, count in zip(series.heads, series.counts, strict=True):
                below += count
                yield f"{head}{below}.0\n"
            yield f"{self.name}_count{series.labels} {number(series.count)}\n"
            yield f"{self.name}_sum{series.labels} {number(series.total)}\n"
        yield self._comments("_created", "gauge")
        for series in self._series.values():
            yield f"{self.name}_created{series.labels} {series.created}\n"


def page(families: Iterable[Family]) -> bytes:
    """All families as one page."""
    return "".join([family.text() for family in families]).encode()
