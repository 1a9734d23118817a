"""The module of envoy/modules, built with sanitizers, and the streams that go through it: scripts in, what happened out.

harness.c plays Envoy. One process serves all examples of a session; where a sanitizer stops it, the example fails with the
sanitizer's words, and the next one has a new process.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "envoy" / "modules"
SANITIZED = (
    "-std=c11",
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
COUNTED = tuple(f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "free"))
# What may be in memory at the end is nothing; 77 is nobody else's exit code. New memory is full of nines: who reads on behind
# what was written there finds digits, and goes on to where it is seen.
ENVIRONMENT = {
    "ASAN_OPTIONS": "detect_leaks=1:exitcode=77:malloc_fill_byte=57:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=77",
}
REQUEST, ANSWER = "request", "answer"


def examples(count: int) -> settings:
    """Say how many examples a property has; FUZZ=50 in the environment asks for 50 times as many."""
    return settings(max_examples=count * int(os.environ.get("FUZZ", "1")))


class Unbuildable(Exception):
    """There is no compiler here that has the sanitizers."""


def build(folder: Path, sources: Path = SOURCES) -> Path:
    """Build the harness and the module's sources into one program."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Unbuildable("no C compiler (cc)")
    probe = folder / "probe"
    probe.with_suffix(".c").write_text("int main(void) { return 0; }\n")
    for command in ([compiler, *SANITIZED, *COUNTED, "-o", probe, probe.with_suffix(".c")], [probe]):
        tried = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False)
        if tried.returncode:
            raise Unbuildable(f"cc without sanitizers: {(tried.stderr.splitlines() or ['it fails'])[-1]}")
    program = folder / "harness"
    files = [Path(__file__).with_name("harness.c"), *sorted(sources.glob("*.c"))]
    subprocess.run([compiler, *SANITIZED, *COUNTED, "-o", program, *files], check=True)
    return program


@dataclass
class Outcome:
    """What happened to one stream."""

    answer: bytes = b""  # what the client has had of it
    answer_ended: str = ""  # "end" with the last byte, "trailers", or not at all
    body: bytes = b""  # what came out behind the last filter
    body_ended: str = ""
    passed: bool = False  # the request's headers have come there
    numbers: dict[str, dict[str, float]] = field(default_factory=dict)
    strings: dict[str, dict[str, bytes]] = field(default_factory=dict)
    typed: list[tuple[str, bytes]] = field(default_factory=list)
    headers: dict[str, dict[str, bytes]] = field(default_factory=lambda: {REQUEST: {}, ANSWER: {}})
    other: list[str] = field(default_factory=list)

    @property
    def usage(self) -> dict[str, float | str]:
        """What the access log has of it."""
        told = self.strings.get("matrixinfer.usage", {})
        return self.numbers.get("matrixinfer.usage", {}) | {key: value.decode() for key, value in told.items()}

    def take(self, name: str, words: list[bytes]) -> None:
        """Add what the harness tells."""
        match name:
            case "answer" | "answer trailers":
                assert not self.answer_ended, "something after the end"
                self.answer += words[0] if words else b""
                self.answer_ended = words[1].decode() if words else "trailers"
            case "body" | "trailers":
                assert self.passed, "a body before the headers"
                assert not self.body_ended, "something after the end"
                self.body += words[0] if words else b""
                self.body_ended = words[1].decode() if words else "trailers"
            case "request":
                assert not self.passed, "headers twice"
                self.passed = True
            case "number":
                self.numbers.setdefault(words[0].decode(), {})[words[1].decode()] = float(words[2])
            case "string":
                self.strings.setdefault(words[0].decode(), {})[words[1].decode()] = words[2]
            case "typed":
                self.typed.append((words[0].decode(), words[1]))
            case "header":
                self.headers[words[0].decode()][words[1].decode()] = words[2]
            case "leak":
                raise AssertionError(f"allocations left when all filters are destroyed: {words[0].decode()}")
            case _:
                self.other.append(name)


