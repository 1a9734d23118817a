"""Following over real sockets: engines' sides are ZMQ sockets of the test, replay buffers included."""

import asyncio
import time
from contextlib import asynccontextmanager, closing, suppress

import msgspec
import pytest
import zmq

from extproc.adapters import kv_sources
from extproc.adapters.kv_events import KvEvents
from extproc.adapters.kv_sources import Discovery, Source
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from tests.kvcache.builders import Engine, an_index, matched, prompt
from tests.local.waiting import eventually

ADDRESS = "127.0.0.1:9"  # nobody answers HTTP there: the annotation says where events are


class Http:
    def scheme(self, address):
        return "http"


class Publisher:
    """An engine's two sockets. Events are made by `Engine`, which belongs to an index that nobody asks."""

    def __init__(self, port=0, replay=0):
        self.engine = Engine(an_index(), 0)
        self._context = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._router = self._context.socket(zmq.ROUTER)
        self._pub.bind(f"tcp://127.0.0.1:{port or '*'}")
        self._router.bind(f"tcp://127.0.0.1:{replay or '*'}")
        self.port, self.replay = (
            int(one.get(zmq.LAST_ENDPOINT).rpartition(b":")[2]) for one in (self._pub, self._router)
        )
        self.questions = []
        asyncio.get_running_loop().add_reader(self._router.FD, self._answer)

    def publish(self, *made, lose=False):
        self.engine.clock = time.time()
        self.engine.publish(*made)
        number, payload = self.engine.past[-1]
        if not lose:
            self._pub.send_multipart((b"kv@x@demo", number.to_bytes(8, "big"), payload))

    def say(self, *frames):
        self._pub.send_multipart(frames)

    def store(self, tokens, first=0, **how):
        self.publish(self.engine.stored(tokens, first), **how)

    def close(self):
        if self._context.closed:
            return
        asyncio.get_running_loop().remove_reader(self._router.FD)
        self._context.destroy(linger=0)

    def _answer(self):
        while self._router.get(zmq.EVENTS) & zmq.POLLIN:
            client, empty, first = self._router.recv_multipart()
            self.questions.append(int.from_bytes(first, "big"))
            for number, payload in self.engine.past:
                if number >= self.questions[-1]:
                    self._router.send_multipart((client, empty, b"topic", number.to_bytes(8, "big"), payload))
            self._router.send_multipart((client, empty, b"", b"\xff" * 8, b""))


class Stage:
    def __init__(self):
        self.table, self.index = EndpointTable(), an_index()
        self.events = KvEvents(
            self.table, self.index, Http(), discovery=Discovery(), base_models=lambda _address, _row: ("demo",)
        )

    def add(self, publisher, pod="ns/one", address=ADDRESS):
        where = f"port={publisher.port},replay={publisher.replay}"
        return self.table.upsert(Endpoint(address, pod, "vLLM", kv_events=where))

    def holds(self, tokens, row=0):
        (blocks,) = matched(self.index, prompt(tokens), row)
        return blocks


@asynccontextmanager
async def a_stage():
    stage = Stage()
    task = asyncio.create_task(stage.events.run())
    try:
        yield stage
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def publisher():
    made = Publisher()
    yield made
    made.close()


async def test_what_was_before_is_replayed_and_what_comes_is_heard(publisher):
    publisher.store(range(8))
    async with a_stage() as stage:
        row = stage.add(publisher)
        assert await stage.events.warm(meet_s=20, replay_s=20)
        assert stage.holds(range(12), row) == 2
        assert stage.index.exact(row)

        publisher.store(range(12), first=2)
        await eventually(lambda: stage.holds(range(12), row) == 3)


async def test_a_changed_annotation_is_taken_up(publisher):
    async with a_stage() as stage:
        stage.add(publisher)
        assert await stage.events.warm(meet_s=20, replay_s=20)
        with closing(Publisher()) as other:
            other.store(range(8))
            row = stage.add(other)

            await eventually(lambda: stage.holds(range(12), row) == 2)


