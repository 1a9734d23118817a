"""Engines as their events tell of them, and the plainest model of what they hold."""

from collections import Counter

import msgspec
import numpy as np
from xxhash import xxh3_64_intdigest

from extproc.kvcache import events
from extproc.kvcache.blocks import BlockIndex
from extproc.kvcache.exact import ExactIndex
from extproc.kvcache.replica import Chain
from extproc.tokens import chain

FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
)


def an_index(capacity=100_000, block_tokens=4, **more):
    return ExactIndex(
        BlockIndex(capacity=capacity, secret=0x1234_5678_9ABC_DEF1),
        Chain(chain.root, chain.chain, block_tokens),
        **more,
    )


def prompt(tokens, block_tokens=4, model="demo", salt=""):
    """The chain of a prompt, as the picker computes it."""
    return chain.chain(np.array(tokens, dtype=np.uint32), chain.root(model, salt), block_tokens)


def held(index, hashes, *rows, tokens=None, learned=None):
    return index.held(
        hashes,
        np.array(rows, dtype=np.intp),
        tokens=tokens,
        learned=np.zeros(len(rows), dtype=np.int64) if learned is None else np.array(learned),
    )


def matched(index, hashes, *rows):
    return held(index, hashes, *rows).matched.tolist()


class Engine:
    """One publisher: numbers its batches, keeps them for replay, hashes blocks with a seed of its own."""

    def __init__(self, index, row=0, *, block_tokens=4, model="demo", seed=7, maps=True, replays=True, buffer=10_000):
        self.index, self.block_tokens, self.model, self.maps, self.buffer = index, block_tokens, model, maps, buffer
        self.member = index.open(row, model=model, replays=replays)
        self.seed = seed
        self.life = 0
        self.past = []  # (number, payload) since the engine's start
        self.copies = Counter()  # (hash, tier, group) -> copies
        self.clock = 1.0
        self.asks = []
        self.deaf = False

    def hashes(self, tokens, salt="", adapter=""):
        previous = xxh3_64_intdigest(f"{self.seed}/{self.life}/{salt}/{adapter}".encode())
        found = []
        for at in range(len(tokens) // self.block_tokens):
            block = tokens[at * self.block_tokens : (at + 1) * self.block_tokens]
            previous = xxh3_64_intdigest(np.array(block, dtype=np.uint32).tobytes(), previous)
            found.append(previous)
        return found

    def stored(self, tokens, first=0, *, salt="", adapter="", medium="GPU", group=0, **more):
        """The event of the prompt's blocks from `first` on becoming findable."""
        hashes = self.hashes(tokens, salt, adapter)
        for one in hashes[first:]:
            self.copies[one, medium, group] += 1
        keys = [[adapter] if adapter else None for _ in hashes]
        if salt:
            keys[0] = [*(keys[0] or ()), salt]
        return {
            "type": "BlockStored",
            "block_hashes": hashes[first:],
            "parent_block_hash": hashes[first - 1] if first else None,
            "token_ids": list(tokens[first * self.block_tokens : len(hashes) * self.block_tokens]),
            "block_size": self.block_tokens,
            "lora_id": 1 if adapter else None,
            "medium": medium,
            "lora_name": adapter or None,
            "extra_keys": keys[first:],
            "group_idx": group,
            **more,
        }

    def removed(self, one, medium="GPU", group=0):
        self.copies[one, medium, group] -= 1
        self.copies += Counter()
        return {"type": "BlockRemoved", "block_hashes": [one], "medium": medium, "group_idx": group}

    def cleared(self):
        self.copies.clear()
        return {"type": "AllBlocksCleared"}

    def publish(self, *made, lose=False):
        """Send a batch; `lose`: it does not arrive."""
        self.clock += 0.001
        shown = [one if self.maps else _as_array(one) for one in made]
        payload = msgspec.msgpack.encode([self.clock, shown, 0])
        number = len(self.past)
        self.past.append((number, payload))
        if not lose:
            self._perform(self.member.stream.take(number, events.read(payload)))

    def connect(self):
        self._perform(self.member.stream.begin())

    def restart(self):
        """Start anew, with nothing in the cache and other hashes."""
        self.life += 1
        self.past = []
        self.copies.clear()
        self.clock += 1.0

    def answer(self):
        """Answer a question for past batches."""
        first = self.asks.pop(0).first
        if self.deaf:
            self._perform(self.member.stream.replay_failed())
            return
        for number, payload in self.past[-self.buffer :]:
            if number >= first:
                self._perform(self.member.stream.replayed(number, events.read(payload)))
        self._perform(self.member.stream.replay_ended())

    def answer_all(self):
        while self.asks:
            self.answer()

    def depth(self, tokens, salt="", adapter=""):
        """How many of its blocks the engine holds from the prompt's start on."""
        depth = 0
        for one in self.hashes(tokens, salt, adapter):
            if not any(self.copies[one, medium, 0] for medium in ("GPU", "CPU", "STORAGE")):
                break
            depth += 1
        return depth

    def move(self, move, which, tokens):
        """Do one of the things that happen to an engine."""
        on_gpu = sorted(one for one, medium, _group in self.copies if medium == "GPU")
        if move in ("store", "lose") and tokens:
            first = min(self.depth(tokens), len(tokens) // self.block_tokens - 1)
            self.publish(self.stored(tokens, first=first), lose=move == "lose")
        elif move == "remove" and on_gpu:
            self.publish(self.removed(on_gpu[which % len(on_gpu)]))
        elif move == "clear":
            self.publish(self.cleared())
        elif move == "restart":
            self.restart()
            self.index.restarted(self.member.row)
        elif move == "connect":
            self.connect()
        elif move == "answer":
            self.answer_all()

    def _perform(self, steps):
        self.asks += self.member.perform(steps)


def _as_array(event):
    if event["type"] == "BlockStored":
        return ["BlockStored", *(event[name] for name in FIELDS), event["group_idx"]]
    if event["type"] == "BlockRemoved":
        return ["BlockRemoved", event["block_hashes"], event["medium"], event["group_idx"]]
    return [event["type"]]
