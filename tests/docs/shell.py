"""A reader at the keyboard: types a page's commands into shells, and looks at what comes out.

The reader works in a copy of the tree: everything is there by link but what pages edit. Pages say ports as
users have them; here each stands for a free one, and `matrixinfer` and `make run` are given those of the page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import yaml

from matrixinfer.local import ports
from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from tests.docs.pages import Block

PAIRS = (("8080", "8081"), ("9090", "9091"), ("15000", "15001"))  # the second follows the first, as of two gateways
PORTS = ("8001", "8002", "8003")
COPIED = ("examples", "extproc", "tests")  # what pages edit
PATIENCE_S = 60
LOOK_EVERY_S = 0.05
PREAMBLE = """\
matrixinfer() {
  case "$1" in
    up) shift; python -m matrixinfer up --port 8080 --metrics-port 9090 --admin-port 15000 "$@" ;;
    explain) shift; python -m matrixinfer explain --admin http://127.0.0.1:15000 "$@" ;;
    *) python -m matrixinfer "$@" ;;
  esac
}
make() { command make -o .venv/.installed "$@" ARGS="--port 8080 --metrics-port 9090 --admin-port 15000"; }
"""


class Failed(AssertionError):
    """A page does not keep its word."""


class Reader:
    """One page's reader. As a context manager it leaves nothing running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "matrixinfer"
        self._ports: dict[str, str] = {}
        for together in (*PAIRS, *((port,) for port in PORTS)):
            free = _free_ports(len(together), taken=self._ports.values())
            self._ports |= zip(together, free, strict=True)
        self._terminals: list[_Shell] = []
        self._stack = ExitStack()
        self._last: _Shell | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in (*COPIED, ".git", ".state", "build"):
                (self._folder / entry.name).symlink_to(entry)
        for name in COPIED:
            shutil.copytree(ROOT / name, self._folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self._shell = self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for terminal in reversed(self._terminals):
            terminal.interrupt()
        self._stack.close()

    def follow(self, block: Block) -> None:
        """Do what the block says. Raises Failed."""
        if block.language == "text" and "expect" in block.tags:
            if self._last is None:
                raise Failed("there is nothing before this block that could say it")
            self._last.expect(self._ported(block.text))
        elif block.file is not None:
            self._save(block.file, block.text)
        elif "ctrl-c" in block.tags:
            self._terminals.pop().interrupt()
        elif "terminal" in block.tags:
            self._last = self._open()
            self._terminals.append(self._last)
            self._last.type(self._ported(block.text))
        elif "test" in block.tags:
            self._last = self._shell
            self._shell.run(self._ported(block.text), fails="fails" in block.tags)

    def _save(self, name: str, text: str) -> None:
        """Write a file; returns when the picker knows its routes, if one runs."""
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        objects = yaml.safe_load_all(text) if file.suffix == ".yaml" else ()
        routes = {each["metadata"]["name"] for each in objects if each["kind"] == "ModelRoute"}
        deadline = time.monotonic() + PATIENCE_S
        while self._terminals and not routes <= self._routes():
            if time.monotonic() > deadline:
                raise Failed(f"{name}: its routes are not taken up")
            time.sleep(LOOK_EVERY_S)

    def _routes(self) -> set[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports['15000']}/routes") as answer:
            return {each["route"].rpartition("/")[2] for each in json.load(answer)["routes"]}

    def _open(self) -> _Shell:
        shell = _Shell(self._folder, self._folder.parent / f"{len(self._terminals)}.{time.monotonic_ns()}.out")
        self._stack.callback(shell.close)
        shell.type(self._ported(PREAMBLE))
        return shell

    def _ported(self, text: str) -> str:
        return re.sub(r"(?<![\w.])\d{4,5}(?![\w])", lambda match: self._ports.get(match[0], match[0]), text)


class _Shell:
    """A bash whose output goes to a file."""

    def __init__(self, folder: Path, output: Path) -> None:
        self._output = output
        self._from = 0  # where the output of the last block begins
        self._blocks = 0
        path = f"{folder / '.venv' / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with output.open("wb") as file:
            self._process = subprocess.Popen(
                ["bash", "--noprofile", "--norc"],
                cwd=folder,
                env=os.environ | {"PATH": path, "COLUMNS": "160", "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def type(self, text: str) -> None:
        """Write lines and do not wait."""
        self._from = len(self._seen())
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def run(self, text: str, *, fails: bool) -> None:
        """Run lines to their end. Raises Failed if they fail, or if they do not although they should."""
        self._blocks += 1
        ended = f"--- block {self._blocks} ended: "
        wrapped = f"{{\n{text}\n}}" if fails else f"set -e\n{text}\nset +e"
        self.type(f'{wrapped}\necho "{ended}$?"\n')
        status = self._wait(rf"{re.escape(ended)}(\d+)\n")[1]
        if fails and status == "0":
            raise Failed(f"it should fail, and does not:\n{self._seen()[self._from :]}")

    def expect(self, text: str) -> None:
        """Wait until the last block has said these lines. Raises Failed."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        parts = (".*?".join(re.escape(part.strip()) for part in line.split("…")) for line in lines)
        self._wait(r"(?:.|\n)*?".join(parts), lines=True)

    def interrupt(self) -> None:
        """Press Ctrl-C, and leave the shell."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGINT)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)

    def close(self) -> None:
        """End everything that the shell started in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _seen(self) -> str:
        return self._output.read_text(errors="replace")

    def _wait(self, pattern: str, *, lines: bool = False) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            over = self._process.poll() is not None
            output = self._seen()[self._from :]
            found = re.search(pattern, output)
            if found:
                return found
            done = over or (lines and "--- block" in output)
            if done or time.monotonic() > deadline:
                why = "the shell has ended" if over else "it is not there"
                raise Failed(f"{why}; what is there:\n{output}\nwhat should be:\n{pattern}")
            time.sleep(LOOK_EVERY_S)


def _free_ports(count: int, *, taken: Collection[str]) -> list[str]:
    """Ports that follow each other, and are none of those."""
    while True:
        first = ports.choose(0, option="port")
        with suppress(ports.PortInUse):
            found = [str(ports.choose(port, option="port")) for port in range(first, first + count)]
            if not {*found} & {*taken}:
                return found
