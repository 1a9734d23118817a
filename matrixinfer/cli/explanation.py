"""A decision in words and a table, for `matrixinfer explain`. Pure: values in, something that rich can print out."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from matrixinfer.cli.view import words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType

    from matrixinfer.cli import pages

WIDE = 100  # columns from which pods have room beside their addresses


def explanation(decision: pages.Decision, pods: Mapping[str, str], *, width: int) -> RenderableType:
    """Return everything that is known of a decision; `pods` are names by address."""
    return Group(*_head(decision, pods), "", _candidates(decision, pods, wide=width >= WIDE), "", _end(decision))


def _head(decision: pages.Decision, pods: Mapping[str, str]) -> Iterator[RenderableType]:
    yield Text.assemble(
        ("request ", "dim"),
        (words.printable(decision.request_id) or "without an id", "bold"),
        ("  ticket ", "dim"),
        decision.ticket,
        (f"  {words.ago(decision.s_ago)} ago", "dim"),
    )
    rule = f", rule {decision.rule}" if decision.rule else ""
    renamed = f" as {decision.engine_model}" if decision.engine_model != decision.model else ""
    yield Text.assemble(
        ("model   ", "dim"),
        words.printable(f"{decision.model} -> {decision.target}{renamed}"),
        (f" (route {decision.route}{rule})", "dim"),
    )
    yield Text.assemble(
        ("prompt  ", "dim"),
        f"about {words.number(decision.prompt_tokens)} tokens; ",
        f"{decision.matched_blocks} of its {decision.blocks} prefix blocks known at the chosen endpoint",
    )
    if decision.queue is not None:
        queue = decision.queue
        whose = f", tenant {words.printable(queue.tenant)}" if queue.tenant else ""
        waited = f"waited {queue.waited_s:.3f} s for its turn" if queue.waited_s else "did not wait"
        yield Text.assemble(("queue   ", "dim"), waited, (f" (priority {queue.priority}{whose})", "dim"))
    if decision.prefill is not None:
        yield Text.assemble(("prefill ", "dim"), _prefill(decision.prefill, pods))
    if decision.endpoints:
        chosen = decision.endpoints[0]
        pod = f" ({pods[chosen]})" if chosen in pods else ""
        yield Text.assemble(("chosen  ", "dim"), (chosen, "bold green"), f"{pod}: {decision.reason}")


def _prefill(told: pages.Prefill, pods: Mapping[str, str]) -> str:
    why = f"{told.reason}: {told.detail}" if told.detail else told.reason
    tried = ", ".join(
        f"{pods.get(one.endpoint, one.endpoint)} {one.result} after {one.seconds:.3f} s" for one in told.tries
    )
    if told.leg == "none":
        said = f"no leg ({why})"
    else:
        pod = f" ({pods[told.endpoint]})" if told.endpoint in pods else ""
        said = f"by the {told.leg}, at {told.endpoint}{pod} over {told.connector} ({why})"
    return words.printable(f"{said}; {tried}" if tried else said)


def _candidates(decision: pages.Decision, pods: Mapping[str, str], *, wide: bool) -> RenderableType:
    if not decision.candidates:
        return Text("Its scores are not kept.", "dim")
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("order")
    table.add_column("endpoint", no_wrap=True)
    if wide:
        table.add_column("pod", no_wrap=True)
    table.add_column("score", justify="right")
    for name, weight in decision.weights.items():
        heading = name if wide else name.removesuffix("-scorer").replace("-", "-\n")
        table.add_column(f"{heading}\nx {weight:g}", justify="right", no_wrap=True)
    order = {address: at for at, address in enumerate(decision.endpoints)}
    dropped: defaultdict[str, list[str]] = defaultdict(list)
    for candidate in decision.candidates:
        if candidate.score is None:
            dropped[candidate.dropped_by].append(candidate.endpoint)
            continue
        place = order.get(candidate.endpoint)
        row = ["" if place is None else "chosen" if place == 0 else f"{place + 1}.", candidate.endpoint]
        if wide:
            row.append(pods.get(candidate.endpoint, ""))
        row.append(f"{candidate.score:.4f}")
        row += [f"{candidate.scores[name]:.4f}" if name in candidate.scores else "" for name in decision.weights]
        table.add_row(*map(Text, row), style="bold green" if place == 0 else "")
    total = sum(decision.weights.values())
    legend = (
        f"profile {decision.profile}, {decision.picker}; score: the scorers' mean by weight (sum {total:g}), 0 to 1; "
        "2., 3., ...: where Envoy goes next if the chosen one fails"
    )
    left_out = [Text(f"left out by {name}: {', '.join(endpoints)}") for name, endpoints in dropped.items()]
    return Group(table, *left_out, Text(legend, "dim"))


def _end(decision: pages.Decision) -> RenderableType:
    end = decision.end
    if end.end == "open":
        return Text.assemble(("ended   ", "dim"), "not yet: the answer is on its way")
    line = Text.assemble(("ended   ", "dim"), (end.end, "bold green" if end.end == "complete" else "bold red"))
    outcome = end.outcome
    if outcome is not None:
        line.append(f", status {outcome.status}" if outcome.status else ", without an answer")
        of = f" of {end.target}" if end.target not in ("", decision.target) else ""
        line.append(f" from {end.served}{of}" if end.served else "")
        line.append(f" after {words.seconds(outcome.duration_s)}")
        if outcome.first_token_s is not None:
            line.append(f", first token after {words.seconds(outcome.first_token_s)}")
        line.append(_tokens(outcome))
        if outcome.flags:
            line.append(f"\n        Envoy's flags {','.join(outcome.flags)}, {outcome.details}")
    if end.failed:
        line.append(f"\n        tried before, and failed: {', '.join(end.failed)}")
    return line


def _tokens(outcome: pages.Outcome) -> str:
    if outcome.prompt_tokens is None and outcome.completion_tokens is None:
        return "\n        the engine told no usage"
    prompt, cached = outcome.prompt_tokens or 0, outcome.cached_tokens
    share = (
        f" ({words.number(cached)} cached, {words.percent(cached, prompt)})" if cached is not None and prompt else ""
    )
    return (
        f"\n        {words.number(prompt)} prompt tokens{share}, "
        f"{words.number(outcome.completion_tokens or 0)} answered tokens"
    )
