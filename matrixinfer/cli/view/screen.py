"""How a snapshot looks on a terminal of so many columns and lines. Pure: the same snapshot gives the same screen.

Endpoints get the lines that the rest leaves. Where there are more of them than lines, those that need attention are
shown, then the busiest, in the order of their names; a last line says what the others do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeVar

from rich.console import Group
from rich.text import Text

from matrixinfer.cli.view import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import RenderableType

    from matrixinfer.cli.view.snapshot import DecisionRow, EndpointRow, ModelRow, Snapshot, Traffic

Row = TypeVar("Row")
_WIDE: Final = 104  # columns from which there is room for what is nice to know
_FEWEST: Final = 5  # endpoints that are always shown
_MODELS: Final = 4
_DECISIONS: Final = 5
_PROBLEMS: Final = 3
_PORTS: Final = 3  # of further gateways
_BAR: Final = 8
_GAP: Final = "  "
_STEADY: Final = 5  # columns of a number, so that it may grow and nothing moves
_FULL: Final = 0.9  # of KV blocks: engines begin to evict and to preempt
_LOADED: Final = 0.7


@dataclass(frozen=True, slots=True)
class _Column(Generic[Row]):
    """One column: shown from `least` terminal columns on."""

    heading: str
    cell: Callable[[Row], str | Text]
    least: int = 0
    justify: Literal["left", "right"] = "right"


def screen(shown: Snapshot, *, width: int, height: int) -> RenderableType:
    """Return the screen; it has at most `height` lines."""
    problems = [_note(f"! {text}") for text in shown.problems]
    head: list[RenderableType] = [_title(shown, width), _totals(shown.total, shown, width)]
    problems[:0] = [_note(f"! {away}") for away in _silences(shown)]
    head += _cut(problems, _PROBLEMS, "more problems: see /routes of the admin pages")
    left = height - len(head)
    models = _room(len(shown.models), _MODELS)
    wanted = min(len(shown.endpoints), _FEWEST)
    decisions = max(0, min(_DECISIONS, len(shown.decisions), left - models - wanted - 6))
    endpoints = max(left - models - decisions - (2 if decisions else 0) - 4, 1)
    parts = [*head, "", _endpoints(shown.endpoints, endpoints, width), "", _models(shown.models, models, width)]
    if decisions:
        parts += ["", _decisions(shown.decisions[:decisions], width)]
    return Group(*parts)


def _silences(shown: Snapshot) -> Iterable[str]:
    """Yield which pickers do not answer."""
    for one in shown.gateways:
        if one.silent_s is not None:
            alone = len(shown.gateways) == 1
            who = "the picker" if alone else f"the picker of gateway {one.number}"
            part = "what follows is" if alone else "its part of what follows is"
            yield f"{who} has not answered for {words.ago(one.silent_s)}: {part} the last it told"


def _room(count: int, most: int) -> int:
    return min(max(count, 1), most)


def _cut(lines: Sequence[Text], most: int, rest: str) -> list[Text]:
    if len(lines) <= most:
        return list(lines)
    return [*lines[: most - 1], _note(f"! {len(lines) - most + 1} {rest}")]


def _note(text: str) -> Text:
    """Return something that is not as it should be, in one line."""
    return Text(words.printable(text), "yellow", no_wrap=True, overflow="ellipsis")


def _title(shown: Snapshot, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append("MatrixInfer ", "bold")
    line.append(_addresses([one.url for one in shown.gateways]), "bold cyan")
    line.append(f"  up {words.clock(shown.up_s)}")
    line.append(f"  {shown.ready}/{len(shown.endpoints)} ready", "green" if shown.ready else "bold red")
    if width >= _WIDE:
        admin = _addresses([one.admin_url for one in shown.gateways])
        line.append(f"   admin {admin}   matrixinfer explain ID tells why   Ctrl-C stops", "dim")
    else:
        line.append("   Ctrl-C stops", "dim")
    return line


def _addresses(urls: Sequence[str]) -> str:
    """Return the first URL, and of the others what tells them apart: `http://127.0.0.1:8080, :8081, :8082`."""
    ports = [f":{url.rpartition(':')[2]}" for url in urls[1:]]
    rest = [f"and {len(ports) - _PORTS} more"] if len(ports) > _PORTS else []
    return ", ".join([*urls[:1], *ports[:_PORTS]]) + "".join(f" {each}" for each in rest)


def _totals(total: Traffic, shown: Snapshot, width: int) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")

    def tell(value: str, what: str, style: str = "bold") -> None:
        line.append("  " if line else "")
        line.append(value, style)
        line.append(f" {what}")

    tell(words.rate(total.requests_s), "req/s")
    tell(words.rate(total.output_s), "tok/s")
    tell(words.percent(total.cached, total.prompt), "cached")
    line.append("  TTFT ")
    line.append(_quantiles(total), "bold")
    tell(str(shown.inflight), "in flight")
    line.append("  errors ")
    line.append(words.number(total.errors), "bold red" if total.errors else "bold")
    if width >= _WIDE:
        tell(words.rate(total.input_s), "prompt tok/s")
        tell(words.number(shown.served), "requests in all")
    return line


def _endpoints(rows: Sequence[EndpointRow], lines: int, width: int) -> RenderableType:
    if not rows:
        return _note("no endpoints: no pod of a ModelServer has an address yet")
    several = len({row.server for row in rows}) > 1
    columns: list[_Column[EndpointRow]] = [
        _Column("ENDPOINT", lambda row: row.pod, justify="left"),
        _Column("ADDRESS", lambda row: row.address, _WIDE, "left"),
        _Column("SERVER", lambda row: row.server, 120 if several else 10_000, "left"),
        _Column("STATE", _state, justify="left"),
        _Column("IN FL", lambda row: _count(row.inflight)),
        _Column("QUEUE", lambda row: words.NOTHING if row.waiting is None else _count(row.waiting, "yellow")),
        _Column("KV", _kv),
        _Column("", _bar, 96, "left"),
        _Column("REQ/S", lambda row: words.rate(row.traffic.requests_s)),
        _Column("TOK/S", lambda row: words.rate(row.traffic.output_s)),
        _Column("CACHED", lambda row: words.percent(row.traffic.cached, row.traffic.prompt)),
        _Column("FAILED", lambda row: _count(row.traffic.errors, "bold red")),
        _Column("REQ/MIN", lambda row: words.number(row.traffic.requests), _WIDE),
    ]
    if len(rows) <= lines:
        return _table(columns, rows, width)
    visible, others = _divided(rows, lines - 1, _interest)
    return Group(_table(columns, visible, width), _others(others))


def _divided(rows: Sequence[Row], count: int, interest: Callable[[Row], Any]) -> tuple[list[Row], list[Row]]:
    """Return the `count` most interesting rows and the others, both in the order they came in."""
    best = frozenset(sorted(range(len(rows)), key=lambda at: interest(rows[at]))[:count])
    return [row for at, row in enumerate(rows) if at in best], [row for at, row in enumerate(rows) if at not in best]


def _interest(row: EndpointRow) -> tuple[bool, bool, float, float]:
    """Trouble first, then the most that was done in the last minute, then what is under way."""
    return (row.state == "ready", not row.traffic.errors, -row.traffic.requests, -row.inflight)


def _others(rows: Sequence[EndpointRow]) -> Text:
    ready = sum(row.state != "not ready" for row in rows)
    usages = [row.kv_usage for row in rows if row.kv_usage is not None]
    fullest = f", KV up to {max(usages):.0%}" if usages else ""
    text = (
        f"and {len(rows)} more, {ready} ready: {sum(row.inflight for row in rows)} in flight, "
        f"{words.rate(sum(row.traffic.requests_s for row in rows))} req/s, "
        f"{words.rate(sum(row.traffic.output_s for row in rows))} tok/s{fullest}"
    )
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")


def _models(rows: Sequence[ModelRow], lines: int, width: int) -> RenderableType:
    if not rows:
        return _note("no models: no ModelRoute is in use")
    columns: list[_Column[ModelRow]] = [
        _Column("MODEL", lambda row: row.name, justify="left"),
        _Column("SERVED BY (READY)", _targets, justify="left"),
        _Column("REQ/S", lambda row: words.rate(row.traffic.requests_s)),
        _Column("TOK/S", lambda row: words.rate(row.traffic.output_s)),
        _Column("CACHED", lambda row: words.percent(row.traffic.cached, row.traffic.prompt)),
        _Column("TTFT p50/p99", lambda row: _quantiles(row.traffic)),
        _Column("ERRORS", lambda row: _count(row.traffic.errors, "bold red")),
        _Column("REQ/MIN", lambda row: words.number(row.traffic.requests), _WIDE),
    ]
    if len(rows) <= lines:
        return _table(columns, rows, width)
    visible, others = _divided(rows, lines - 1, lambda row: (row.served, -row.traffic.requests))
    return Group(_table(columns, visible, width), Text(f"and {len(others)} more models", "dim"))


def _decisions(rows: Sequence[DecisionRow], width: int) -> RenderableType:
    columns: list[_Column[DecisionRow]] = [
        _Column("AGO", lambda row: words.ago(row.s_ago)),
        _Column("GW", lambda row: str(row.gateway), 0 if rows[0].gateway else 10_000, "left"),
        _Column("REQUEST", lambda row: row.request_id, 110, "left"),
        _Column("TICKET", lambda row: row.ticket, justify="left"),
        _Column("MODEL", lambda row: row.model, justify="left"),
        _Column("SENT TO", lambda row: row.pod, justify="left"),
        _Column("BLOCKS", lambda row: row.matched),
        _Column("TOKENS", lambda row: "" if row.prompt_tokens is None else f"~{words.number(row.prompt_tokens)}"),
        _Column("END", _ended, justify="left"),
    ]
    return _table(columns, rows, width)


def _table(columns: Iterable[_Column[Row]], rows: Sequence[Row], width: int) -> RenderableType:
    """Return a table of one line for each row, whatever is in it; rich's own takes seven times as long."""
    shown = [column for column in columns if width >= column.least]
    drawn = [[Text(column.heading, "dim") for column in shown]]
    drawn += [[_cell(column.cell(row)) for column in shown] for row in rows]
    widths = [
        max(_STEADY if column.justify == "right" else 0, *(line[at].cell_len for line in drawn))
        for at, column in enumerate(shown)
    ]
    _narrow(widths, [column.justify == "left" for column in shown], width)
    return Group(*(_line(cells, shown, widths) for cells in drawn))