class Script:
    """What happens to a stream, in order. Every method returns the script."""

    def __init__(self, *filters: str) -> None:
        self.encoded = bytearray()
        self.do("C", ",".join(filters))

    def do(self, command: str, *words: str | bytes) -> Script:
        self.encoded += command.encode() + bytes([len(words)])
        for word in words:
            raw = word.encode() if isinstance(word, str) else word
            self.encoded += struct.pack("<I", len(raw)) + raw
        return self

    def failing(self, allocation: int | None) -> Script:
        """Let the module's n-th allocation from here on fail."""
        return self if allocation is None else self.do("F", str(allocation))

    def metadata(self, space: str, **words: str) -> Script:
        for key, word in words.items():
            self.do("m", space, key, word)
        return self

    def request(self, *, end: bool = False, **headers: str | bytes) -> Script:
        for name, value in headers.items():
            self.do("h", name.replace("_", "-"), value)
        return self.do("q", "end" if end else "")

    def body(self, pieces: Iterable[Sequence[bytes]], *, trailers: bool = False) -> Script:
        """Each piece is what arrives at once, in slices; the last one ends the body if no trailers follow."""
        pieces = list(pieces)
        for number, slices in enumerate(pieces):
            self.do("b", "end" if number == len(pieces) - 1 and not trailers else "", *slices)
        return self.do("t") if trailers else self

    def answer(
        self,
        pieces: Iterable[Sequence[bytes]],
        *,
        kind: str = "text/event-stream",
        status: str = "200",
        ended: str = "end",
        **headers: str,
    ) -> Script:
        """`ended`: "end", with the last piece; "empty", with one of no bytes; "trailers"; or "", not at all."""
        for name, value in {":status": status, "content-type": kind, **headers}.items():
            self.do("H", name.replace("_", "-"), value)
        self.do("Q", "")
        pieces = list(pieces)
        if ended == "empty" or (ended == "end" and not pieces):
            pieces.append(())
        for number, slices in enumerate(pieces):
            self.do("B", "end" if number == len(pieces) - 1 and ended in ("end", "empty") else "", *slices)
        return self.do("T") if ended == "trailers" else self

    def broken(self, details: str | bytes) -> Script:
        return self.do("X", details)

    def complete(self) -> Script:
        return self.do("c")


class Module:
    """A process that runs scripts."""

    def __init__(self, program: Path, errors: Path) -> None:
        self._program = program
        self._errors = errors
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, script: Script) -> Outcome:
        if self._process is None:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    [self._program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=os.environ | ENVIRONMENT,
                )
        told = self._exchanged(script)
        if told is None:
            raise AssertionError(self._last_words())
        outcome = Outcome()
        at = 0
        while at < len(told):
            words, at = _words(told, at)
            outcome.take(words[0].decode(), words[1:])
        return outcome

    def close(self) -> None:
        """End the process; what it has not freed is an error."""
        if self._process is not None:
            words = self._last_words()
            assert words == "exit code 0: ", words

    def _exchanged(self, script: Script) -> bytes | None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(struct.pack("<I", len(script.encoded)) + script.encoded)
            process.stdin.flush()
        except BrokenPipeError:
            return None
        head = process.stdout.read(4)
        if len(head) < 4:
            return None
        (size,) = struct.unpack("<I", head)
        told = process.stdout.read(size)
        return told if len(told) == size else None

    def _last_words(self) -> str:
        process, self._process = self._process, None
        assert process is not None
        process.communicate()
        return f"exit code {process.returncode}: {self._errors.read_text(errors='replace')[:8000]}"


def _words(told: bytes, at: int) -> tuple[list[bytes], int]:
    words = []
    count = told[at]
    at += 1
    for _ in range(count):
        (size,) = struct.unpack_from("<I", told, at)
        words.append(told[at + 4 : at + 4 + size])
        at += 4 + size
    return words, at
