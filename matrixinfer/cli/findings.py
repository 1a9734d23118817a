"""Findings in manifests, as lines that editors and people can follow to their place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matrixinfer.cluster.documents import Finding


def lines(findings: Sequence[Finding], directory: Path) -> Iterator[str]:
    """Give one line for each finding, its file as seen from where the command was called."""
    for finding in findings:
        inside = directory / finding.file
        yield str(replace(finding, file=str(inside)) if inside.exists() else finding)
