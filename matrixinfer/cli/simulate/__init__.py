"""Try scheduling configurations on a trace, in virtual time: the picker's own code before modelled engines.

TRACE is a file as Mooncake publishes them (JSONL: timestamp, input_length, output_length, hash_ids), a decision log of the
picker, or generate:KIND?parameter=value&..., KIND one of shared-prefix, multi-turn, mooncake, agents, long-context, bursts,
tenants. Prints, for each load and configuration: time to first token, time per output token, goodput under the SLO, cache
hits against those of an oracle, balance over engines, fairness over tenants. Where a configuration has flow control, requests
wait for their turn: how long, who is refused and why, and how far each tenant falls behind the others.

Exit codes: 0 done, 1 a run broke, 2 usage, or something wrong in the trace, the cluster or a configuration.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from matrixinfer.cli.simulate.jobs import Common, Job
    from matrixinfer.cli.simulate.summary import Summary


class _Chosen(argparse.Action):
    """Keeps `--config` and `--exact` in the order in which they were given."""

    def __call__(self, _parser: object, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        namespace.chosen = [*(namespace.chosen or []), (value, option == "--exact")]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("trace", metavar="TRACE", help="a file, or generate:KIND?parameter=value&...")
    add("--cluster", metavar="FILE", type=Path, required=True, help="the engines (YAML)")
    add(
        "--config",
        metavar="FILE",
        action=_Chosen,
        dest="chosen",
        help="an EndpointPickerConfig, or `default`; prefixes are learned from decisions; may be repeated",
    )
    add(
        "--exact",
        metavar="FILE",
        action=_Chosen,
        dest="chosen",
        help="the same, with prefixes as the engines' KV events tell them; may be repeated",
    )
    add(
        "--load",
        metavar="SHARE,...",
        type=_numbers,
        help="loads, as shares of what the engines could serve at best (default: the trace's own pace)",
    )
    add("--rate", metavar="RATE,...", type=_numbers, help="loads, as requests a second")
    add("--requests", metavar="N", type=_positive, help="only the first N of the trace")
    add("--warm-up", metavar="SHARE", type=_share, default=0.1, help="requests left out of the figures (default 0.1)")
    add("--seed", type=int, default=0, help="of chance in pickers (default 0)")
    add("--processes", metavar="N", type=_positive, default=os.cpu_count() or 1, help="runs at a time (default: CPUs)")
    add("--csv", metavar="FILE", type=Path, help="write all figures there")
    add("--plot", metavar="FILE.html", type=_page, help="write a page with plots there")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, and print what came out."""
    from rich.console import Console  # noqa: PLC0415 - see main.py

    from matrixinfer.cli.simulate import jobs, report  # noqa: PLC0415
    from matrixinfer.cli.simulate.problems import BadInput  # noqa: PLC0415

    if arguments.load and arguments.rate:
        return _problem("--load and --rate both say how much is asked; give one of them", Exit.USAGE)
    said = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        common, listed = _prepared(arguments, said)
        for file in filter(None, (arguments.csv, arguments.plot)):
            _writable(file)
    except BadInput as error:
        return _problem(str(error), Exit.USAGE)
    try:
        summaries = _performed(listed, common, said, at_once=arguments.processes)
    except jobs.Failed as error:
        return _problem(f"a run broke:\n{error}", Exit.MISTAKE)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # a pipe has no width, and a table must not be folded for it
    report.show(console, summaries)
    if arguments.csv:
        _write(arguments.csv, report.as_csv(summaries))
    if arguments.plot:
        _write(arguments.plot, report.as_page(summaries, f"{arguments.trace} on {arguments.cluster.name}"))
    return Exit.CLEAN


def _prepared(arguments: argparse.Namespace, said: Console) -> tuple[Common, list[Job]]:
    """Read everything, and make a job of each configuration at each load. Raises BadInput."""
    from matrixinfer.cli.simulate import cluster, configurations, jobs, oracle, traces  # noqa: PLC0415 - see main.py

    engines = cluster.read(arguments.cluster)
    chosen = configurations.read(arguments.chosen or [("default", False)])
    source = traces.Source(arguments.trace, engines, requests=arguments.requests)
    if arguments.load:
        listed = [source.at_load(load) for load in arguments.load]
    elif arguments.rate:
        listed = [source.at_rate(rate) for rate in arguments.rate]
    else:
        listed = [source.own()]
    made = []
    for trace in listed:
        found = source.found(trace)
        best = oracle.rate(trace, engines, found)
        said.print(
            f"{len(trace)} requests, {trace.rate:.3g} a second, of {trace.prompt.mean():.0f} and {trace.output.mean():.0f} "
            f"tokens on {len(engines.each)} engines that could serve {best:.3g} a second at best"
            + (f"; {source.left_out} left out, as no engine could hold them" if source.left_out else "")
        )
        made += [jobs.Job(one.name, one.settings, trace.rate / best, trace, found, one.exact) for one in chosen]
    return jobs.Common(cluster=engines, warm_up=arguments.warm_up, seed=arguments.seed), made


def _performed(listed: Sequence[Job], common: Common, said: Console, *, at_once: int) -> list[Summary]:
    """Run, with a bar on a terminal. Raises Failed."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - see main.py

    from matrixinfer.cli.simulate import jobs  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=said, transient=True, disable=not said.is_terminal, auto_refresh=False) as bar:
        task = bar.add_task(f"{len(listed)} runs", total=sum(len(job.trace) for job in listed))
        done = [0] * len(listed)

        def progress(number: int, requests: int) -> None:
            done[number] = requests
            bar.update(task, completed=sum(done))
            bar.refresh()

        return jobs.perform(listed, common, at_once=at_once, progress=progress)


def _writable(file: Path) -> None:
    """Raise BadInput if a file cannot be written there."""
    from matrixinfer.cli.simulate.problems import BadInput  # noqa: PLC0415 - see main.py

    if file.is_dir() or not file.absolute().parent.is_dir():
        raise BadInput(file, "cannot be written: " + ("it is a folder" if file.is_dir() else "there is no such folder"))


def _write(file: Path, text: str) -> None:
    """Write a file, all of it or nothing."""
    beside = file.with_name(f".{file.name}.part")
    beside.write_text(text)
    beside.replace(file)


def _problem(message: str, code: Exit) -> Exit:
    print(f"matrixinfer simulate: {message}", file=sys.stderr)  # noqa: T201 - the command's own voice
    return code


def _numbers(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and value > 0 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive numbers, such as 0.5,0.9,1.2")
    return values


def _positive(text: str) -> int:
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < 1:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to below 1")


def _page(text: str) -> Path:
    if text.endswith((".html", ".htm")):
        return Path(text)
    raise argparse.ArgumentTypeError(f"{text!r}: plots are written as a page; give a name that ends in .html")
