"""The loop: stores, queue, reconcile, perform."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.backoff import Backoff
from matrixinfer.cluster.loop import Controller, Loop, itself, owner
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.plan import Apply, ApplyStatus, Delete, Emit, Plan, Publish, SetStatus, Together
from matrixinfer.cluster.protocol import Conflict, Forbidden, Invalid, Key, NotFound, Unavailable
from matrixinfer.cluster.queue import WorkQueue
from tests.cluster.conformance import PATIENCE_S, WIDGET, a_widget, eventually, owned_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GADGET = WIDGET.__class__("conformance.matrixinfer.ai", "v1", "Gadget", "gadgets")


@pytest.fixture
def cluster():
    return MemoryCluster()


@contextlib.asynccontextmanager
async def running(cluster: Any, reconcile: Any, *, watches: Any = None, **options: Any) -> AsyncIterator[Loop]:
    queue: WorkQueue[Key] = WorkQueue(Backoff(first_s=0.001, most_s=0.01))
    controller = Controller("tester", reconcile, watches or {WIDGET: itself(WIDGET)})
    loop = Loop(cluster, controller, queue=queue, **options)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        loop.stop()
        async with asyncio.timeout(PATIENCE_S):
            await task


def a_gadget(widget) -> dict:
    meta = {"name": widget["metadata"]["name"], "namespace": "default"}
    gadget = {"apiVersion": GADGET.api_version, "kind": "Gadget", "metadata": meta, "spec": widget["spec"]}
    owned = owned_by(gadget, widget)
    owned["metadata"]["ownerReferences"][0]["controller"] = True
    return owned


def makes_gadgets(key: Key, world, now: float) -> Plan:
    widget = world.get(WIDGET, key.name, key.namespace)
    if widget is None:
        return Plan()
    made = world.owned(GADGET, widget["metadata"]["uid"])
    status = widget | {"status": {"gadgets": len(made), "at": now}}
    return Plan((Apply(GADGET, a_gadget(widget)), ApplyStatus(WIDGET, status)))


async def test_a_controller_makes_children_and_says_so_in_the_status(cluster):
    watches = {WIDGET: itself(WIDGET), GADGET: owner(WIDGET)}
    async with running(cluster, makes_gadgets, watches=watches, clock=lambda: 7.0):
        await cluster.create(WIDGET, a_widget("default", size=1))

        async def counted() -> bool:
            return (await cluster.get(WIDGET, "w", "default")).get("status") == {"gadgets": 1, "at": 7.0}

        await eventually(counted)
        await cluster.delete(GADGET, "w", "default")  # and it comes back

        async def back() -> bool:
            return len((await cluster.list(GADGET)).items) == 1

        await eventually(back)


async def test_nothing_is_decided_before_the_whole_world_is_known(cluster):
    await cluster.create(WIDGET, a_widget("default", size=1))
    await cluster.create(GADGET, a_gadget(await cluster.get(WIDGET, "w", "default")))
    listed = asyncio.Event()

    class Slow:
        """Lists gadgets when it may; all else is the cluster's."""

        def __getattr__(self, name):
            return getattr(cluster, name)

        async def list(self, kind, **options):
            if kind == GADGET:
                await listed.wait()
            return await cluster.list(kind, **options)

    found = []

    def counts(key, world, _now):
        found.append(len(world.all(GADGET)))
        return Plan()

    async with running(Slow(), counts, watches={WIDGET: itself(WIDGET), GADGET: owner(WIDGET)}) as loop:

        async def half() -> bool:
            return bool(loop.world.all(WIDGET))

        await eventually(half)
        loop.refresh()  # as a new leader does
        loop.touch(Key("Widget", "default", "w"))  # as somebody outside the cluster may
        for _ in range(20):
            await asyncio.sleep(0)
        early = list(found)
        listed.set()

        async def decided() -> bool:
            return bool(found)

        await eventually(decided)

    assert early == []
    assert set(found) == {1}


async def test_a_bug_is_tried_again_and_does_not_hold_up_others(cluster):
    failures = 3
    done = asyncio.Event()

    def reconcile(key: Key, world, now: float) -> Plan:
        nonlocal failures
        if key.name == "bad" and failures:
            failures -= 1
            raise KeyError("bug")
        if key.name == "bad":
            done.set()
        return Plan()

    async with running(cluster, reconcile):
        await cluster.create(WIDGET, a_widget("default", "bad"))
        await cluster.create(WIDGET, a_widget("default", "good"))
        await asyncio.wait_for(done.wait(), PATIENCE_S)

    assert failures == 0


