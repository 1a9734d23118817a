"""Check a directory of manifests; nothing is started.

Prints one line for each finding: file:line: error: field: message. Warnings do not fail.

Exit codes: 0 nothing to put right, 1 errors, 2 usage.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matrixinfer.cli.exits import Exit

if TYPE_CHECKING:
    import argparse


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="manifests (YAML)")


def run(arguments: argparse.Namespace) -> int:
    """Check, and print what was found."""
    from matrixinfer.cli import findings  # noqa: PLC0415 - see main.py
    from matrixinfer.cluster import directory  # noqa: PLC0415

    reading = directory.read(arguments.directory)
    for line in findings.lines(reading.findings, arguments.directory):
        print(line)  # noqa: T201 - what the command is for
    return Exit.CLEAN if reading.ok else Exit.MISTAKE
