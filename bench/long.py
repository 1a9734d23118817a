"""Long prompts by exact tokens, through Envoy: what they cost the picker, and what they do to short requests beside them.

The tokenizer is trained here (bench.pick); every cold prompt is text that nobody has seen.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson
import yaml

from bench import gateway, load, pick, processes, table
from extproc import plugins
from extproc.tokens.memo import Memo
from extproc.tokens.model import ModelTokenizer
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHORT_RATE, COLD_RATE = 100.0, 5.0
HOSTS: Final = [f"127.9.2.{n}" for n in range(1, 5)]


@dataclass(frozen=True, slots=True)
class Measured:
    """One load: latencies of the short requests, CPU and memory of the picker."""

    short: list[load.Sample]
    long: list[load.Sample]
    picker_s: float
    rss_mib: float

    def short_ms(self, share: float) -> float:
        """Time to the first byte that `share` of the short requests took at most."""
        return load.percentile([sample.first_s for sample in self.short], share) * 1e3


class Texts:
    """Text of a wanted number of tokens, never the same twice."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._lines = [
            line for source in pick.sources()[150:] for line in source.read_text(errors="replace").splitlines(True)
        ]
        self._chance = random.Random(1)
        sample = "".join(self._chance.choices(self._lines, k=5000))
        self._characters = len(sample) / len(tokenizer.encoder.ids(sample))

    def text(self, tokens: int) -> str:
        """Return text of about so many tokens."""
        size = int(tokens * self._characters)
        pieces: list[str] = []
        while size > 0:
            pieces.append(self._chance.choice(self._lines)[:size])
            size -= len(pieces[-1])
        return "".join(pieces)


def _post(*turns: str) -> bytes:
    messages = [{"role": "user", "content": turn} for turn in turns]
    return load.post("gateway", gateway.PATH, orjson.dumps({"model": "demo", "messages": messages, "max_tokens": 1}))


def _configuration(folder: Path) -> tuple[Path, ModelTokenizer]:
    """Write the tokenizer and a configuration that finds it: the default with exact tokens."""
    files = pick.files()
    home = folder / "models" / "demo"
    home.mkdir(parents=True)
    (home / "tokenizer.json").write_text(files.tokenizer)
    (home / "tokenizer_config.json").write_text(files.tokenizer_config)
    producer = {"type": "token-producer", "parameters": {"folders": [str(folder / "models")]}}
    document = {**plugins.DEFAULT, "plugins": [producer, *plugins.DEFAULT["plugins"]]}
    file = folder / "tokens.yaml"
    file.write_text(yaml.safe_dump(document))
    return file, ModelTokenizer(files, memo=Memo(), number=1, strftime_now=lambda _format: "")


async def run(folder: Path, *, seconds: float) -> None:
    """Print the tables."""
    file, tokenizer = _configuration(folder)
    texts = Texts(tokenizer)
    short = itertools.cycle([_post(texts.text(200)) for _ in range(200)])
    with gateway.stub_engines(HOSTS):
        config = Config(
            engines=tuple(f"http://{host}:{gateway.PORT}" for host in HOSTS),
            port=0,
            admin_port=0,
            metrics_port=0,
            envoy_workers=1,
            log_level="warning",
            scheduling=file,
        )
        async with Stack(config) as stack:
            await stack.ready()
            await _measure(stack, short=short, seconds=3)  # the short prompts are known from here on
            alone = await _measure(stack, short=short, seconds=seconds)
            cold = iter([_post(texts.text(49_000)) for _ in range(int(COLD_RATE * seconds * 2))])
            beside = await _measure(stack, short=short, long=cold, rate=COLD_RATE, seconds=seconds)
            shared = texts.text(95_000)
            rows = []
            for rate in (5.0, 10.0):
                prompts = iter([_post(shared, texts.text(5_000)) for _ in range(int(rate * seconds * 2))])
                measured = await _measure(stack, long=prompts, rate=rate, seconds=seconds)
                each = measured.picker_s / max(1, len(measured.long)) * 1e3
                failed = sum(sample.status != gateway.OK for sample in measured.long)
                rows.append((f"{rate:.0f}/s", f"{each:.1f}", f"{measured.rss_mib:.0f}", str(failed)))
    head = ("short requests, 100/s", "p50 ms", "p99 ms", "picker cores", "not 200")
    table.show(
        "Short requests beside cold prompts of 49k tokens",
        head,
        [
            _beside("alone", alone, seconds),
            _beside(f"beside {COLD_RATE:.0f} cold prompts a second", beside, seconds),
        ],
    )
    table.show(
        "Prompts of 100k tokens, 95k of them shared", ("rate", "picker ms a request", "picker MiB", "not 200"), rows
    )


def _beside(name: str, measured: Measured, seconds: float) -> tuple[str, ...]:
    failed = sum(sample.status != gateway.OK for sample in (*measured.short, *measured.long))
    return (
        name,
        f"{measured.short_ms(0.5):.2f}",
        f"{measured.short_ms(0.99):.2f}",
        f"{measured.picker_s / seconds:.2f}",
        str(failed),
    )


async def _measure(
    stack: Stack,
    *,
    seconds: float,
    short: Iterator[bytes] | None = None,
    long: Iterator[bytes] | None = None,
    rate: float = 0.0,
) -> Measured:
    """Run both loads at once; either may be left out."""
    picker = stack.pids()["picker"]

    async def loaded(source: Iterator[bytes] | None, rate: float) -> list[load.Sample]:
        if source is None:
            return []
        return await load.open_loop(stack.url, lambda _number: next(source), rate=rate, seconds=seconds)

    before = processes.cpu_s(picker)
    shorts, longs = await asyncio.gather(loaded(short, SHORT_RATE), loaded(long, rate))
    return Measured(shorts, longs, processes.cpu_s(picker) - before, processes.rss_mib(picker))
