"""The exact KV index at size: memory and look-up time with ten million blocks, and how many events a core applies."""

from __future__ import annotations

import random
import resource
import time
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bench import table
from extproc.adapters.settings import blocks_of_tokens
from extproc.kvcache import events
from extproc.kvcache.blocks import BlockIndex
from extproc.kvcache.exact import ExactIndex
from extproc.kvcache.replica import Chain
from extproc.tokens import chain

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.kvcache.exact import Member

ENGINES, ENDPOINTS, BLOCKS, PROMPT = 64, 256, 10_000_000, 641
SHARED = 0.2  # of an engine's blocks, that others hold as well
BLOCK_TOKENS = 16


def an_index(capacity: int) -> ExactIndex:
    return ExactIndex(
        BlockIndex(capacity=capacity, secret=random.getrandbits(64)), Chain(chain.root, blocks_of_tokens, BLOCK_TOKENS)
    )


class Engine:
    """Publishes to one member of an index."""

    def __init__(self, index: ExactIndex, row: int) -> None:
        self.member: Member = index.open(row, model="demo", replays=False)
        self._numbers = iter(range(1 << 62))
        self._seed = random.getrandbits(64)

    def payloads(self, prompts: int, blocks: int, *, removed: bool = False) -> list[bytes]:
        """Batches as the engine sends them: one prompt each, and then perhaps the removal of its blocks."""
        made: list[bytes] = []
        last: list[int] = []
        for number in range(prompts):
            tokens = np.random.default_rng(number + self._seed % 1000).integers(0, 150_000, blocks * BLOCK_TOKENS)
            hashes = [random.getrandbits(64) for _ in range(blocks)]
            stored = {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": None,
                "token_ids": tokens.tolist(),
                "block_size": BLOCK_TOKENS,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None] * blocks,
                "group_idx": 0,
            }
            gone = [{"type": "BlockRemoved", "block_hashes": [one], "medium": "GPU", "group_idx": 0} for one in last]
            made.append(msgspec.msgpack.encode([time.time(), [stored, *gone], 0]))
            last = hashes if removed else []
        return made

    def take(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            batch = events.read(payload)
            if batch is not None:
                self.member.perform(self.member.stream.take(next(self._numbers), batch))


def run() -> None:
    """Print both tables."""
    _events()
    _size()


def _events() -> None:
    rows = []
    for name, prompts, blocks, removed in (
        ("prefill, 64 blocks an event", 400, 64, False),
        ("prefill in a full cache: as many removals", 400, 64, True),
        ("decode, 1 block an event", 10_000, 1, False),
    ):
        payloads = Engine(an_index(1000), 0).payloads(prompts, blocks, removed=removed)
        took = []
        for _ in range(3):
            engine = Engine(an_index(1_000_000), 0)
            start = time.process_time()
            engine.take(payloads)
            took.append(time.process_time() - start)
        rows.append((name, f"{prompts * blocks / min(took):,.0f}", f"{min(took) / prompts * 1e6:.0f}"))
    table.show("KV events applied by one core", ("events", "blocks/s", "us a batch"), rows)


def _size() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exact = an_index(BLOCKS + ENDPOINTS * PROMPT)
    index = exact.index
    rows = [Engine(exact, row) for row in range(ENDPOINTS)]
    draw = random.Random(1)
    prompt = [draw.getrandbits(64) for _ in range(PROMPT)]
    tokens = list(range(BLOCK_TOKENS))
    for row, engine in enumerate(rows):  # one batch each, so that every endpoint has its slot
        stored = {"type": "BlockStored", "block_hashes": [row], "token_ids": tokens, "block_size": BLOCK_TOKENS}
        engine.take([msgspec.msgpack.encode([1.0, [stored], 0])])
    slots = [engine.member.replica.groups[0].slot for engine in rows]
    shared = np.random.default_rng(1).integers(1, 1 << 63, int(BLOCKS * SHARED / 4), dtype=np.uint64)
    start = time.process_time()
    for number in range(ENGINES):
        count = BLOCKS // ENGINES
        own = np.random.default_rng(number + 2).integers(1, 1 << 63, count, dtype=np.uint64)
        own[: int(count * SHARED)] = np.random.default_rng(number).choice(shared, int(count * SHARED), replace=False)
        slot, store = slots[number], index.store
        for ours in own.tolist():
            store(slot, ours ^ slot, ours)
        if number % 16 == 15:
            print(f"  {index.pairs / 1e6:.1f} million blocks over {number + 1} engines")
    filled = time.process_time() - start
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    table.show(
        f"Exact index, {ENGINES} engines, {SHARED:.0%} of their blocks shared by four",
        ("what", "figure"),
        (
            ("blocks", f"{index.pairs:,}"),
            ("distinct blocks", f"{index.blocks:,}"),
            ("memory of the process for it", f"{memory / (1 << 20):,.0f} MiB"),
            ("bytes a block", f"{memory / index.pairs:.0f}"),
            ("stored a second, one core", f"{index.pairs / filled:,.0f}"),
        ),
    )
    _lookups(exact, slots, prompt)


def _lookups(exact: ExactIndex, slots: list[int], prompt: list[int]) -> None:
    rows = np.arange(ENDPOINTS)
    learned = np.zeros(ENDPOINTS, dtype=np.int64)
    found = [("unknown prompt", _timed(lambda: exact.held(prompt, rows, tokens=None, learned=learned)))]
    for slot in slots:
        for ours in prompt[:-1]:
            exact.index.store(slot, ours ^ slot, ours)
    found.append(("held by all", _timed(lambda: exact.held(prompt, rows, tokens=None, learned=learned))))
    for at, slot in enumerate(slots):
        for ours in prompt[len(prompt) - 2 * at - 1 : -1]:
            exact.index.remove(slot, ours ^ slot)
    found.append(
        ("held by each to another length", _timed(lambda: exact.held(prompt, rows, tokens=None, learned=learned)))
    )
    for at, slot in enumerate(slots):
        if at % 8:
            for ours in prompt[: len(prompt) - 2 * at - 1]:
                exact.index.remove(slot, ours ^ slot)
    found.append(
        (
            "held by every eighth, each to another length",
            _timed(lambda: exact.held(prompt, rows, tokens=None, learned=learned)),
        )
    )
    shown = [(name, f"{first:.0f}", f"{best:.0f}") for name, (first, best) in found]
    head = (f"prompt of {len(prompt)} blocks", "first us", "best us")
    table.show(f"Look-up over {ENDPOINTS} endpoints, {exact.index.pairs / 1e6:.1f} million blocks", head, shown)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    times = []
    for _ in range(200):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times[0] * 1e6, min(times) * 1e6
