"""Limits through a real Envoy, with simulated engines behind it."""

import asyncio

import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, a_pod, a_route, a_server, running, total
from tests.limits import server
from tests.local.waiting import eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

LIMIT = "  rateLimit: {{unit: hour, requestsPerUnit: {requests}, outputTokensPerUnit: {tokens}}}\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    documents = [a_pod("demo-0", "--answer-tokens", "8"), a_server(), a_route()]
    documents += [a_route(name) + LIMIT.format(requests=3, tokens=1000) for name in ("few", "changed")]
    documents += [a_route(name) + LIMIT.format(requests=1000, tokens=1000) for name in ("tokens", "failing")]
    async with running(tmp_path_factory.mktemp("limits") / "manifests", *documents) as it:
        for route in ("few", "changed", "tokens", "failing"):
            await there(it, route)
        yield it


async def there(world, route):
    async def known():
        answer = await world.send("/v1/models", method="GET")
        return route in [one["id"] for one in answer.json["data"]]

    await eventually_async(known)


async def test_answers_tell_what_is_left_and_refusals_when_to_come_back(world):
    answers = [await world.send(CHAT, model="few") for _ in range(4)]

    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "1000"
    assert "retry-after" not in answers[0].headers
    refused = answers[3]
    assert 1190 <= int(refused.headers["retry-after"]) <= 1200
    assert refused.headers["x-matrixinfer-reason"] == "limit-reached"
    assert refused.error["code"] == "rate_limit_exceeded"
    assert "3 requests per hour of route default/few" in refused.error["message"]


@pytest.mark.parametrize(("mode", "status"), [("500", 500), ("503", 503), ("reset", 503), ("garbage", 200)], ids=str)
async def test_answers_that_failed_tell_it_too(world, mode, status):
    await world.fail("demo-0", mode, count=3)
    answer = await world.send(CHAT, model="failing")
    await world.heal()

    assert answer.status == status
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert int(answer.headers["x-ratelimit-remaining-requests"]) > 900


async def test_streams_tell_it_too_and_an_unlimited_route_tells_nothing(world):
    streamed = await world.send(CHAT, model="tokens", stream=True)
    unlimited = await world.send(CHAT)

    assert streamed.headers["x-ratelimit-remaining-tokens"] == "998"
    assert [name for name in unlimited.headers if name.lower().startswith("x-ratelimit")] == []


async def test_what_was_reserved_in_excess_is_given_back_when_the_answer_is_over(world):
    async def admitted():
        """What the answer before gave back may still be on its way."""
        return (await world.send(CHAT, model="tokens", max_tokens=None)).status == 200

    for _ in range(12):  # each reserves 256 of 1000, or more
        await eventually_async(admitted)


async def test_a_limit_that_is_raised_and_one_that_is_taken_away_let_through_at_once(world):
    for _ in range(3):
        await world.send(model="changed")
    assert (await world.send(model="changed")).status == 429

    _put(world, a_route("changed") + LIMIT.format(requests=5, tokens=1000))

    async def passes():
        return (await world.send(model="changed")).status == 200

    await eventually_async(passes)
    while (answer := await world.send(model="changed")).status == 200:
        pass
    assert answer.headers["x-ratelimit-limit-requests"] == "5"
    _put(world, a_route("changed"))
    await eventually_async(passes)


def _put(world, text):
    draft = world.directory.parent / "draft"
    draft.write_text(text)
    draft.replace(world.directory / "modelroute-changed.yaml")


async def test_requests_at_once_are_never_admitted_beyond_the_limit(world):
    _put(world, a_route("changed") + LIMIT.format(requests=50, tokens=10**6))

    async def limited():
        return "x-ratelimit-limit-requests" in (await world.send(model="changed")).headers

    await eventually_async(limited)
    answers = await asyncio.gather(*(world.send(model="changed", max_tokens=1) for _ in range(80)))

    assert {answer.status for answer in answers} == {200, 429}
    assert sum(answer.status == 200 for answer in answers) <= 50


async def test_a_global_limit_counts_in_redis_and_goes_on_when_it_is_gone(world):
    async with server.running() as redis:
        limit = f"  rateLimit: {{unit: hour, requestsPerUnit: 5, global: {{redis: {{address: '{redis.address}'}}}}}}\n"
        world.directory.joinpath("modelroute-shared.yaml").write_text(a_route("shared") + limit)
        await there(world, "shared")

        answers = [await world.send(CHAT, model="shared") for _ in range(6)]

        # One that Redis was slow to count is counted twice until it is over: on a busy machine the refusal may come early.
        *_, last = admitted = [answer for answer in answers if answer.status == 200]
        assert (len(admitted), {answer.status for answer in answers}) == (5, {200, 429})
        assert last.headers["x-ratelimit-remaining-requests"] == "0"
        assert "matrixinfer:{default/shared}/route/requests/" in redis.client().keys("*")
        alone = total(await world.metrics(), "matrixinfer_limits_alone_total")
        redis.kill()
        assert (await world.send(CHAT, model="shared")).status == 429  # what this picker knows counts on
        assert total(await world.metrics(), "matrixinfer_limits_alone_total") == alone + 1
        limit = limit.replace("requestsPerUnit: 5", "requestsPerUnit: 50")
        world.directory.joinpath("modelroute-shared.yaml").write_text(a_route("shared") + limit)

        async def passes():
            return (await world.send(CHAT, model="shared")).status == 200

        await eventually_async(passes)
