"""Engines that tell what they hold, behind Envoy: the picker predicts the cached tokens that engines then report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.stack import ROUTE, SERVER, World, a_pod, running, total
from tests.local.waiting import eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
ROOT = Path(__file__).parents[2]
ENGINES = ("told-0", "told-1", "told-2")
EVENTS = ("--kv-events-endpoint", "tcp://$(POD_IP):5557", "--replay-endpoint", "tcp://$(POD_IP):5558")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def told(tmp_path_factory):
    documents = [a_pod(name, *EVENTS, "--kv-blocks", "120", "--max-model-len", "1800", app="told") for name in ENGINES]
    documents += [
        SERVER.format(name="demo", app="told", policy=""),
        ROUTE.format(name="demo", model="demo", server="demo"),
    ]
    config = ROOT / "examples" / "scheduling" / "exact-prefix.yaml"
    async with running(tmp_path_factory.mktemp("told") / "manifests", *documents, scheduling=config) as world:
        await eventually_async(lambda: following(world, len(ENGINES)), 30)
        yield world


async def following(world: World, streams: int) -> bool:
    found = await world.metrics()
    return found["matrixinfer_kv_streams{state=complete}"] == streams


async def predicted_and_told(world: World, prompt: list[int], **body) -> tuple[int | None, int]:
    request = world.new_id()
    answer = await world.send(prompt=prompt, max_tokens=2, headers={"x-request-id": request}, **body)
    assert answer.status == 200, answer.body
    cached = (answer.json["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
    return (await world.decision(request))["predicted_cached_tokens"], cached


async def quiet(world: World) -> None:
    """Wait until what was routed has been told of: nothing is only expected any more."""

    async def confirmed() -> bool:
        found = await world.metrics()
        return total(found, "matrixinfer_kv_expected_blocks_total", "event=expected") == total(
            found, "matrixinfer_kv_expected_blocks_total", "event=c"
        ) + total(found, "matrixinfer_kv_expected_blocks_total", "event=expired")

    await eventually_async(confirmed, 10)


async def test_every_prediction_is_what_the_engine_reports(told):
    draw = random.Random(5)
    systems = [[draw.randrange(1, 1 << 20) for _ in range(200)] for _ in range(4)]
    talks = [list(draw.choice(systems)) for _ in range(12)]
    for number in range(60):
        talk = draw.choice(talks)
        talk += [draw.randrange(1, 1 << 20) for _ in range(draw.randrange(1, 90))]
        salt = {"cache_salt": f"tenant-{number % 3}"} if number % 5 == 0 else {}

        predicted, cached = await predicted_and_told(told, talk, **salt)
        await quiet(told)

        assert predicted == cached, f"request {number}"
    found = await told.metrics()
    assert found["matrixinfer_kv_blocks_total{event=removed}"] > 0  # caches of 119 blocks have to give some up
    assert found["matrixinfer_kv_blocks_total{event=orphan}"] == 0


async def test_an_engine_that_restarts_is_known_to_be_empty(told):
    prompt = list(range(500, 700))
    assert await predicted_and_told(told, prompt) == (0, 0)
    await quiet(told)
    assert await predicted_and_told(told, prompt) == (192, 192)
    before = await told.metrics()

    for name in ENGINES:
        told.kill(name)
    await eventually_async(lambda: restarted(told, before), 60)

    assert await predicted_and_told(told, prompt) == (0, 0)
    await quiet(told)
    assert await predicted_and_told(told, prompt) == (192, 192)


async def restarted(world: World, before) -> bool:
    found = await world.metrics()
    if not await following(world, len(ENGINES)) or found["matrixinfer_kv_index_pairs"]:
        return False
    ready = [value for key, value in found.items() if key.startswith("matrixinfer_endpoint_ready")]
    return len(ready) == len(ENGINES) and all(ready)
