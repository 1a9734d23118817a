"""The command line: `matrixinfer COMMAND`. Every command is a module of its own with `arguments` and `run`.

A command's module imports what it works with in `run`, so that asking for help costs no more than Python's start.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from matrixinfer.cli import explain, replay, simulate, up, validate
from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = {
    "up": up,
    "validate": validate,
    "explain": explain,
    "simulate": simulate,
    "replay": replay,
}


class _Version(argparse.Action):
    """Prints the version; looking it up costs more than the rest, so it waits until it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - see the class

        print(f"matrixinfer {version('matrixinfer')}")  # noqa: T201 - what the command is for
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    top = argparse.ArgumentParser(
        prog="matrixinfer",
        description="Serve large language models: Envoy in front, a picker that knows the caches behind.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary, _, rest = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name,
            help=summary.rstrip("."),
            description=f"{summary}\n{rest}".strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(COMMANDS[arguments.command].run(arguments))
    except KeyboardInterrupt:
        return Exit.CLEAN
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return Exit.CLEAN
