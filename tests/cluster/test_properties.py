"""What holds for every interleaving: watchers, apply, generations."""

from __future__ import annotations

import asyncio
import contextlib
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrixinfer.cluster import ownership
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import Conflict, EventType, Expired, NotFound
from tests.cluster.conformance import WIDGET, a_widget

names = st.sampled_from(["a", "b", "c"])
writes = st.one_of(
    st.tuples(st.just("create"), names),
    st.tuples(st.just("update"), names),
    st.tuples(st.just("status"), names),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("yield"), st.just("")),
    st.tuples(st.just("watch"), st.just("")),
)


async def write(cluster: MemoryCluster, verb: str, name: str, number: int) -> tuple[EventType, str, str] | None:
    """Do it, and say what a watcher should see: type, name, resource version."""
    place = {"metadata": {"name": name, "namespace": "default"}}
    try:
        if verb == "create":
            if any(item["metadata"]["name"] == name for item in (await cluster.list(WIDGET)).items):
                return None
            stands = await cluster.create(WIDGET, a_widget("default", name, number=number))
            return EventType.ADDED, name, stands["metadata"]["resourceVersion"]
        if verb == "update":
            stands = await cluster.update(WIDGET, place | {"spec": {"number": number}})
        elif verb == "status":
            stands = await cluster.update_status(WIDGET, place | {"status": {"number": number}})
        else:
            await cluster.delete(WIDGET, name, "default")
            return EventType.DELETED, name, (await cluster.list(WIDGET)).resource_version
    except NotFound:
        return None
    return EventType.MODIFIED, name, stands["metadata"]["resourceVersion"]


class Watcher:
    """Reads at a pace of its own, and knows what it should have seen when."""

    def __init__(self, cluster: MemoryCluster, since: str, begun: int, chance: random.Random) -> None:
        self.begun = begun
        self.seen: list[tuple[EventType, str, str]] = []
        self.task = asyncio.create_task(self._run(cluster, since, chance))
        self._grown = asyncio.Event()

    async def _run(self, cluster: MemoryCluster, since: str, chance: random.Random) -> None:
        async with contextlib.aclosing(cluster.watch(WIDGET, since=since)) as events:
            async for event in events:
                meta = event.object["metadata"]
                if event.type is not EventType.BOOKMARK:
                    self.seen.append((event.type, meta["name"], meta["resourceVersion"]))
                    self._grown.set()
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)

    async def has_seen(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.seen) < count:
                self._grown.clear()
                await self._grown.wait()


@given(st.lists(writes, max_size=40), st.integers(0, 2**32))
def test_every_watcher_sees_exactly_the_changes_since_it_began(steps, seed):
    async def story() -> None:
        cluster = MemoryCluster(bookmark_every_s=0.001)
        chance = random.Random(seed)
        happened: list[tuple[EventType, str, str]] = []
        watchers: list[Watcher] = []
        for number, (verb, name) in enumerate(steps):
            if verb == "watch":
                since = (await cluster.list(WIDGET)).resource_version
                watchers.append(Watcher(cluster, since, len(happened), chance))
            elif verb == "yield":
                await asyncio.sleep(0)
            elif (event := await write(cluster, verb, name, number)) is not None:
                happened.append(event)
        for watcher in watchers:
            await watcher.has_seen(len(happened) - watcher.begun)
            watcher.task.cancel()
            assert watcher.seen == happened[watcher.begun :]
        await asyncio.gather(*(watcher.task for watcher in watchers), return_exceptions=True)

    asyncio.run(story())


@given(st.lists(writes, max_size=30), st.integers(0, 30))
def test_list_then_watch_gives_what_stands_wherever_the_watch_broke_off(steps, broke_off):
    async def story() -> None:
        cluster = MemoryCluster()
        known: dict[str, dict] = {}
        since = (await cluster.list(WIDGET)).resource_version
        for number, (verb, name) in enumerate(steps):
            if verb not in ("watch", "yield"):
                await write(cluster, verb, name, number)
            if number == broke_off:
                since = await drain(cluster, since, known)
        await drain(cluster, since, known)

        assert known == {item["metadata"]["name"]: item for item in (await cluster.list(WIDGET)).items}

    async def drain(cluster: MemoryCluster, since: str, known: dict[str, dict]) -> str:
        end = (await cluster.list(WIDGET)).resource_version
        if since == end:
            return since
        async with asyncio.timeout(20), contextlib.aclosing(cluster.watch(WIDGET, since=since)) as events:
            async for event in events:
                name = event.object["metadata"]["name"]
                known[name] = event.object
                if event.type is EventType.DELETED:
                    del known[name]
                if event.object["metadata"]["resourceVersion"] == end:
                    break
        return end

    asyncio.run(story())


async def test_a_watcher_that_falls_behind_the_history_is_expired():
    cluster = MemoryCluster(kept=5)
    since = (await cluster.list(WIDGET)).resource_version
    async with contextlib.aclosing(cluster.watch(WIDGET, since=since)) as events:
        await cluster.create(WIDGET, a_widget("default", "first"))
        assert (await anext(events)).object["metadata"]["name"] == "first"
        for number in range(7):
            await cluster.create(WIDGET, a_widget("default", f"w{number}"))

        with pytest.raises(Expired):
            await anext(events)
    with pytest.raises(Expired):
        await anext(cluster.watch(WIDGET, since=since))


