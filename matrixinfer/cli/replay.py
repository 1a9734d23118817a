"""Ask another scheduling configuration what it would have decided: which recorded decisions differ, and why.

LOG is the picker's decision log (--decision-log). Each decision is taken again from what the picker knew then: load, prefixes
held, latencies; plugins that remember decisions are told those of the log. Headers are not recorded, so that plugins which
read them find none. A different choice among equal scores counts as a tie.

Exit codes: 0 no decision differs, 1 some do, 2 usage, or something wrong in the log or the configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    from matrixinfer.cli.replaying.again import Difference


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("log", metavar="LOG", type=Path, help="decisions, as the picker wrote them")
    parser.add_argument(
        "--config", metavar="FILE", default="default", help="an EndpointPickerConfig (default: the built-in one)"
    )
    parser.add_argument("--show", metavar="N", type=_count, default=5, help="decisions to explain (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of chance in pickers (default 0)")


def run(arguments: argparse.Namespace) -> int:
    """Replay, and print what came out."""
    from rich.console import Console  # noqa: PLC0415 - see main.py

    from matrixinfer.cli.replaying import again, shown  # noqa: PLC0415
    from matrixinfer.cli.simulate import configurations  # noqa: PLC0415
    from matrixinfer.cli.simulate.problems import BadInput  # noqa: PLC0415

    try:
        settings = configurations.settings(arguments.config)
        outcome = again.replay(arguments.log, settings, seed=arguments.seed)
    except BadInput as error:
        print(f"matrixinfer replay: {error}", file=sys.stderr)  # noqa: T201 - the command's own voice
        return Exit.USAGE
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # a pipe has no width, and a table must not be folded for it
    shown.show(console, outcome, _most_different(outcome.differences, arguments.show))
    return Exit.MISTAKE if outcome.differences else Exit.CLEAN


def _most_different(differences: list[Difference], count: int) -> list[Difference]:
    return sorted(differences, key=lambda one: -one.lead)[:count]


def _count(text: str) -> int:
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")
