"""Traffic policies over a real stack: shares, sticky shares, targets that die, copies, times and tries of a route."""

import asyncio
import json
import math
import os
import signal
from collections import Counter

import aiohttp
import pytest
import pytest_asyncio

from bench import load
from tests.e2e.stack import CHAT, COMPLETIONS, a_body, a_pod, a_stub, events, running, say
from tests.e2e.test_routes import ROUTE, a_server
from tests.e2e.traffic import added, counted, once_each, under_load
from tests.local.waiting import eventually, eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

SIMULATED = {"main-0": "main", "main-1": "main", "spare-0": "spare"}


def a_target(server, weight=100, **more):
    return {"modelServerName": server, "weight": weight} | more


def a_route(name, *targets, rule=None, **spec):
    rules = [{"targetModels": list(targets)} | (rule or {})]
    return ROUTE.format(name=name, spec=json.dumps({"modelName": name, "rules": rules} | spec))


MAIN, SPARE = a_target("main"), a_target("spare", overflow=True)
DOCUMENTS = (
    *(a_stub(f"{app}-0", app=app) for app in ("old", "new", "third")),
    *(
        a_pod(name, "--served-model-name", f"engine-{app}", "--speed", "0.3", app=app)
        for name, app in SIMULATED.items()
    ),
    *(a_server(app, f"engine-{app}") for app in ("old", "new", "third", "main", "spare")),
    a_route("canary", a_target("old", 90), a_target("new", 10)),
    a_route(
        "sticky",
        a_target("old", 50),
        a_target("new", 30),
        a_target("third", 20),
        rule={"stickyBy": {"header": "X-User"}},
    ),
    a_route("pair", MAIN, a_target("old"), rule={"stickyBy": {"cookie": "session"}}),
    a_route("guarded", MAIN, SPARE),
    a_route("mirrored", MAIN, rule={"mirrors": [{"modelServerName": "spare"}]}),
    a_route("hurried", MAIN, trafficPolicy={"timeout": "400ms", "retry": {"attempts": 0}}),
    a_route("insistent", MAIN, trafficPolicy={"retry": {"attempts": 3, "retryInterval": "5ms", "retryOn": ["500"]}}),
    a_route("watched", MAIN, trafficPolicy={"idleTimeout": "700ms"}),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with running(tmp_path_factory.mktemp("policies") / "manifests", *DOCUMENTS) as it:
        yield it


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def healed(world):
    yield
    await eventually_async(lambda: all_serve(world))


async def all_serve(world):
    """Heal the simulated engines; tell whether all are ready and none is avoided any more."""
    addresses = await world.engines()
    for name in SIMULATED:
        try:
            async with world.http.delete(f"http://{addresses[name]}/sim/fail") as answer:
                assert answer.status == 200
        except OSError:
            return False
    async with world.http.get(f"{world.stack.admin_url}/endpoints") as answer:
        listed = (await answer.json())["endpoints"]
    return len(listed) == 6 and all(one["ready"] and not one["avoided_for_s"] for one in listed)


async def shares(world, *names):
    """How many requests each stub has served."""
    found = {}
    for name in names:
        async with world.http.get(f"http://{(await world.engines())[f'{name}-0']}/served") as answer:
            found[name] = sum(json.loads(await answer.text()).values())
    return found


async def sent(world, count, request, clients=16):
    """Samples of that many requests; `request` gives the bytes of the n-th."""
    numbers = iter(range(count))
    samples = []

    async def work():
        client = await load.connect(world.url, keep_body=True)
        for number in numbers:
            sample = await client.send(number, request(number))
            samples.append(sample)
        client.close()

    await asyncio.gather(*(work() for _ in range(clients)))
    return samples


def a_request(model, **headers):
    body = json.dumps({"model": model, "prompt": "hi", "max_tokens": 1}).encode()
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return load.post("gateway", COMPLETIONS, body, named)


def placed(sample):
    """The ModelServer that the picker chose, as its decision tells."""
    head = {
        name.lower(): value for name, _, value in (line.partition(b": ") for line in sample.head.split(b"\r\n")[1:])
    }
    return json.loads(head[b"x-matrixinfer-decision"])["target"].removeprefix("default/")


# ---- shares


async def test_a_canary_of_10_in_100_gets_its_share_of_10_000_requests(world):
    before = await shares(world, "old", "new")
    request = a_request("canary")

    samples = await sent(world, 10_000, lambda _number: request)

    after = await shares(world, "old", "new")
    counts = {name: after[name] - before[name] for name in after}
    say(f"canary: {counts}")
    assert Counter(sample.status for sample in samples) == {200: 10_000}
    assert sum(counts.values()) == 10_000
    # The binomial distribution's standard deviation is 30; five of them are passed once in two million runs.
    assert abs(counts["new"] - 1000) <= 5 * math.sqrt(10_000 * 0.9 * 0.1)


async def sticky(world, users, **headers):
    samples = await sent(world, len(users), lambda n: a_request("sticky", x_user=users[n], **headers))
    assert {sample.status for sample in samples} == {200}
    return {users[sample.number]: placed(sample) for sample in samples}


async def test_keys_stay_at_their_target_and_spread_by_the_weights_and_only_the_moved_weight_moves_them(world):
    users = [f"user-{number}" for number in range(1000)]
    first = await sticky(world, users, x_matrixinfer_explain="1")
    again = await sticky(world, users[::-1], x_matrixinfer_explain="1")
    counts = Counter(first.values())
    say(f"sticky: {counts}")

    assert first == again
    for name, share in (("old", 0.5), ("new", 0.3), ("third", 0.2)):
        assert abs(counts[name] - 1000 * share) <= 5 * math.sqrt(1000 * share * (1 - share))

    path = world.directory / "modelroute-sticky.yaml"
    whole = path.read_text()
    path.write_text(whole.replace('"weight": 20', '"weight": 60'))
    try:
        await eventually_async(lambda: moved(world, first))
        heavier = await sticky(world, users, x_matrixinfer_explain="1")
    finally:
        path.write_text(whole)

    changed = [user for user in users if heavier[user] != first[user]]
    say(f"weight 20 to 60: {len(changed)} of {len(users)} keys moved")
    assert {heavier[user] for user in changed} == {"third"}
    share = 60 / 140 - 20 / 100
    assert abs(len(changed) - 1000 * share) <= 5 * math.sqrt(1000 * share * (1 - share))


async def moved(world, first):
    users = list(first)[:200]
    return await sticky(world, users, x_matrixinfer_explain="1") != {user: first[user] for user in users}


async def test_no_request_fails_while_the_rules_handling_changes(world):
    path = world.directory / "modelroute-canary.yaml"
    before = path.read_text()
    old, new = a_target("old", 90), a_target("new", 10)
    mirrors = {"mirrors": [{"modelServerName": "third"}]}
    versions = [
        a_route("canary", old),
        a_route("canary", old, new, a_target("third")),
        a_route("canary", new, rule=mirrors),
        a_route("canary", old, new, trafficPolicy={"timeout": "30s"}),
        a_route("canary", a_target("third"), new, rule=mirrors, trafficPolicy={"retry": {"attempts": 1}}),
        before,
    ]
    request, over = a_request("canary"), asyncio.Event()

    async def keep_asking():
        client, statuses = await load.connect(world.url, keep_body=True), Counter()
        while not over.is_set():
            sample = await client.send(0, request)
            statuses[sample.status] += 1
        client.close()
        return statuses

    asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
    for version in versions:
        rebuilt = await rebuilds(world)
        path.write_text(version)
        await eventually_async(lambda rebuilt=rebuilt: changed(world, rebuilt))
        served = await world.metrics()
        await eventually_async(lambda served=served: went_on(world, served))
    over.set()

    statuses = sum(await asyncio.gather(*asking), Counter())
    say(f"{statuses.total()} requests over {len(versions)} versions of their route")
    assert set(statuses) == {200}


async def rebuilds(world):
    return (await world.metrics())["matrixinfer_world_rebuilds_total"]


async def changed(world, before):
    return await rebuilds(world) > before


async def went_on(world, before):
    """Whether some hundred requests were settled since."""
    name = "matrixinfer_ledger_total{event=settled}"
    return (await world.metrics())[name] >= before[name] + 150


# ---- a target that dies


async def test_a_target_all_of_whose_engines_are_killed_loses_no_request_that_had_not_begun_to_stream(world):
    before = await counted(world)
    spare = await world.served("spare-0")
    async with under_load(world, rate=40, model="guarded") as traffic:
        await eventually_async(lambda: busy(world, "main-0", "main-1"))
        pids = {name: world.kill(name) for name in ("main-0", "main-1")}
        for name, pid in pids.items():
            await eventually(
                lambda name=name, pid=pid: world.stack.pids().get(f"default/{name}/engine") not in (None, pid)
            )
        await eventually_async(lambda: back(world, "main-0", "main-1"))

    say(
        f"{len(traffic.samples)} requests, {len(traffic.broken())} streams broken, {await world.served('spare-0') - spare} by the spare"
    )
    assert traffic.failed() == []
    assert await world.served("spare-0") > spare
    assert await added(world, before) == once_each(len(traffic.samples))


async def busy(world, *names):
    for name in names:
        address = (await world.engines())[name]
        async with world.http.get(f"http://{address}/sim/state") as answer:
            if (await answer.json())["running"] == 0:
                return False
    return True


async def back(world, *names):
    return min([await world.served(name) for name in names]) >= 5


async def test_a_request_that_fails_over_is_answered_under_the_other_targets_name_and_the_settlement_names_it(world):
    for name in ("main-0", "main-1"):
        await world.fail(name, "503")
    request_id = world.new_id()

    answer = await world.send(CHAT, model="guarded", headers={"x-request-id": request_id})

    assert (answer.status, answer.json["model"]) == (200, "engine-spare")
    decision = await world.decision(request_id)
    addresses = await world.engines()
    assert (decision["target"], decision["end"]["target"]) == ("default/main", "default/spare")
    assert decision["end"]["served"] == addresses["spare-0"]
    assert decision["further"] == {addresses["spare-0"]: "default/spare"}
    assert set(decision["end"]["failed"]) == {addresses["main-0"], addresses["main-1"]}


async def test_a_stream_fails_over_with_its_usage_counted(world):
    for name in ("main-0", "main-1"):
        await world.fail(name, "reset")
    request_id = world.new_id()

    answer = await world.send(model="guarded", stream=True, max_tokens=5, headers={"x-request-id": request_id})

    assert events(answer.body)[-1] == "[DONE]"
    assert json.loads(events(answer.body)[0])["model"] == "engine-spare"
    assert not any(json.loads(event).get("usage") for event in events(answer.body)[:-1])
    assert (await world.decision(request_id))["end"]["outcome"]["completion_tokens"] == 5


async def test_keys_of_a_target_that_is_down_go_elsewhere_and_come_back_and_no_other_key_moves(world):
    keys = [f"key-{number}" for number in range(60)]

    async def where():
        samples = await sent(
            world,
            len(keys),
            lambda n: a_request("pair", cookie=f"a=b; session={keys[n]}", x_matrixinfer_explain="1"),
            4,
        )
        assert {sample.status for sample in samples} == {200}
        return {keys[sample.number]: placed(sample) for sample in samples}

    first = await where()
    for name in ("main-0", "main-1"):
        await world.fail(name, "unhealthy")
    await eventually_async(lambda: not_ready(world, 2))
    meanwhile = await where()
    await eventually_async(lambda: all_serve(world))

    assert set(first.values()) == {"main", "old"}
    assert set(meanwhile.values()) == {"old"}
    assert await where() == first


async def not_ready(world, count):
    async with world.http.get(f"{world.stack.admin_url}/endpoints") as answer:
        return sum(not one["ready"] for one in (await answer.json())["endpoints"]) == count


@pytest.mark.parametrize("stream", [False, True])
async def test_a_4xx_of_the_engine_arrives_byte_for_byte_and_is_tried_once(world, stream):
    address = (await world.engines())["main-0"]
    body = a_body(model="guarded", max_tokens=10**7, stream=stream)
    async with world.http.post(f"http://{address}{COMPLETIONS}", json=body | {"model": "engine-main"}) as direct:
        expected = direct.status, direct.headers["content-type"], await direct.read()
    request_id = world.new_id()

    answer = await world.raw(data=json.dumps(body).encode(), headers={"x-request-id": request_id})

    assert expected[0] == 400
    assert (answer.status, answer.headers["content-type"], answer.body) == expected
    assert (await world.decision(request_id))["end"]["outcome"]["attempts"] == 1


# ---- copies


async def test_copies_reach_the_mirror_under_its_name_and_are_in_nobodys_account(world):
    before = await counted(world)
    spare, ended = await world.served("spare-0"), await ends(world, "spare-0")

    answers = [await world.send(model="mirrored", prompt=f"copied {number}") for number in range(10)]

    assert {(answer.status, answer.json["model"]) for answer in answers} == {(200, "engine-main")}
    await eventually_async(lambda: has_served(world, "spare-0", spare + 10))
    assert await ends(world, "spare-0") - ended == Counter(length=10)
    assert await added(world, before) == once_each(10)


async def has_served(world, name, count):
    return await world.served(name) == count


async def ends(world, name):
    """How the engine's requests have ended; a name that it does not know would be an error."""
    address = (await world.engines())[name]
    async with world.http.get(f"http://{address}/sim/requests?since=999999999") as answer:
        return Counter((await answer.json())["totals"]["ends"])


async def test_a_mirror_that_hangs_holds_nobody_up(world):
    await world.fail("spare-0", "hang")

    answers = await asyncio.gather(*(world.send(model="mirrored") for _ in range(8)))

    assert {answer.status for answer in answers} == {200}


# ---- times and tries


async def test_the_routes_timeout_ends_a_wait_with_an_error_that_says_so(world):
    for name in ("main-0", "main-1"):
        await world.fail(name, "hang")
    request_id = world.new_id()

    answer = await world.send(model="hurried", headers={"x-request-id": request_id})

    assert (answer.status, answer.error["type"], answer.error["code"]) == (504, "timeout_error", "engine_timeout")
    outcome = (await world.decision(request_id))["end"]["outcome"]
    assert outcome["attempts"] == 1
    assert 0.3 < outcome["duration_s"] < 20


async def test_the_routes_retries_try_what_it_names_as_often_as_it_says(world):
    for name in ("main-0", "main-1"):
        await world.fail(name, "500")
    request_id = world.new_id()

    answer = await world.send(model="insistent", headers={"x-request-id": request_id})

    assert (answer.status, await attempts(world, request_id)) == (500, 4)


async def test_what_the_routes_retries_do_not_name_is_not_tried_again(world):
    for name in ("main-0", "main-1"):
        await world.fail(name, "503")
    request_id = world.new_id()

    answer = await world.send(model="insistent", headers={"x-request-id": request_id})

    assert (answer.status, await attempts(world, request_id)) == (503, 1)


async def attempts(world, request_id):
    return (await world.decision(request_id))["end"]["outcome"]["attempts"]


async def test_an_engine_that_falls_silent_in_a_stream_is_ended_with_an_error_event(world):
    before = await counted(world)
    request_id = world.new_id()
    given = a_body(CHAT, model="watched", max_tokens=3000, stream=True)
    body, frozen = b"", 0
    async with world.http.post(world.url + CHAT, json=given, headers={"x-request-id": request_id}) as answer:
        try:
            async for part in answer.content.iter_any():
                body += part
                if not frozen and body.count(b"\n\n") >= 3:
                    async with world.http.get(f"{world.stack.admin_url}/decisions/{request_id}") as page:
                        chosen = (await page.json(content_type=None))["endpoints"][0]
                    pod = next(name for name, address in (await world.engines()).items() if address == chosen)
                    frozen = world.pid(pod)
                    os.kill(frozen, signal.SIGSTOP)
        except aiohttp.ClientPayloadError:
            say("the stream was cut behind its error event")
        finally:
            if frozen:
                os.kill(frozen, signal.SIGCONT)

    error = json.loads(events(body)[-1])["error"]
    assert error["code"] == "stream_idle"
    assert set(error) == {"message", "type", "param", "code"}
    decision = await world.decision(request_id)
    assert decision["end"]["end"] == "failed"
    assert decision["end"]["failed"] == [chosen]
    assert await added(world, before) == once_each(1)
