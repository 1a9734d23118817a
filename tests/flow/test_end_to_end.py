"""Flow control on a real stack: Envoy, the picker's process, simulated engines, tenants with API keys."""

import asyncio
import json
from contextlib import suppress

import aiohttp
import pytest

from bench import flow
from matrixinfer.api import kinds
from matrixinfer.api.dataplane import HELD_ANNOTATION
from tests.e2e.stack import samples, say
from tests.local.waiting import eventually_async

pytestmark = pytest.mark.envoy


@pytest.mark.alone
async def test_a_tenant_hardly_notices_another_that_floods(tmp_path):
    """Per cent of the time to the first token that the slowest twentieth has alone; the documents among its prompts."""
    async with (
        flow.stack(tmp_path / "fair", flow.FAIR) as fair,
        flow.stack(tmp_path / "strict", flow.BY_ARRIVAL) as strict,
    ):
        await asyncio.gather(fair.ready(), strict.ready())
        alone = await flow.tenants(fair.url, seconds=4, flooded=False)
        shared = await flow.tenants(fair.url, seconds=4, flooded=True)
        by_arrival = await flow.tenants(strict.url, seconds=2, flooded=True)
        long, short = await flow.both(fair.url, seconds=3, tokens=(2000, 500))

    say(f"both flood: {long} tokens of prompts with 2,000 served, {short} of prompts with 500")
    locality, in_flight, costliest = 2048, flow.ENGINES, 2000 + 2 * 2
    assert abs(long - short) <= 2 * (locality + (in_flight + 1) * costliest) + in_flight * costliest
    for name, seen in (("alone", alone), ("beside a flood", shared), ("beside it, by arrival", by_arrival)):
        say(f"time to the first token {name}: p50 {seen.at(0.5):.3f} s, p95 {seen.at(0.95):.3f} s")
    assert shared.at(0.95) < 1.5 * alone.at(0.95)
    assert by_arrival.at(0.95) > 3 * shared.at(0.95)
    assert shared.flood_served > 0  # what the calm tenant leaves is the flood's


@pytest.mark.parametrize(("size", "mib"), [(2_000, 30), (40_000, 105)], ids=["2 kB", "40 kB"])
async def test_a_thousand_requests_wait_for_nearly_nothing_and_leave_at_once(tmp_path, size, mib):
    async with flow.stack(tmp_path / "parked", flow.FAIR, engines=1) as stack:
        await stack.ready()
        found = await flow.parked(stack, size=size, seconds=1)

    say(f"1,000 that wait: {found.mib:.1f} MiB, {found.cpu:.4f} of a core, gone after {found.left_s:.2f} s")
    assert found.waiting == 1000
    assert found.mib < mib
    assert found.cpu < 0.1
    assert found.left_s < 10


async def test_who_waits_is_told_on_the_page_and_goes_in_turn(tmp_path):
    async with flow.stack(tmp_path / "turns", flow.FAIR, engines=1) as stack, aiohttp.ClientSession() as http:
        await stack.ready()

        async def ask(tenant, tokens, name):
            body = {"model": "demo", "prompt": name, "max_tokens": tokens}
            headers = {**flow._headers(tenant), "x-matrixinfer-explain": "1", "x-request-id": name}
            url = f"{stack.url}/v1/completions"
            async with http.post(url, data=json.dumps(body), headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                return json.loads(answer.headers["x-matrixinfer-decision"])["queue"]

        async def waiting(count):
            async with http.get(f"{stack.admin_url}/queues") as answer:
                return (await answer.json())["waiting"] == count

        first = asyncio.create_task(ask("flood", 100, "first"))
        await eventually_async(lambda: is_open(http, stack, 1))
        second = asyncio.create_task(ask("flood", 1, "second"))
        third = asyncio.create_task(ask("calm", 1, "third"))
        await eventually_async(lambda: waiting(2))
        told = await asyncio.gather(first, second, third)

        assert [one["tenant"] for one in told] == ["flood", "flood", "calm"]
        assert told[0]["waited_s"] == 0
        assert told[2]["waited_s"] > 0
        assert told[1]["waited_s"] > 0
        await eventually_async(lambda: waiting(0))

        first = asyncio.create_task(ask("flood", 5000, "another"))
        await eventually_async(lambda: is_open(http, stack, 1))
        second = asyncio.create_task(ask("calm", 1, "waits"))
        await eventually_async(lambda: waiting(1))
        (tmp_path / "turns.scheduling").write_text(flow.RULES.format(policy=flow.FAIR, places=2))
        assert (await second)["waited_s"] > 0
        assert not first.done()
        async with http.get(f"{stack.admin_url}/config") as answer:
            assert (await answer.json())["flow_control"]["detector"] == "concurrency-detector"
        first.cancel()


async def is_open(http, stack, count):
    async with http.get(f"{stack.admin_url}/endpoints") as answer:
        return sum(one["inflight"] for one in (await answer.json())["endpoints"]) == count


async def test_a_request_is_held_until_there_is_an_engine_and_its_model_server_says_so(tmp_path):
    rules = "  noEndpointRequestTTL: 1m\n"
    async with (
        flow.stack(tmp_path / "held", flow.FAIR, engines=0, more=rules) as stack,
        aiohttp.ClientSession() as http,
    ):

        async def listed():
            with suppress(aiohttp.ClientError):  # they do not listen yet
                async with http.get(f"{stack.admin_url}/healthz") as answer:
                    if answer.status != 200:
                        return False
                async with http.get(f"{stack.url}/v1/models", headers=flow._headers("calm")) as answer:
                    return answer.status == 200 and b"demo" in await answer.read()
            return False

        await eventually_async(listed)

        async def held(count):
            async with http.get(stack.metrics_url) as answer:
                page = samples(await answer.text())
            return page.get("matrixinfer_queue_held_requests{server=default/demo}") == count

        body = json.dumps({"model": "demo", "prompt": "anybody there", "max_tokens": 1})

        async def server():
            return await stack.cluster.get(kinds.MODEL_SERVER, "demo", "default")

        async def told():
            return HELD_ANNOTATION in (await server())["metadata"].get("annotations", {})

        before = await server()
        assert not await told()
        asked = asyncio.create_task(ask(http, f"{stack.url}/v1/completions", body))
        await eventually_async(lambda: held(1))
        await eventually_async(told)
        after = await server()
        assert after["spec"] == before["spec"]
        assert after["metadata"]["generation"] == before["metadata"]["generation"]
        (tmp_path / "held" / "engine.yaml").write_text(flow.ENGINE.format(number=0))

        status, said = await asked
        assert status == 200, said
        assert await held(0)


async def ask(http, url, body):
    async with http.post(url, data=body, headers=flow._headers("calm")) as answer:
        return answer.status, await answer.text()
