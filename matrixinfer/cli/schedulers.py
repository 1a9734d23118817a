"""Scheduler configurations (EndpointPickerConfig) among the files that are checked: the picker's own reader says what is wrong."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Final

from matrixinfer.cluster.documents import Finding, parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matrixinfer.cluster.documents import Document, Loc

KIND: Final = "EndpointPickerConfig"
_STEP: Final = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


def checked(findings: Sequence[Finding], directory: Path) -> list[Finding]:
    """Return the findings of a directory with those of its scheduler configurations, which manifests' checks pass over."""
    passed_over = [one for one in findings if one.field == "kind" and one.message.startswith(f"{KIND} of ")]
    found = [one for one in findings if one not in passed_over]
    for name in dict.fromkeys(one.file for one in passed_over):
        found += of_file(directory / name, name)
    return sorted(found, key=lambda finding: (finding.file, finding.line))


def of_file(path: Path, name: str) -> list[Finding]:
    """Check one file, called `name` in findings. Manifests in it are left to the check of their directory."""
    try:
        documents, findings = parse(path.read_text(), name)
    except (OSError, UnicodeDecodeError) as error:
        return [Finding(name, 1, "", f"cannot be read: {error}")]
    for document in documents:
        if isinstance(document.manifest, dict) and document.manifest.get("kind") == KIND:
            findings += _of_document(document)
        else:
            message = f"is no {KIND}: give the directory to check manifests, which belong together"
            findings.append(Finding(name, document.line(), "", message, "warning"))
    return findings


def _of_document(document: Document) -> Iterator[Finding]:
    from extproc import plugins  # noqa: PLC0415 - see main.py
    from extproc.adapters import custom  # noqa: PLC0415
    from extproc.scheduling import config  # noqa: PLC0415

    catalogue = dataclasses.replace(plugins.BUILTIN, types=plugins.BUILTIN.types + custom.found())
    for path, message in config.problems(document.manifest, catalogue):
        yield Finding(document.file, document.line(_loc(path)), path, message)


def _loc(path: str) -> Loc:
    """Return "plugins[2].parameters" as steps; a name that holds a dot leads to what is around it."""
    return tuple(int(number) if number else key for key, number in _STEP.findall(path))
