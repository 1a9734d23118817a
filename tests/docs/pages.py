"""Markdown pages as what they promise: their fenced blocks.

The words behind a fence's language say what becomes of a block:

    sh test            run, in one shell for the page; a command that fails ends the test
    sh test fails      run; its last command has to fail
    sh test terminal   run in a terminal of its own until the page is done, or until the page presses Ctrl-C there:
    sh test ctrl-c     end the terminal that was opened last
    sh test kubernetes the page needs what `make kubetest` builds; it is left out where that is not there
    sh test redis      the page needs a redis-server; it is left out where there is none
    text expect        has to be in the output of the block before it, line by line in this order; … stands for anything
    yaml               manifests of ours have to be valid, and scheduler configurations have to load
    LANGUAGE file=PATH saved there; manifests are taken up by a gateway that runs

Other blocks are for reading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\((?!https?://|mailto:)(?P<path>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    line: int
    language: str
    tags: frozenset[str]
    text: str

    @property
    def file(self) -> str | None:
        """Where the block is to be saved."""
        return next((tag.removeprefix("file=") for tag in self.tags if tag.startswith("file=")), None)


def blocks(page: Path) -> list[Block]:
    """Return the page's fenced blocks."""
    source = page.read_text()
    found = []
    for match in FENCE.finditer(source):
        language, *tags = match["info"].split() or [""]
        text = re.sub(f"(?m)^{match['indent']}", "", match["text"])
        found.append(Block(source.count("\n", 0, match.start()) + 1, language, frozenset(tags), text))
    return found


def runnable(page: Path) -> bool:
    """Tell whether something on the page is to be run."""
    return any("test" in block.tags for block in blocks(page))


def anchors(page: Path) -> set[str]:
    """Return the names by which the page's headings are linked."""
    headings = re.findall(r"(?m)^#+ (.*)$", FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[str, str]]:
    """Return path and anchor ("" if there is none) of the page's links to other files of ours."""
    prose = CODE.sub("", FENCE.sub("", page.read_text()))
    return [(match["path"], (match["anchor"] or "").removeprefix("#")) for match in LINK.finditer(prose)]
