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


_QUEUE_COLUMNS: Final = ("waited p50", "p99", "behind")  # where flow control is in force
_TENANT_COLUMNS: Final = (
    "placing", "tenant", "requests", "refused", "waited p99", "TTFT p50", "p99", "goodput", "behind",
)  # fmt: skip


def show(console: Console, summaries: Sequence[Summary]) -> None:
    """Print a table for each load; where requests wait for their turn, what was refused, and a table of tenants."""
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
        queued = any(one.queued for one in rows)
        for at, name in enumerate(_COLUMNS + (_QUEUE_COLUMNS if queued else ())):
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
                *(_queue_cells(one) if queued else ()),
            )
        console.print(table)
        for one in rows:
            if one.queued and one.refused:
                console.print(f"  {one.configuration} refused {_refusals(one)}")
        if any(one.tenants for one in rows):
            console.print(_tenants(rows))


def _queue_cells(one: Summary) -> tuple[str, ...]:
    if not one.queued:
        return ("", "", "")
    return milliseconds(one.waited_p50), milliseconds(one.waited_p99), _tokens(one.behind)


def _refusals(one: Summary) -> str:
    """Say why requests were refused."""
    reasons = {
        "shed": one.shed,
        "queue-full": one.queue_full,
        "displaced": one.displaced,
        "waited-too-long": one.waited_too_long,
    }
    reasons["saturated"] = one.refused - sum(reasons.values())
    shown = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    return f"{one.refused} of {one.requests}: {shown}"


def _tenants(rows: Sequence[Summary]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for at, name in enumerate(_TENANT_COLUMNS):
        table.add_column(name, justify="right" if at > 1 else "left", no_wrap=True)
    for one in rows:
        for at, tenant in enumerate(one.tenants):
            table.add_row(
                "" if at else one.configuration,
                tenant.name or "none",
                str(tenant.requests),
                str(tenant.refused or ""),
                milliseconds(tenant.waited_p99),
                milliseconds(tenant.ttft_p50),
                milliseconds(tenant.ttft_p99),
                f"{tenant.goodput_share:.0%}",
                _tokens(tenant.behind),
                end_section=at == len(one.tenants) - 1,
            )
    return table


def _tokens(value: float) -> str:
    """Write a number of tokens so that it is read at a glance."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def milliseconds(value: float) -> str:
    """Write a time so that it is read at a glance."""
    if value >= 10_000:  # noqa: PLR2004 - ten seconds
        return f"{value / 1000:.0f} s"
    if value >= 1000:  # noqa: PLR2004 - one second
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"  # noqa: PLR2004 - two digits


def as_csv(summaries: Sequence[Summary]) -> str:
    """Return all figures, a line for each configuration and load."""
    names = [one.name for one in fields(Summary) if one.name != "tenants"]
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
_QUEUE_PANELS: Final = (
    _Panel("waited for their turn, p99", lambda one: one.waited_p99, milliseconds),
    _Panel("refused", lambda one: one.refused / max(one.requests, 1) * 100, lambda value: f"{value:.1f} %"),
    _Panel("tokens behind a fair share", lambda one: one.behind, _tokens),
)
_COLOURS: Final = ("#4c78a8", "#f58518", "#e45756", "#72b7b2", "#54a24b", "#b279a2")
_ROW, _LEFT, _WIDTH, _TOP = 22, 190, 420, 26


def as_page(summaries: Sequence[Summary], title: str) -> str:
    """Return a page that needs nothing else: for each figure a panel with a dot for each configuration and load."""
    names = list(dict.fromkeys(one.configuration for one in summaries))
    loads = sorted({one.load for one in summaries})
    colours = {load: _COLOURS[at % len(_COLOURS)] for at, load in enumerate(loads)}
    legend = " ".join(f'<span style="color:{colours[load]}">&#9679;</span> load {load:.0%}' for load in loads)
    chosen = _PANELS + (_QUEUE_PANELS if any(one.queued for one in summaries) else ())
    panels = "\n".join(_panel(panel, summaries, names, colours) for panel in chosen)
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
