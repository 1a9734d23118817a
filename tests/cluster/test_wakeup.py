"""Who waits for an engine: from the word of a picker, over a real socket, to the annotation of the ModelServer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest

from matrixinfer.api import kinds
from matrixinfer.api.dataplane import HELD_ANNOTATION
from matrixinfer.cluster.feed import KINDS, Feed, serve
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import Conflict, Forbidden, Invalid, NotFound, Unavailable
from matrixinfer.cluster.wakeup import MANAGER, WakeUp
from tests.cluster.conformance import PATIENCE_S, eventually

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def a_server(name="demo", **annotations):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelServer",
        "metadata": {"namespace": "ns", "name": name, "annotations": annotations},
        "spec": {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": name}},
            "workloadPort": {"port": 8000},
        },
    }


class Stage:
    """A cluster with a ModelServer, a clock, and wake-ups as of some pickers."""

    def __init__(self, cluster=None, pickers=1):
        self.now = NOON
        self.cluster = cluster or MemoryCluster()
        self.wakeups = [WakeUp(self.cluster, clock=lambda: self.now) for _ in range(pickers)]

    async def tell(self, picker=0, name="demo", after_s=0.0):
        self.now += timedelta(seconds=after_s)
        wakeup = self.wakeups[picker]
        wakeup.held("ns", name)
        await asyncio.gather(*wakeup._writing)

    async def server(self, name="demo"):
        return await self.cluster.get(kinds.MODEL_SERVER, name, "ns")

    async def said(self):
        return (await self.server())["metadata"].get("annotations", {}).get(HELD_ANNOTATION)

    async def version(self):
        return (await self.server())["metadata"]["resourceVersion"]


async def a_stage(**annotations):
    stage = Stage(pickers=2)
    await stage.cluster.create(kinds.MODEL_SERVER, a_server(**annotations))
    return stage


async def test_the_time_is_written_and_nothing_else_changes():
    stage = await a_stage(theirs="kept")
    before = await stage.server()
    await stage.tell()

    after = await stage.server()
    assert after["metadata"]["annotations"] == {"theirs": "kept", HELD_ANNOTATION: "2030-01-01T12:00:00Z"}
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["spec"] == before["spec"]
    owned = {each["manager"]: each["fieldsV1"] for each in after["metadata"]["managedFields"]}
    assert owned[MANAGER] == {"f:metadata": {"f:annotations": {f"f:{HELD_ANNOTATION}": {}}}}


async def test_it_is_written_once_in_ten_seconds_whoever_says_it():
    stage = await a_stage()
    versions = set()
    for second in range(25):
        for picker in (0, 1):
            await stage.tell(picker)
            versions.add(await stage.version())
        stage.now = NOON + timedelta(seconds=second + 1)

    assert len(versions) == 3
    assert await stage.said() == "2030-01-01T12:00:20Z"


async def test_a_user_who_applies_the_object_again_takes_the_time_away_from_nobody():
    stage = await a_stage()
    await stage.tell()
    await stage.cluster.apply(kinds.MODEL_SERVER, a_server(theirs="new"), manager="user", force=True)

    assert await stage.said() == "2030-01-01T12:00:00Z"


@pytest.mark.parametrize(
    "text", ["yesterday", "", "2030-01-01T12:00:00", "2031-01-01T12:00:00Z", "2020-01-01T12:00:00Z"]
)
async def test_what_somebody_else_wrote_there_is_written_over(text):
    stage = await a_stage(**{HELD_ANNOTATION: text})
    await stage.tell()

    assert await stage.said() == "2030-01-01T12:00:00Z"


async def test_a_clock_that_jumps_back_holds_up_nothing():
    stage = await a_stage()
    await stage.tell()
    await stage.tell(after_s=-3600)

    assert await stage.said() == "2030-01-01T11:00:00Z"


async def test_a_model_server_that_is_gone_is_not_made_anew():
    stage = Stage()
    await stage.tell()

    with pytest.raises(NotFound):
        await stage.server()


class Going(MemoryCluster):
    """A cluster in which the ModelServer is replaced by another one right after it was read."""

    async def get(self, kind, name, namespace=""):
        found = await super().get(kind, name, namespace)
        await self.delete(kind, name, namespace)
        await self.create(kind, a_server())
        return found


async def test_one_that_is_replaced_meanwhile_is_left_alone():
    stage = Stage(Going())
    await stage.cluster.create(kinds.MODEL_SERVER, a_server())
    await stage.tell()

    assert await stage.said() is None


class Refusing(MemoryCluster):
    """A cluster that refuses to be written, as long as it has a reason to."""

    error = None

    async def apply(self, kind, manifest, *, manager, force=False):
        if self.error is not None:
            raise self.error
        return await super().apply(kind, manifest, manager=manager, force=force)


@pytest.mark.parametrize("error", [Forbidden("no right"), Conflict("theirs"), Unavailable("away"), Invalid("bad")])
async def test_a_refusal_is_logged_once_and_tried_again(error, caplog):
    stage = Stage(Refusing())
    await stage.cluster.create(kinds.MODEL_SERVER, a_server())
    stage.cluster.error = error
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await stage.tell(after_s=10)
    assert [record.getMessage() for record in caplog.records] == [
        f"ModelServer ns/demo cannot be told that requests wait for an engine: {error}"
    ]

    stage.cluster.error = None
    await stage.tell(after_s=10)
    assert await stage.said() == "2030-01-01T12:01:00Z"


# The message, over the socket


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as directory:  # short: socket paths have a bound
        yield Path(directory) / "feed"


async def test_what_a_picker_says_comes_to_stand_on_the_object(path):
    cluster = MemoryCluster()
    await cluster.create(kinds.MODEL_SERVER, a_server())
    async with serve(cluster, path, KINDS):
        await Feed(path).held("ns", "demo")

        async def written():
            found = await cluster.get(kinds.MODEL_SERVER, "demo", "ns")
            return HELD_ANNOTATION in found["metadata"].get("annotations", {})

        await eventually(written)
        found = await cluster.get(kinds.MODEL_SERVER, "demo", "ns")
        said = datetime.fromisoformat(found["metadata"]["annotations"][HELD_ANNOTATION])

    assert abs(datetime.now(UTC) - said) < timedelta(minutes=1)


async def test_what_is_said_of_nothing_that_stands_is_heard_and_harmless(path):
    async with serve(MemoryCluster(), path, KINDS):
        await Feed(path).held("ns", "gone")
        await Feed(path).list(kinds.MODEL_SERVER)


@pytest.mark.parametrize("place", [("", "demo"), ("ns", ""), ("ns", "../../pods/x"), ("NS", "demo"), ("a.b", "demo")])
async def test_a_name_that_is_none_is_refused(path, place):
    async with serve(MemoryCluster(), path, KINDS):
        with pytest.raises(Invalid, match="must be a DNS"):
            await Feed(path).held(*place)


async def test_nothing_but_model_servers_is_said_to_be_held(path):
    async with serve(MemoryCluster(), path, KINDS):
        reader, writer = await asyncio.open_unix_connection(path)
        asked = {"verb": "held", "apiVersion": "v1", "kind": "Pod", "namespace": "ns", "name": "demo"}
        writer.write(orjson.dumps(asked) + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            answer = orjson.loads(await reader.readline())
        writer.close()

    assert answer["type"] == "ERROR"
    assert "not for a Pod" in answer["object"]["message"]


async def test_without_anybody_who_hears_it_is_unavailable(path):
    with pytest.raises(Unavailable):
        await Feed(path).held("ns", "demo")


async def test_who_hears_and_goes_is_unavailable(path):
    async def hang_up(_reader, writer):
        writer.close()

    async with await asyncio.start_unix_server(hang_up, path):
        with pytest.raises(Unavailable):
            await Feed(path).held("ns", "demo")


class Stuck(MemoryCluster):
    """A cluster that does not answer."""

    async def get(self, _kind, _name, _namespace=""):
        await asyncio.Event().wait()


async def test_a_cluster_that_does_not_answer_holds_up_neither_pickers_nor_the_end(path):
    async with asyncio.timeout(PATIENCE_S), contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serve(Stuck(), path, KINDS))
        for _ in range(3):
            await Feed(path).held("ns", "demo")
