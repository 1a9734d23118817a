"""The outcome for people and for programs: tables on standard output, a CSV file, a page with plots."""

from __future__ import annotations

import csv
import html
import io
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Final, NamedTuple

from rich import box
from rich.table import Table

from matrixinfer.cli.simulate.summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

_COLUMNS: Final = (
    "placing", "TTFT p50", "p99", "TPOT p50", "p99", "goodput", "", "hits", "of oracle", "balance", "fairness",
)  # fmt: skip


def show(console: Console, summaries: Sequence[Summary]) -> None:
    """Print a table for each load."""
    for load in sorted({one.load for one in summaries}):
        rows = [one for one in summaries if one.load == load]
        first = rows[0]
        table = Table(
            title=f"{first.rate:.3g} requests/s, {load:.0%} of what the engines could serve at best; "
            f"the oracle finds {first.oracle_hit_rate:.1%}",
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD,
        )
        for at, name in enumerate(_COLUMNS):
            table.add_column(name, justify="right" if at else "left", no_wrap=True)
        for one in rows:
            table.add_row(
                one.configuration + (f" ({one.refused} refused)" if one.refused else ""),
                milliseconds(one.ttft_p50),
                milliseconds(one.ttft_p99),
                milliseconds(one.tpot_p50),
                milliseconds(one.tpot_p99),
                f"{one.goodput:.2f}/s",
                f"{one.goodput_share:.0%}",
                f"{one.hit_rate:.1%}",
                f"{one.of_oracle:.0%}",
                f"{one.balance:.2f}",
                f"{one.fairness:.2f}",
            )
        console.print(table)


def milliseconds(value: float) -> str:
    """Write a time so that it is read at a glance."""
    if value >= 10_000:  # noqa: PLR2004 - ten seconds
        return f"{value / 1000:.0f} s"
    if value >= 1000:  # noqa: PLR2004 - one second
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"  # noqa: PLR2004 - two digits


def as_csv(summaries: Sequence[Summary]) -> str:
    """Return all figures, a line for each configuration and load."""
    names = [one.name for one in fields(Summary)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for one in summaries:
        values = [getattr(one, name) for name in names]
        writer.writerow([f"{value:.6g}" if isinstance(value, float) else value for value in values])
    return text.getvalue()


class _Panel(NamedTuple):
    """One figure on the page."""

    title: str
    value: Callable[[Summary], float]
    shown: Callable[[float], str]
    logarithmic: bool = False


_PANELS: Final = (
    _Panel("TTFT p50", lambda one: one.ttft_p50, milliseconds, logarithmic=True),
    _Panel("TTFT p99", lambda one: one.ttft_p99, milliseconds, logarithmic=True),
    _Panel("TPOT p50", lambda one: one.tpot_p50, milliseconds, logarithmic=True),
    _Panel("requests that keep the SLO", lambda one: one.goodput_share * 100, lambda value: f"{value:.0f} %"),
    _Panel("prompt tokens found in caches", lambda one: one.hit_rate * 100, lambda value: f"{value:.0f} %"),
    _Panel("busiest engine over the mean", lambda one: one.balance, lambda value: f"{value:.2f}"),
)
_COLOURS: Final = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b279a2")
_ROW, _LEFT, _WIDTH, _TOP = 22, 190, 420, 26


def as_page(summaries: Sequence[Summary], title: str) -> str:
    """Return a page that needs nothing else: for each figure a panel with a dot for each configuration and load."""
    names = list(dict.fromkeys(one.configuration for one in summaries))
    loads = sorted({one.load for one in summaries})
    colours = {load: _COLOURS[at % len(_COLOURS)] for at, load in enumerate(loads)}
    legend = " ".join(f'<span style="color:{colours[load]}">&#9679;</span> load {load:.0%}' for load in loads)
    panels = "\n".join(_panel(panel, summaries, names, colours) for panel in _PANELS)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>body{{font:14px sans-serif;margin:2em}}"
        "svg{margin:0 1.5em 1.5em 0}text{font:12px sans-serif;fill:#333}</style></head><body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>{legend}</p>\n{panels}\n</body></html>\n"
    )


def _panel(panel: _Panel, summaries: Sequence[Summary], names: Sequence[str], colours: dict[float, str]) -> str:
    values = [panel.value(one) for one in summaries]
    low, high = min(values), max(values)
    if panel.logarithmic:
        low, high = max(low, 0.01), max(high, 0.02)
    if high <= low:
        high = low + 1
    height = _TOP + _ROW * len(names) + 26

    def across(number: float) -> float:
        if panel.logarithmic:
            share = math.log(max(number, low) / low) / math.log(high / low)
        else:
            share = (number - low) / (high - low)
        return _LEFT + share * (_WIDTH - 20) + 10

    parts = [
        f'<svg width="{_LEFT + _WIDTH}" height="{height}" role="img" aria-label="{html.escape(panel.title)}">',
        f'<text x="0" y="14" style="font-weight:bold">{html.escape(panel.title)}{" (log)" if panel.logarithmic else ""}</text>',
    ]
    for at, name in enumerate(names):
        y = _TOP + at * _ROW + _ROW / 2
        parts.append(f'<text x="0" y="{y + 4:.0f}">{html.escape(name)}</text>')
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>')
        for one, number in zip(summaries, values, strict=True):
            if one.configuration == name:
                about = f"{name}, load {one.load:.0%}: {panel.shown(number)}"
                parts.append(
                    f'<circle cx="{across(number):.1f}" cy="{y:.0f}" r="5" fill="{colours[one.load]}" fill-opacity="0.85">'
                    f"<title>{html.escape(about)}</title></circle>"
                )
    axis = _TOP + _ROW * len(names) + 16
    parts.append(f'<text x="{_LEFT}" y="{axis}">{panel.shown(low)}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH}" y="{axis}" text-anchor="end">{panel.shown(high)}</text>')
    return "\n".join([*parts, "</svg>"])
