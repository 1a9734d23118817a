"""Check a directory of manifests, or one EndpointPickerConfig; nothing is started.

Scheduler configurations among the manifests are checked as well. Prints one line for each finding: file:line: error: field: message. Warnings do not fail.

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
    parser.add_argument("path", metavar="DIR|FILE", type=Path, help="manifests (YAML), or a scheduler configuration")


def run(arguments: argparse.Namespace) -> int:
    """Check, and print what was found."""
    from matrixinfer.cli import findings, schedulers  # noqa: PLC0415 - see main.py
    from matrixinfer.cluster import directory  # noqa: PLC0415

    path: Path = arguments.path
    if path.is_file():
        found, inside = schedulers.of_file(path, path.name), path.parent
    else:
        found, inside = schedulers.checked(directory.read(path).findings, path), path
    for line in findings.lines(found, inside):
        print(line)  # noqa: T201 - what the command is for
    return Exit.MISTAKE if any(one.severity == "error" for one in found) else Exit.CLEAN
