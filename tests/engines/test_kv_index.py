"""The exact index against a real vLLM: what the picker predicts is what the engine reports, request by request."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import asynccontextmanager, suppress

import aiohttp
import numpy as np
import pytest

from extproc.adapters.kv_events import KvEvents
from extproc.adapters.kv_sources import Discovery
from extproc.adapters.settings import blocks_of_tokens
from extproc.kvcache.blocks import BlockIndex
from extproc.kvcache.exact import ExactIndex
from extproc.kvcache.replica import Chain
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.tokens import chain
from tests.local.waiting import eventually

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif("VLLM_URL" not in os.environ, reason="VLLM_URL names no live vLLM"),
]
URL = os.environ.get("VLLM_URL", "")
ROW = np.zeros(1, dtype=np.intp)


class Http:
    """Engines are spoken to in the clear."""

    def scheme(self, address):
        return "http"


class Follower:
    """An index that follows the engine, and a client that asks it."""

    def __init__(self, http, block_tokens=16):
        self.http = http
        self.block_tokens = block_tokens
        table = EndpointTable()
        table.upsert(Endpoint(URL.removeprefix("http://"), "ns/vllm", "vLLM"))
        self.index = ExactIndex(
            BlockIndex(capacity=100_000, secret=random.getrandbits(64)),
            Chain(chain.root, blocks_of_tokens, block_tokens),
            expected_s=0.0,
        )
        self.events = KvEvents(
            table, self.index, Http(), discovery=Discovery(), base_models=lambda _address, _row: ("tiny",)
        )

    @property
    def stream(self):
        (one,) = self.events.following[URL.removeprefix("http://")]
        return one

    def lose_from_now_on(self):
        """Keep the engine's messages from the follower."""
        asyncio.get_running_loop().remove_reader(self.stream._events.FD)

    async def lost(self):
        """Take a message away, and listen again."""
        await eventually(lambda: self.stream._events.poll(0))
        while self.stream._events.poll(300):  # ms: what the engine still has to say of it
            self.stream._events.recv_multipart()
        asyncio.get_running_loop().add_reader(self.stream._events.FD, self.stream._work)
        self.stream._soon()

    def predicted(self, tokens, model="tiny", salt=""):
        hashes = chain.chain(np.array(tokens, dtype=np.uint32), chain.root(model, salt), self.block_tokens)
        learned = np.zeros(1, dtype=np.int64)
        return int(self.index.held(hashes, ROW, tokens=len(tokens), learned=learned).cached_tokens[0])

    async def ask(self, tokens, model="tiny", salt=""):
        """Returns the cached tokens that the engine reports, and what it answered."""
        body = {"model": model, "prompt": tokens, "max_tokens": 4, "temperature": 0, "return_token_ids": True}
        async with self.http.post(
            f"{URL}/v1/completions", json=body | ({"cache_salt": salt} if salt else {})
        ) as answer:
            told = await answer.json()
            assert answer.status == 200, told
        return told["usage"]["prompt_tokens_details"]["cached_tokens"], told["choices"][0]["token_ids"]

    async def caught_up(self):
        """Wait until nothing has come for a moment: the engine publishes after each step."""
        last = -1
        while last != self.index.replica_counts.batches:
            last = self.index.replica_counts.batches
            await asyncio.sleep(0.3)  # an engine does not say that it has nothing more to say


@asynccontextmanager
async def follower(**how):
    async with aiohttp.ClientSession() as http:
        it = Follower(http, **how)
        task = asyncio.create_task(it.events.run())
        try:
            await eventually(lambda: it.events.following and it.stream.settled)
            yield it
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.mark.parametrize("block_tokens", [16, 32])
async def test_every_prediction_is_what_vllm_reports(block_tokens):
    draw = random.Random(time.time())
    async with follower(block_tokens=block_tokens) as it:
        path = os.environ["VLLM_LORA_PATH"]
        async with it.http.post(
            f"{URL}/v1/load_lora_adapter", json={"lora_name": "lora-kv", "lora_path": path}
        ) as loaded:
            assert loaded.status in (200, 400)  # 400: it is there already
        talks = [
            ([draw.randrange(10, 4000) for _ in range(100)], *how)
            for how in (("tiny", ""), ("tiny", ""), ("lora-kv", ""), ("tiny", "tenant-1"), ("tiny", "tenant-2"))
        ]
        talks.append((list(talks[0][0]), "lora-kv", ""))
        for _turn in range(3):
            for tokens, model, salt in talks:
                await it.caught_up()
                predicted = it.predicted(tokens, model, salt)
                cached, answer = await it.ask(tokens, model, salt)

                assert predicted == cached, (model, salt, len(tokens))
                tokens.extend(answer)
                tokens.extend(draw.randrange(10, 4000) for _ in range(draw.randrange(1, 90)))
        assert it.index.replica_counts.orphans == 0


async def test_a_follower_that_comes_later_knows_as_much():
    draw = random.Random(time.time())
    tokens = [draw.randrange(10, 4000) for _ in range(300)]
    async with follower() as first:
        await first.ask(tokens)
    async with follower() as second:
        await second.caught_up()

        assert second.index.exact(0)
        assert second.predicted(tokens) == (await second.ask(tokens))[0] > 0


async def test_a_gap_is_repaired_by_replay():
    draw = random.Random(time.time())
    async with follower() as it:
        await it.ask([draw.randrange(10, 4000) for _ in range(100)])
        await it.caught_up()
        tokens = [draw.randrange(10, 4000) for _ in range(300)]
        it.lose_from_now_on()
        await it.ask(tokens)
        await it.lost()
        await it.ask([draw.randrange(10, 4000) for _ in range(100)])
        await eventually(lambda: it.index.stream_counts.gaps == 1 and not it.stream.member.stream.waiting)

        assert it.index.exact(0)
        assert it.predicted(tokens) == (await it.ask(tokens))[0] > 0