@pytest.mark.parametrize("trouble", [Conflict("changed"), Unavailable("away")])
async def test_conflicts_and_outages_are_tried_again(cluster, trouble):
    class Troubled:
        left = 2

        def __getattr__(self, name):
            return getattr(cluster, name)

        async def apply(self, kind, manifest, **options):
            if self.left:
                self.left -= 1
                raise trouble
            return await cluster.apply(kind, manifest, **options)

    async with running(Troubled(), makes_gadgets, watches={WIDGET: itself(WIDGET), GADGET: owner(WIDGET)}):
        await cluster.create(WIDGET, a_widget("default"))

        async def made() -> bool:
            return len((await cluster.list(GADGET)).items) == 1

        await eventually(made)


async def test_values_are_published_and_a_plan_may_ask_to_come_again(cluster):
    published: asyncio.Queue = asyncio.Queue()
    count = 0

    def reconcile(key: Key, world, now: float) -> Plan:
        nonlocal count
        count += 1
        return Plan((Publish((str(key), count)),), requeue_after_s=0.001 if count < 3 else None)

    async with running(cluster, reconcile, publish=published.put_nowait):
        await cluster.create(WIDGET, a_widget("default"))
        async with asyncio.timeout(PATIENCE_S):
            values = [await published.get() for _ in range(3)]

    assert values == [("Widget default/w", 1), ("Widget default/w", 2), ("Widget default/w", 3)]


async def test_deletions_statuses_and_events_are_performed(cluster):
    victim = await cluster.create(WIDGET, a_widget("default", "victim"))
    done = asyncio.Event()

    def reconcile(key: Key, world, now: float) -> Plan:
        subject = world.get(WIDGET, "subject", "default")
        if key.name != "subject" or subject is None:
            return Plan()
        return Plan(
            (
                Delete(WIDGET, "victim", "default", uid=victim["metadata"]["uid"]),
                Delete(WIDGET, "never-was", "default"),
                SetStatus(WIDGET, {"metadata": {"name": "subject", "namespace": "default"}, "status": {"ok": True}}),
                SetStatus(WIDGET, {"metadata": {"name": "never-was", "namespace": "default"}, "status": {}}),
                Emit(subject, "Cleaned", "the victim is gone"),
                Emit(subject, "Cleaned", "the victim is gone"),
                Publish(None),
            )
        )

    async with running(cluster, reconcile, publish=lambda _: done.set()):
        await cluster.create(WIDGET, a_widget("default", "subject"))
        await asyncio.wait_for(done.wait(), PATIENCE_S)

    with pytest.raises(NotFound):
        await cluster.get(WIDGET, "victim", "default")
    subject = await cluster.get(WIDGET, "subject", "default")
    assert subject["status"] == {"ok": True}
    [event] = (await cluster.list(kinds.EVENT)).items
    assert (event["reason"], event["note"], event["type"]) == ("Cleaned", "the victim is gone", "Normal")
    assert event["regarding"]["uid"] == subject["metadata"]["uid"]
    assert event["series"]["count"] >= 2


async def test_what_is_new_and_stands_already_is_looked_at_again_and_left_as_it_is(cluster):
    await cluster.create(GADGET, a_gadget_named("w") | {"spec": {"size": 7}})
    looked = []

    def reconcile(key: Key, world, now: float) -> Plan:
        looked.append(key)
        return Plan((Apply(GADGET, a_gadget_named("w"), new=True),) if len(looked) < 3 else ())

    async with running(cluster, reconcile) as loop:
        await cluster.create(WIDGET, a_widget("default"))

        async def again() -> bool:
            return len(looked) >= 3 and not loop.waiting

        await eventually(again)

    assert (await cluster.get(GADGET, "w", "default"))["spec"] == {"size": 7}


async def test_one_key_is_never_worked_on_twice_at_a_time(cluster):
    working: set[str] = set()
    overlaps = []
    seen = 0

    class Slow:
        def __getattr__(self, name):
            return getattr(cluster, name)

        async def apply_status(self, kind, manifest, **options):
            nonlocal seen
            name = manifest["metadata"]["name"]
            if name in working:
                overlaps.append(name)
            working.add(name)
            for _ in range(5):
                await asyncio.sleep(0)
            working.discard(name)
            seen += 1

    def reconcile(key: Key, world, now: float) -> Plan:
        meta = {"name": key.name, "namespace": key.namespace}
        return Plan((ApplyStatus(WIDGET, {"metadata": meta, "status": {}}),))

    async with running(Slow(), reconcile, workers=4) as loop:
        for round_ in range(10):
            for name in ("a", "b"):
                loop.touch(Key("Widget", "default", name))
            for _ in range(round_):
                await asyncio.sleep(0)

        async def worked() -> bool:
            return seen >= 4

        await eventually(worked)

    assert overlaps == []


