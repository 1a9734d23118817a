"""A replay in words: the summary, then some decisions score by score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from matrixinfer.cli.view.words import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from extproc.scheduling.trace import Numbers
    from matrixinfer.cli.replaying.again import Difference, Outcome


def show(console: Console, outcome: Outcome, explained: Sequence[Difference]) -> None:
    """Print all of it."""
    n = outcome.decisions
    differ = len(outcome.differences)
    console.print(
        f"{n} decisions: {outcome.same} the same, {outcome.ties} ties between equal scores, "
        f"{differ} differ ({differ / n:.1%})"
    )
    console.print(
        f"prompt tokens held where they were sent, as far as was known: {outcome.held_before / max(outcome.tokens, 1):.1%} "
        f"then, {outcome.held_after / max(outcome.tokens, 1):.1%} now"
    )
    refused = sum(not one.chosen for one in outcome.differences)
    if refused:
        console.print(f"{refused} requests would be refused")
    if outcome.missing:
        console.print(f"{outcome.missing} entries are missing from the log: they came faster than it was written")
    console.print(_shares(outcome))
    for one in explained:
        console.print(_headline(one), markup=False)
        if one.trace is not None:
            console.print(_scores(one))


def _shares(outcome: Outcome) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for at, name in enumerate(("endpoint", "then", "now")):
        table.add_column(name, justify="right" if at else "left")
    for address in sorted(outcome.before | outcome.after):
        table.add_row(escape(printable(address)), str(outcome.before[address]), str(outcome.after[address]))
    return table


def _headline(one: Difference) -> str:
    line = one.line
    now = one.chosen or "refused"
    return printable(
        f"{line.request_id or line.ticket}: {line.prompt_tokens} tokens for {line.model}, {line.order[0]} then, {now} now: "
        f"{one.why}"
    )


def _scores(one: Difference) -> Table:
    """Compare the two endpoints, scorer by scorer; where the old one was left out, only the new one has scores."""
    trace = one.trace
    assert trace is not None  # noqa: S101 - refusals have no scores
    then = one.line.order[0]
    addresses = list(trace.addresses)
    table = Table(box=box.SIMPLE_HEAD)
    for at, name in enumerate(("scorer", "weight", f"now {one.chosen}", f"then {then}")):
        table.add_column(escape(printable(name)), justify="right" if at else "left")
    places = [addresses.index(address) if address in addresses else None for address in (one.chosen, then)]
    for (name, weight), part in zip(trace.weights.items(), trace.parts, strict=True):
        table.add_row(escape(name), f"{weight:g}", *(_number(part, place) for place in places))
    table.add_row("weighted mean", "", *(_number(trace.total, place) for place in places))
    return table


def _number(values: Numbers, place: int | None) -> str:
    return "left out" if place is None else f"{float(values[place]):.4f}"