async def test_a_busy_kind_does_not_expire_the_watch_of_another():
    cluster = MemoryCluster(kept=5)
    since = (await cluster.list(WIDGET)).resource_version
    for number in range(20):
        config = {"metadata": {"name": f"c{number}", "namespace": "default"}}
        await cluster.create(WIDGET.__class__("", "v1", "ConfigMap", "configmaps", status=False), config)
    await cluster.create(WIDGET, a_widget("default"))

    assert (await anext(cluster.watch(WIDGET, since=since))).type is EventType.ADDED


async def test_a_bookmark_moves_an_idle_watch_on():
    cluster = MemoryCluster(kept=5, bookmark_every_s=0.01)
    since = (await cluster.list(WIDGET)).resource_version
    await cluster.create(WIDGET, a_widget("elsewhere"))

    event = await anext(cluster.watch(WIDGET, since=since, namespace="default"))

    assert event.type is EventType.BOOKMARK
    assert event.object["metadata"] == {"resourceVersion": (await cluster.list(WIDGET)).resource_version}


async def test_a_version_of_an_earlier_life_is_expired():
    before = MemoryCluster(clock=lambda: datetime(2030, 1, 1, tzinfo=UTC))
    await before.create(WIDGET, a_widget("default"))
    since = (await before.list(WIDGET)).resource_version
    for year in (2029, 2031):
        after = MemoryCluster(clock=lambda year=year: datetime(year, 1, 1, tzinfo=UTC))
        with pytest.raises(Expired):
            await anext(after.watch(WIDGET, since=since))


leaves = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["x", "y"]))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3)
    ),
    max_leaves=8,
)
env = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from(["A", "B", "C"])}, optional={"value": st.sampled_from(["1", "2"])}),
    max_size=3,
    unique_by=lambda item: item["name"],
)
containers = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "y"])}, optional={"image": st.sampled_from(["i", "j"]), "env": env}
    ),
    max_size=2,
    unique_by=lambda item: item["name"],
)
specs = st.fixed_dictionaries({}, optional={"free": values, "containers": containers})


@given(st.lists(st.tuples(st.sampled_from(["one", "two", "update"]), specs), min_size=1, max_size=6), specs)
def test_a_forced_apply_leaves_what_it_says_and_again_changes_nothing(history, last):
    async def story() -> None:
        cluster = MemoryCluster()
        await cluster.create(WIDGET, a_widget("default"))
        for manager, spec in history:
            if manager == "update":
                await cluster.update(WIDGET, a_widget("default", **spec))
            else:
                await cluster.apply(WIDGET, a_widget("default", **spec), manager=manager, force=True)
        applied = await cluster.apply(WIDGET, a_widget("default", **last), manager="one", force=True)

        assert await cluster.apply(WIDGET, a_widget("default", **last), manager="one") == applied
        wanted = ownership.flatten(without_nulls({"spec": last}))
        wanted = {path: value for path, value in wanted.items() if value not in (b"{}", b"[]")}  # others may fill those
        assert wanted.items() <= ownership.flatten(applied).items()

    asyncio.run(story())


@given(specs, specs)
def test_what_one_manager_applies_and_drops_leaves_no_trace(base, extra):
    async def story() -> None:
        cluster = MemoryCluster()
        await cluster.apply(WIDGET, a_widget("default", **base), manager="one")
        before = await cluster.get(WIDGET, "w", "default")
        try:
            await cluster.apply(WIDGET, a_widget("default", **extra), manager="two")
        except Conflict:
            return
        await cluster.apply(WIDGET, a_widget("default"), manager="two")

        after = await cluster.get(WIDGET, "w", "default")
        assert ownership.flatten(after) == ownership.flatten(before)

    asyncio.run(story())


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


changes = st.tuples(st.sampled_from(["spec", "status", "labels", "scale"]), st.integers(0, 2))


@given(st.lists(changes, max_size=20))
def test_generation_counts_exactly_the_changes_of_the_spec(steps):
    async def story() -> None:
        cluster = MemoryCluster()
        stands = await cluster.create(WIDGET, a_widget("default", number=0, replicas=0))
        for part, number in steps:
            before = stands
            if part == "spec":
                stands = await cluster.update(WIDGET, before | {"spec": before["spec"] | {"number": number}})
            elif part == "status":
                stands = await cluster.update_status(WIDGET, before | {"status": {"number": number}})
            elif part == "labels":
                labels = {"metadata": before["metadata"] | {"labels": {"number": str(number)}}}
                stands = await cluster.update(WIDGET, before | labels)
            else:
                await cluster.scale(WIDGET, "w", "default", number)
                stands = await cluster.get(WIDGET, "w", "default")
            counted = stands["metadata"]["generation"] - before["metadata"]["generation"]
            assert counted == int(stands["spec"] != before["spec"])
            same = stands["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
            assert same == (stands == before)

    asyncio.run(story())