async def test_a_lost_batch_is_asked_for(publisher):
    async with a_stage() as stage:
        row = stage.add(publisher)
        assert await stage.events.warm(meet_s=20, replay_s=20)
        publisher.store(range(4))
        await eventually(lambda: stage.holds(range(12), row) == 1)
        publisher.store(range(8), first=1, lose=True)
        publisher.store(range(12), first=2)
        await eventually(lambda: stage.holds(range(12), row) == 3)

        assert publisher.questions == [0, 0]  # the second begins one batch early
        assert stage.index.stream_counts.gaps == 1


async def test_garbage_is_counted_and_the_stream_goes_on(publisher):
    async with a_stage() as stage:
        row = stage.add(publisher)
        assert await stage.events.warm(meet_s=20, replay_s=20)
        publisher.say(b"kv@x@demo")
        publisher.say(b"kv@x@demo", (0).to_bytes(8, "big"), b"\xc1nothing")
        publisher.store(range(4))
        await eventually(lambda: stage.holds(range(4), row) == 1)

        assert stage.index.replica_counts.unreadable == 2


async def test_an_engine_that_comes_back_anew_is_learned_anew(publisher):
    async with a_stage() as stage:
        row = stage.add(publisher)
        assert await stage.events.warm(meet_s=20, replay_s=20)
        publisher.store(range(8))
        await eventually(lambda: stage.holds(range(8), row) == 2)
        publisher.close()
        await eventually(lambda: not stage.index.exact(row))
        again = Publisher(publisher.port, publisher.replay)
        try:
            again.engine.seed = 99
            again.store(range(100, 104))
            await eventually(lambda: stage.index.exact(row) and stage.holds(range(100, 104), row) == 1)

            assert stage.holds(range(8), row) == 0
        finally:
            again.close()


async def test_pods_come_and_go_at_one_address(publisher):
    publisher.store(range(8))
    async with a_stage() as stage:
        row = stage.add(publisher)
        await eventually(lambda: stage.holds(range(8), row) == 2)
        stage.index.left(row)
        stage.table.remove(ADDRESS)
        assert stage.holds(range(8), row) == 0
        await eventually(lambda: not stage.events.following)

        row = stage.add(publisher, pod="ns/two")
        await eventually(lambda: stage.holds(range(8), row) == 2)


async def test_an_engine_that_nobody_reaches_holds_up_the_start_no_longer_than_said():
    async with a_stage() as stage:
        stage.table.upsert(Endpoint(ADDRESS, "ns/one", "vLLM"))
        assert await stage.events.warm(meet_s=20, replay_s=20)  # it says at once that nobody is there

        assert not stage.events.following


@pytest.mark.parametrize(
    ("value", "sources"),
    [
        ("none", ()),
        ("port=5557", (Source("tcp://10.0.0.1:5557"),)),
        ("port=5557, replay=6000", (Source("tcp://10.0.0.1:5557", "tcp://10.0.0.1:6000"),)),
        (
            "port=5557,replay=6000,ranks=2",
            (
                Source("tcp://10.0.0.1:5557", "tcp://10.0.0.1:6000"),
                Source("tcp://10.0.0.1:5558", "tcp://10.0.0.1:6001"),
            ),
        ),
    ],
)
def test_an_annotation_says_where_a_pod_publishes(value, sources):
    assert kv_sources.annotated("10.0.0.1", value) == sources


@pytest.mark.parametrize("value", ["5557", "port=x", "replay=5558", "port=70000", "port=5557,ranks=0", "port=5557;"])
def test_an_annotation_that_cannot_be_used_says_what_to_change(value):
    with pytest.raises(ValueError, match=kv_sources.ANNOTATION):
        kv_sources.annotated("10.0.0.1", value)


def test_an_engine_says_where_its_ranks_publish():
    page = msgspec.json.encode(
        {
            "0": {"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558", "topic": "", "publisher": "zmq"},
            "1": {"endpoint": "tcp://*:5558", "replay_endpoint": None},
            "2": {"endpoint": "inproc://cache"},
            "3": {"endpoint": "tcp://*:5559", "enable_kv_cache_events": False},
        }
    )
    assert kv_sources.told_by_engine("[::1]", page) == (
        Source("tcp://[::1]:5557", "tcp://[::1]:5558"),
        Source("tcp://[::1]:5558"),
    )
    assert kv_sources.told_by_engine("h", b"nothing") == ()
    assert kv_sources.told_by_engine("h", b'{"object": "list"}') == ()
