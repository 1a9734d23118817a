"""Asking engines how they are."""

import asyncio
import contextlib
import math
import random
import time

from extproc.adapters import pages
from extproc.adapters.scrape import Pace, Scraper
from extproc.scheduling.endpoints import Endpoint, EndpointTable, Lora
from tests.picker.running import Engine, eventually


class Http:
    """Every engine speaks http."""

    def scheme(self, address):
        return "http"


@contextlib.asynccontextmanager
async def scraping(engines, **pace):
    table = EndpointTable()
    for engine in engines:
        await engine.start()
        table.upsert(Endpoint(engine.address, "ns/p", "vLLM"))
    scraper = Scraper(table, Http(), clock=time.monotonic, draw=random.Random(1), pace=Pace(**pace))
    task = asyncio.create_task(scraper.run())
    try:
        yield table, scraper
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for engine in engines:
            engine.stop()


class Slow(Engine):
    """Counts how many are asked at once."""

    at_once = most = 0

    async def _answer(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                Slow.at_once += 1
                Slow.most = max(Slow.most, Slow.at_once)
                await asyncio.sleep(0.01)
                self.asked += 1
                Slow.at_once -= 1
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        writer.close()


async def test_load_and_models_reach_the_table():
    engine = Engine()
    engine.running, engine.waiting, engine.usage, engine.models = 3, 2, 0.5, ["demo", "demo-too"]
    async with scraping([engine]) as (table, _):
        await eventually(lambda: table.models[0])

        assert (table.running[0], table.waiting[0], table.kv_usage[0]) == (3.0, 2.0, 0.5)
        assert table.models[0] == {"demo", "demo-too"}
        assert table.scraped_at[0] > 0


async def test_what_was_in_flight_when_the_engine_was_asked_is_noted():
    engine = Engine()
    async with scraping([engine], busy_s=0.01, busy_spread_s=0.0, tick_s=0.01) as (table, _):
        table.inflight[0], table.inflight_tokens[0] = 3, 900
        await eventually(lambda: table.inflight_scraped[0] == 3)

        assert table.inflight_tokens_scraped[0] == 900


async def test_metrics_of_ones_own_reach_the_table():
    engine = Engine()
    engine.more = 'queue_depth{tier="gold"} 3\nqueue_depth{tier="iron"} 9\n'
    async with scraping([engine], busy_s=0.01, idle_s=0.05, tick_s=0.01) as (table, scraper):
        scraper.watch({"vLLM": {"depth": pages.metric("queue_depth{tier=gold}"), "none": pages.metric("other")}})
        await eventually(lambda: table.attributes["depth"][0] == 3.0)

        assert math.isnan(table.attributes["none"][0])


async def test_adapters_reach_the_table():
    engine = Engine()
    engine.adapters = ["tall", "small"]
    engine.more = 'vllm:lora_requests_info{max_lora="4",running_lora_adapters="tall",waiting_lora_adapters=""} 1.7e9\n'
    async with scraping([engine]) as (table, _):
        await eventually(lambda: table.models[0])

        assert table.models[0] == {"demo", "tall", "small"}
        assert table.adapters[0] == {"tall", "small"}
        assert table.lora[0] == Lora(frozenset({"tall"}), frozenset(), 4)


async def test_a_busy_engine_is_asked_more_often_than_an_idle_one():
    busy, idle = Engine(), Engine()
    async with scraping([busy, idle], busy_s=0.02, busy_spread_s=0.0, idle_s=60.0, tick_s=0.01) as (table, _):
        await eventually(lambda: table.scraped_at[:2].min() > 0)
        table.inflight[0] = 1
        await eventually(lambda: busy.asked > idle.asked + 5)


async def test_only_a_few_engines_are_asked_at_once():
    engines = [Slow() for _ in range(12)]
    async with scraping(engines, concurrency=2, tick_s=0.005) as (_, scraper):
        await eventually(lambda: all(engine.asked for engine in engines))

        assert Slow.most <= 2
        assert scraper.counts.unreadable >= 1


async def test_an_endpoint_that_left_is_asked_no_more():
    engine = Engine()
    async with scraping([engine], idle_s=0.02, spread_s=0.0, tick_s=0.005) as (table, scraper):
        await eventually(lambda: engine.asked)
        table.remove(engine.address)
        await eventually(lambda: not scraper._targets)