def _narrow(widths: list[int], words_in: Sequence[bool], width: int) -> None:
    """Take from the widest columns of words until the line fits, or until they have no more to give."""
    while sum(widths) + len(_GAP) * (len(widths) - 1) > width:
        widest = max((size, at) for at, size in enumerate(widths) if words_in[at])
        if widest[0] <= _STEADY:
            return
        widths[widest[1]] -= 1


def _line(cells: Sequence[Text], columns: Sequence[_Column[Any]], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for at, (cell, column, size) in enumerate(zip(cells, columns, widths, strict=True)):
        cell.truncate(size, overflow="ellipsis")
        room = " " * (size - cell.cell_len)
        line.append((_GAP if at else "") + (room if column.justify == "right" else ""))
        line.append_text(cell)
        line.append(room if column.justify == "left" else "")
    line.rstrip()
    return line


def _cell(value: str | Text) -> Text:
    return Text(words.printable(value)) if isinstance(value, str) else value


def _state(row: EndpointRow) -> Text:
    return Text(row.state, {"ready": "green", "not ready": "bold red"}.get(row.state, "yellow"))


def _kv(row: EndpointRow) -> str | Text:
    if row.kv_usage is None:
        return words.NOTHING
    return Text(f"{row.kv_usage:.0%}", _heat(row.kv_usage))


def _bar(row: EndpointRow) -> Text:
    filled = round((row.kv_usage or 0.0) * _BAR)
    return Text.assemble(("━" * filled, _heat(row.kv_usage or 0.0)), ("━" * (_BAR - filled), "bright_black"))


def _heat(usage: float) -> str:
    return "red" if usage >= _FULL else "yellow" if usage >= _LOADED else "green"


def _targets(row: ModelRow) -> Text:
    return Text(words.printable(", ".join(row.targets)) or "no ModelServer", "" if row.served else "bold red")


def _ended(row: DecisionRow) -> Text:
    return Text(
        words.printable(row.end),
        {"complete": "green", "open": "cyan", "client-gone": "yellow"}.get(row.end, "bold red"),
    )


def _count(value: float, style: str = "") -> Text:
    return Text(words.number(value), style if value else "")


def _quantiles(traffic: Traffic) -> str:
    if traffic.ttft_p50_s is None or traffic.ttft_p99_s is None:
        return words.NOTHING
    return f"{words.seconds(traffic.ttft_p50_s)}/{words.seconds(traffic.ttft_p99_s)}"