async def test_stop_finishes_what_is_being_worked_on(cluster):
    started, finish = asyncio.Event(), asyncio.Event()
    finished = []

    class Slow:
        def __getattr__(self, name):
            return getattr(cluster, name)

        async def apply_status(self, kind, manifest, **options):
            started.set()
            await finish.wait()
            finished.append(manifest["metadata"]["name"])

    def reconcile(key: Key, world, now: float) -> Plan:
        return Plan((ApplyStatus(WIDGET, {"metadata": {"name": key.name, "namespace": key.namespace}}),))

    loop = Loop(Slow(), Controller("tester", reconcile, {WIDGET: itself(WIDGET)}))
    task = asyncio.create_task(loop.run())
    await cluster.create(WIDGET, a_widget("default"))
    await asyncio.wait_for(started.wait(), PATIENCE_S)
    loop.stop()
    finish.set()
    await asyncio.wait_for(task, PATIENCE_S)

    assert finished == ["w"]


async def test_a_deleted_object_is_reconciled_once_more(cluster):
    present, absent = asyncio.Event(), asyncio.Event()

    def reconcile(key: Key, world, now: float) -> Plan:
        (absent if world.get(WIDGET, key.name, key.namespace) is None else present).set()
        return Plan()

    await cluster.create(WIDGET, a_widget("default"))
    async with running(cluster, reconcile):
        await asyncio.wait_for(present.wait(), PATIENCE_S)
        await cluster.delete(WIDGET, "w", "default")
        await asyncio.wait_for(absent.wait(), PATIENCE_S)


@pytest.mark.parametrize("error", [Invalid("spec.x: no"), Forbidden("exceeded quota")])
async def test_what_the_cluster_refuses_is_for_the_controller_to_say(cluster, error):
    said = asyncio.Event()

    class Refusing:
        def __getattr__(self, name):
            return getattr(cluster, name)

        async def apply(self, kind, manifest, **options):
            raise error

    def refused(key: Key, world, why, now: float) -> Plan:
        assert why is error
        said.set()
        return Plan()

    controller = Controller("tester", makes_gadgets, {WIDGET: itself(WIDGET), GADGET: owner(WIDGET)}, refused)
    loop = Loop(Refusing(), controller)
    task = asyncio.create_task(loop.run())
    await cluster.create(WIDGET, a_widget("default"))
    async with asyncio.timeout(PATIENCE_S):
        await said.wait()
        loop.stop()
        await task


async def test_what_is_done_together_is_all_tried_before_an_error_counts_and_what_follows_waits(cluster):
    tried = []

    class Picky:
        def __getattr__(self, name):
            return getattr(cluster, name)

        async def apply(self, kind, manifest, **options):
            tried.append(manifest["metadata"]["name"])
            if manifest["metadata"]["name"] == "bad" and tried.count("bad") == 1:
                raise Conflict("changed")
            return await cluster.apply(kind, manifest, **options)

    def reconcile(key: Key, world, now: float) -> Plan:
        names = ("bad", *(f"w{number}" for number in range(40)))
        many = Together(tuple(Apply(GADGET, a_gadget_named(name)) for name in names))
        return Plan((many, Apply(GADGET, a_gadget_named("last"))))

    async with running(Picky(), reconcile):
        await cluster.create(WIDGET, a_widget("default"))

        async def made() -> bool:
            return len((await cluster.list(GADGET)).items) == 42

        await eventually(made)

    assert len(set(tried[:41])) == 41
    assert tried.index("last") > 41


async def test_a_key_is_not_looked_at_again_before_its_writes_are_seen(cluster):
    """The watch is late, and a key that comes again at once must not decide on what stood before."""
    looks = []

    class Late:
        def __getattr__(self, name):
            return getattr(cluster, name)

        async def watch(self, kind, **options):
            async for event in cluster.watch(kind, **options):
                await asyncio.sleep(0.05 if kind == GADGET else 0)
                yield event

    def reconcile(key: Key, world, now: float) -> Plan:
        there = len(world.all(GADGET))
        looks.append(there)
        if there == 3:
            gadgets = world.all(GADGET)
            return Plan(tuple(Delete(GADGET, one["metadata"]["name"], "default") for one in gadgets[:2]))
        if looks == [0]:
            return Plan(tuple(Apply(GADGET, a_gadget_named(f"g{number}")) for number in range(3)), 0.0)
        return Plan()

    async with running(Late(), reconcile, watches={WIDGET: itself(WIDGET), GADGET: lambda *_: ()}) as loop:
        await cluster.create(WIDGET, a_widget("default"))

        async def deleted() -> bool:
            return len((await cluster.list(GADGET)).items) == 1

        await eventually(deleted)
        loop.touch(Key("Widget", "default", "w"))

        async def looked() -> bool:
            return len(looks) == 3

        await eventually(looked)

    assert looks == [0, 3, 1]


def a_gadget_named(name):
    return {"apiVersion": GADGET.api_version, "kind": "Gadget", "metadata": {"name": name, "namespace": "default"}}
