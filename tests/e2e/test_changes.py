"""The directory of manifests edited under load: what is said takes effect at once, what is wrong is told, nobody is failed."""

import json
import shutil
import time

import pytest
import pytest_asyncio

from tests.e2e.conftest import ENGINES
from tests.e2e.stack import a_pod, a_route, a_server, running, say
from tests.e2e.traffic import under_load
from tests.local.waiting import eventually, eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """Two ModelServers that both know `demo`; its route leads to the first."""
    documents = [a_pod(name) for name in ENGINES[:2]] + [a_pod("other-0", app="other")]
    documents += [a_server(), a_server("other", app="other"), a_route()]
    async with running(tmp_path_factory.mktemp("changes") / "manifests", *documents) as it:
        yield it


def put(world, name, text):
    """Write a manifest as editors do: whole, in one step. Returns when."""
    draft = world.directory.parent / "draft"
    draft.write_text(text)
    shutil.move(draft, world.directory / name)
    return time.monotonic()


async def target(world, **fields):
    """ModelServer to which a request goes now; the status if it goes to none, "" if a picker was late that is passed by then."""
    answer = await world.send(max_tokens=1, headers={"x-matrixinfer-explain": "1"}, **fields)
    if answer.status != 200:
        return answer.status
    decision = answer.headers.get("x-matrixinfer-decision")
    return json.loads(decision)["target"] if decision else ""


async def until(world, wanted, **fields):
    async def there():
        return await target(world, **fields) == wanted

    await eventually_async(there)


async def test_a_route_edited_on_disk_under_load_takes_effect_in_under_a_second_without_a_failed_request(world):
    took = []
    async with under_load(world, rate=100, tokens=10) as traffic:
        await until(world, "default/demo")
        for server in ("other", "demo") * 6:
            written = put(world, "modelroute-demo.yaml", a_route(server=server))
            await until(world, f"default/{server}")
            took.append(time.monotonic() - written)

    say(f"edits took {', '.join(f'{one * 1000:.0f} ms' for one in took)} under {len(traffic.samples)} requests")
    assert traffic.broken() == []
    assert sorted(took)[len(took) // 2] < 1.0  # the median: a shared machine may stop anybody for a second
    assert max(took) < 5.0


async def test_a_route_that_is_new_is_served_and_one_that_is_removed_is_a_404(world):
    async with under_load(world, rate=40, tokens=10) as traffic:
        written = put(world, "modelroute-new.yaml", a_route("new", server="other"))
        await until(world, "default/other", model="new")
        appeared = time.monotonic() - written
        (world.directory / "modelroute-new.yaml").unlink()
        removed = time.monotonic()
        await until(world, 404, model="new")
        say(f"a new route took {appeared * 1000:.0f} ms, its removal {(time.monotonic() - removed) * 1000:.0f} ms")

    assert traffic.broken() == []


BROKEN = {
    "no YAML": a_route() + "  - [",
    "a wrong type": a_route().replace("modelName: demo", "modelName: [demo]"),
    "an unknown field": a_route().replace("targetModels:", "targetModel:"),
    "no target": a_route().replace("    - modelServerName: demo\n", "    - weight: 1\n"),
    "a bad weight": a_route() + "      weight: heavy\n",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_edit_keeps_the_last_good_route_and_is_told(world, what):
    async with under_load(world, rate=30, tokens=5) as traffic:
        put(world, "modelroute-demo.yaml", BROKEN[what])
        await eventually(lambda: said(world))
        told = said(world)
        during = [await target(world) for _ in range(5)]
        put(world, "modelroute-demo.yaml", a_route())
        await eventually(lambda: not said(world))

    say(f"{what}: {told[0]}")
    assert during == ["default/demo"] * 5
    assert traffic.broken() == []
    assert all(finding.message and finding.line >= 1 for finding in told)


def said(world):
    """Errors in the route's file."""
    return [
        finding
        for finding in world.stack.findings
        if finding.file == "modelroute-demo.yaml" and finding.severity == "error"
    ]


async def test_a_route_to_a_model_server_that_is_missing_is_told_and_leaves_the_others_served(world):
    put(world, "modelroute-lost.yaml", a_route("lost", server="nowhere"))
    await eventually(lambda: any(finding.file == "modelroute-lost.yaml" for finding in world.stack.findings))

    answer = await world.send(model="lost")
    served = await target(world)
    (world.directory / "modelroute-lost.yaml").unlink()

    assert 400 <= answer.status < 600
    assert answer.error["message"]
    assert served == "default/demo"


async def test_a_route_that_is_there_twice_is_told_and_the_first_one_counts(world):
    put(world, "modelroute-twice.yaml", a_route(server="other"))
    await eventually(lambda: any(finding.file == "modelroute-twice.yaml" for finding in world.stack.findings))

    told = [str(finding) for finding in world.stack.findings if finding.file == "modelroute-twice.yaml"]
    served = [await target(world) for _ in range(5)]
    (world.directory / "modelroute-twice.yaml").unlink()

    assert any("is also in modelroute-demo.yaml" in one for one in told)
    assert served == ["default/demo"] * 5


async def test_a_pod_added_under_load_gets_traffic_and_one_removed_fails_no_request(world):
    async with under_load(world, rate=60, tokens=40) as traffic:
        put(world, "pod-demo-9.yaml", a_pod("demo-9"))
        await eventually_async(lambda: has_served(world, "demo-9", 10))
        pid = world.pid("demo-9")
        (world.directory / "pod-demo-9.yaml").unlink()
        await eventually(lambda: pid not in world.stack.pids().values())
        put(world, "pod-demo-9.yaml", a_pod("demo-9"))
        await eventually_async(lambda: has_served(world, "demo-9", 10))
    (world.directory / "pod-demo-9.yaml").unlink()

    say(f"{len(traffic.samples)} requests over a pod's coming, going and coming back")
    assert traffic.broken() == []
    assert (await world.settled())["matrixinfer_ledger_total{event=expired}"] == 0


async def has_served(world, name, least):
    return name in await world.engines() and await world.served(name) >= least
