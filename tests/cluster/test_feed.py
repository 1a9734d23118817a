"""The feed over a real socket: reconnecting, other histories, many and stuck clients."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import tempfile
from pathlib import Path

import orjson
import pytest

from matrixinfer.api import kinds
from matrixinfer.cluster.feed import Feed, serve
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.cluster.protocol import EventType, NotFound, Unavailable
from matrixinfer.cluster.store import Store
from tests.cluster.conformance import PATIENCE_S, WIDGET, a_widget, eventually, next_events
from tests.cluster.test_store import QUICK, Recorder, running


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory() as directory:  # short: socket paths have a bound
        yield Path(directory) / "feed"


async def test_without_a_server_the_feed_is_unavailable(path):
    with pytest.raises(Unavailable):
        await Feed(path).list(WIDGET)


async def test_a_kind_that_is_not_served_is_not_found(path):
    async with serve(MemoryCluster(), path, [kinds.POD]):
        with pytest.raises(NotFound, match="Pod"):
            await Feed(path).list(WIDGET)


async def test_a_socket_that_a_dead_server_left_is_taken_over(path):
    async with serve(MemoryCluster(), path, [WIDGET]):
        left = path.with_name("left")
        path.rename(left)  # what a killed server leaves: a socket that nobody listens on any more
    async with serve(MemoryCluster(), left, [WIDGET]):
        assert (await Feed(left).list(WIDGET)).items == ()


async def test_managed_fields_are_left_out(path):
    cluster = MemoryCluster()
    await cluster.create(WIDGET, a_widget("default"))
    async with serve(cluster, path, [WIDGET]):
        [item] = (await Feed(path).list(WIDGET)).items

    assert "managedFields" not in item["metadata"]
    assert (await cluster.get(WIDGET, "w", "default"))["metadata"]["managedFields"]


async def test_a_watch_gets_heartbeats_that_move_it_on(path):
    cluster = MemoryCluster()
    async with serve(cluster, path, [WIDGET], heartbeat_s=0.01):
        since = (await cluster.list(WIDGET)).resource_version
        async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(Feed(path).watch(WIDGET, since=since)) as events:
            beats = [await anext(events) for _ in range(3)]

    assert {beat.type for beat in beats} == {EventType.BOOKMARK}
    assert beats[0].object["metadata"] == {"resourceVersion": since}


async def test_silence_is_unavailable(path):
    async with serve(MemoryCluster(), path, [WIDGET], heartbeat_s=60):
        feed = Feed(path, silence_s=0.05)
        since = (await feed.list(WIDGET)).resource_version
        events = feed.watch(WIDGET, since=since)
        assert (await anext(events)).type is EventType.BOOKMARK
        with pytest.raises(Unavailable):
            await asyncio.wait_for(anext(events), PATIENCE_S)


async def test_the_store_of_a_feed_survives_the_server_and_takes_up_its_next_life(path):
    first = MemoryCluster()
    await first.create(WIDGET, a_widget("default", "gone"))
    store = Store(Feed(path), WIDGET, backoff=QUICK)
    recorder = Recorder(store)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(contextlib.AsyncExitStack())
        await server.enter_async_context(serve(first, path, [WIDGET]))
        await stack.enter_async_context(running(store))
        assert await recorder.count(1) == [("added", "gone")]

        await server.aclose()
        assert [item["metadata"]["name"] for item in store.all()] == ["gone"]
        second = MemoryCluster()
        await second.create(WIDGET, a_widget("default", "new"))
        await stack.enter_async_context(serve(second, path, [WIDGET]))

        assert await recorder.count(3) == [("added", "gone"), ("deleted", "gone"), ("added", "new")]


async def test_the_store_of_a_feed_resumes_where_the_connection_broke(path):
    cluster = MemoryCluster()
    store = Store(Feed(path), WIDGET, backoff=QUICK)
    recorder = Recorder(store)
    async with contextlib.AsyncExitStack() as stack:
        async with serve(cluster, path, [WIDGET]):
            await stack.enter_async_context(running(store))
            await cluster.create(WIDGET, a_widget("default", "a"))
            await recorder.count(1)
        await cluster.create(WIDGET, a_widget("default", "b"))
        await cluster.delete(WIDGET, "a", "default")
        async with serve(cluster, path, [WIDGET]):
            assert await recorder.count(3) == [("added", "a"), ("added", "b"), ("deleted", "a")]


async def test_many_clients_see_the_same(path):
    cluster = MemoryCluster()
    since = (await cluster.list(WIDGET)).resource_version
    async with serve(cluster, path, [WIDGET]):
        watching = [asyncio.create_task(next_events(Feed(path), WIDGET, since, 20)) for _ in range(20)]
        for number in range(20):
            await cluster.create(WIDGET, a_widget("default", f"w{number:02}"))
            await asyncio.sleep(0)
        seen = await asyncio.gather(*watching)

    assert seen == [[("ADDED", f"w{number:02}") for number in range(20)]] * 20


async def test_a_stuck_client_holds_up_nobody_and_loses_its_connection(path):
    cluster = MemoryCluster()
    since = (await cluster.list(WIDGET)).resource_version
    async with serve(cluster, path, [WIDGET], patience_s=0.2):
        stuck = socket.socket(socket.AF_UNIX)
        stuck.connect(str(path))
        request = {"verb": "watch", "apiVersion": WIDGET.api_version, "kind": "Widget", "since": since}
        stuck.send(orjson.dumps(request) + b"\n")
        hang_up = select.poll()
        hang_up.register(stuck, select.POLLHUP)
        watching = asyncio.create_task(next_events(Feed(path), WIDGET, since, 100))
        for number in range(100):  # much more than a socket's buffers hold
            await cluster.create(WIDGET, a_widget("default", f"w{number:03}", filling="x" * 100_000))
            await asyncio.sleep(0)

        async def hung_up() -> bool:
            return bool(hang_up.poll(0))

        assert len(await watching) == 100
        await eventually(hung_up)
        stuck.close()


@pytest.mark.parametrize("request_", [b"", b"hello\n", b"[]\n", b'{"verb": "delete"}\n', b'{"verb": "list"}\n'])
async def test_nonsense_is_answered_with_a_status(path, request_):
    async with serve(MemoryCluster(), path, [WIDGET]):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(request_)
        writer.write_eof()
        async with asyncio.timeout(PATIENCE_S):
            answer = await reader.read()
        writer.close()

    if answer:  # who asks nothing and leaves gets no answer
        assert orjson.loads(answer)["type"] == "ERROR"
