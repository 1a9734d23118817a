"""Follows the engines' KV events over ZMQ: one subscription for each rank of each endpoint, fed to the exact index.

Where an endpoint publishes is said by its pod's annotation, else by the engine itself (`GET /kv_event_sources`), else by the
configured port (kv_sources.py). Endpoints come and go with the table; a connection that breaks off is made again by ZMQ,
and what was missed meanwhile is asked of the engine's replay socket, which also tells whether it is the same engine still.

Sockets are watched by their file descriptors on the loop: an engine that says nothing costs nothing. Batches are applied in
slices of a few milliseconds, so that a replay of thousands of them holds up no request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import aiohttp
import zmq
from zmq.utils import monitor

from extproc.adapters import kv_sources
from extproc.kvcache import events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from extproc.adapters.kv_sources import Discovery, Source
    from extproc.adapters.scrape import Schemes
    from extproc.kvcache.exact import ExactIndex, Member
    from extproc.kvcache.stream import Step
    from extproc.scheduling.endpoints import Endpoint, EndpointTable

_LOG = logging.getLogger(__name__)
_LOOK_S: Final = 0.25  # how often newcomers and leavers are looked for
_TIDY_SEGMENTS: Final = 64  # of the index cleared of departed engines each time: under a millisecond
_SLICE_S: Final = 0.003  # of work before requests have their turn
_PAUSE_S: Final = 0.001
_REPLAY_S: Final = 10.0  # without an answer
_COOL_S: Final = 30.0  # after a replay that failed, none is asked for
_AGAIN_S: Final = 15.0  # engines that did not say where they publish are asked again
_HIGH_WATER: Final = 100_000  # messages kept for us, as vLLM keeps them
_END: Final = (1 << 64) - 1
_FRAMES: Final = 2  # number and payload, whatever stands before them
_HANDSHAKE: Final = zmq.Event.HANDSHAKE_SUCCEEDED
_LOST: Final = zmq.Event.DISCONNECTED


class _Following:
    """One rank's sockets."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], source: Source, member: Member, topic: bytes) -> None:
        self.member = member
        self.source = source
        self.lag_s = 0.0
        self.settled = False  # has had its first replay, or cannot have one
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._replay: zmq.Socket[bytes] | None = None
        self._timeout: asyncio.TimerHandle | None = None
        self._cool_until = -1e9
        self._pending: asyncio.Handle | None = None
        self._closed = False
        self._events = _socket(context, zmq.SUB, source.address)
        self._events.set(zmq.RCVHWM, _HIGH_WATER)
        self._events.set(zmq.SUBSCRIBE, topic)
        self._monitor = self._events.get_monitor_socket(_HANDSHAKE | _LOST)
        self._loop.add_reader(self._monitor.FD, self._watched)
        self._loop.add_reader(self._events.FD, self._work)
        self._events.connect(source.address)
        self._loop.call_soon(self._watched)  # a descriptor speaks up once its socket was looked at

    def close(self) -> None:
        """Follow it no more; what it holds is forgotten."""
        self._closed = True
        if self._pending is not None:
            self._pending.cancel()
        self._end_replay()
        self._loop.remove_reader(self._events.FD)
        self._loop.remove_reader(self._monitor.FD)
        self._events.disable_monitor()
        self._monitor.close(linger=0)
        self._events.close(linger=0)
        self.member.close()

    def _watched(self) -> None:
        """Take what became of the connection."""
        if self._closed:
            return
        while not self._closed and _readable(self._monitor):
            event = monitor.recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"]
            if event == _HANDSHAKE:
                self.member.connected(up=True)
                self._perform(self.member.stream.begin())
                if not self.member.stream.waiting:
                    self.settled = True
            elif event == _LOST:
                self.member.connected(up=False)
        self._soon()

    def _soon(self, delay_s: float = 0.0) -> None:
        if self._pending is None and not self._closed:
            self._pending = self._loop.call_later(delay_s, self._resume)

    def _resume(self) -> None:
        self._pending = None
        self._work()

    def _work(self) -> None:
        """Apply what has come, replays first; go on in a moment if it is much."""
        if self._closed or self._pending is not None:
            return
        until = time.perf_counter() + _SLICE_S
        self._take_replayed(until)
        while time.perf_counter() < until and not self._closed:
            if not _readable(self._events):
                return
            frames = self._events.recv_multipart(zmq.NOBLOCK)
            if len(frames) < _FRAMES:
                self.member.unreadable()
                continue
            number, payload = int.from_bytes(frames[-2], "big"), frames[-1]
            batch = events.read(payload)
            if batch is None:
                self.member.unreadable()
                self._perform(self.member.stream.lost())
                continue
            self.lag_s = time.time() - batch.at
            self._perform(self.member.stream.take(number, batch))
        self._soon(_PAUSE_S)

    def _perform(self, steps: Sequence[Step]) -> None:
        for ask in self.member.perform(steps):
            self._ask(ask.first)

    def _ask(self, first: int) -> None:
        """Ask the engine for past batches."""
        self._end_replay()
        if self.source.replay is None or self._loop.time() < self._cool_until:
            self._loop.call_soon(self._failed)
            return
        replay = _socket(self._context, zmq.DEALER, self.source.replay)
        replay.set(zmq.RCVHWM, _HIGH_WATER)
        replay.connect(self.source.replay)
        self._replay = replay
        self._loop.add_reader(replay.FD, self._work)
        self._timeout = self._loop.call_later(_REPLAY_S, self._late)
        replay.send_multipart((b"", first.to_bytes(8, "big")), zmq.NOBLOCK)
        self._soon()

    def _take_replayed(self, until: float) -> None:
        while self._replay is not None and time.perf_counter() < until:
            if not _readable(self._replay):
                return
            frames = self._replay.recv_multipart(zmq.NOBLOCK)
            if len(frames) < _FRAMES:
                continue
            number, payload = int.from_bytes(frames[-2], "big"), frames[-1]
            if number == _END:
                self._end_replay()
                self._perform(self.member.stream.replay_ended())
                self._note_settled()
                return
            self._put_off()
            batch = events.read(payload)
            if batch is None:
                self.member.unreadable()
            else:
                self._perform(self.member.stream.replayed(number, batch))
        if self._replay is not None:
            self._soon(_PAUSE_S)

    def _put_off(self) -> None:
        """Wait anew for the end of a replay that goes on."""
        if self._timeout is not None and self._timeout.when() - self._loop.time() < _REPLAY_S / 2:
            self._timeout.cancel()
            self._timeout = self._loop.call_later(_REPLAY_S, self._late)

    def _late(self) -> None:
        _LOG.info("an engine does not replay its KV events", extra={"replay": self.source.replay})
        self._cool_until = self._loop.time() + _COOL_S
        self._end_replay()
        self._failed()

    def _failed(self) -> None:
        if not self._closed:
            self._perform(self.member.stream.replay_failed())
            self._note_settled()

    def _note_settled(self) -> None:
        self.settled = self.settled or not self.member.stream.waiting

    def _end_replay(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
        if self._replay is not None:
            self._loop.remove_reader(self._replay.FD)
            self._replay.close(linger=0)
            self._replay = None


class KvEvents:
    """Keeps the exact index in step with the engines of the table. `run` is its one task."""

    def __init__(
        self,
        table: EndpointTable,
        index: ExactIndex,
        schemes: Schemes,
        *,
        discovery: Discovery,
        base_models: Callable[[str, int], tuple[str, ...]],
    ) -> None:
        """`base_models`: the names by which requests for an endpoint's base model reach it; empty: not known yet."""
        self.following: dict[str, list[_Following]] = {}  # by address
        self._table = table
        self._index = index
        self._schemes = schemes
        self._discovery = discovery
        self._base_models = base_models
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._met: dict[str, tuple[int, str, str]] = {}  # address -> row, pod, annotation: as they were when it was met
        self._ask_at: dict[str, float] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        timeout = aiohttp.ClientTimeout(total=3.0)
        async with aiohttp.ClientSession(
            timeout=timeout, connector=aiohttp.TCPConnector(ssl=False, force_close=True)
        ) as session:
            try:
                while True:
                    self._look(session)
                    self._index.index.expire(time.monotonic())
                    self._index.index.tidy(_TIDY_SEGMENTS)
                    await asyncio.sleep(_LOOK_S)
            finally:
                for task in self._asking.values():
                    task.cancel()
                for address in list(self.following):
                    self._leave(address)
                self._context.destroy(linger=0)

    def use(self, discovery: Discovery) -> None:
        """Find publishers by other rules from now on, and follow all of them anew."""
        self._discovery = discovery
        for address in {*self.following, *self._met}:
            self._leave(address)
        self._ask_at.clear()

    async def warm(self, *, meet_s: float, replay_s: float) -> bool:
        """Wait until all engines that publish have told what they hold; False if that takes longer.

        `meet_s`: for engines that have not said whether they publish; `replay_s`: for those that are telling.
        """
        if not self._discovery.enabled:
            return True
        start = time.monotonic()
        while (waited := time.monotonic() - start) < replay_s:
            met = all(address in self._met for address in self._ready())
            if (met or waited >= meet_s) and all(one.settled for many in self.following.values() for one in many):
                return met
            await asyncio.sleep(0.02)
        return False

    def _ready(self) -> list[str]:
        table = self._table
        return [one.address for row in table.rows() if (one := table.endpoints[row]) is not None and one.ready]

    def _look(self, session: aiohttp.ClientSession) -> None:
        """Meet newcomers and let leavers go."""
        if not self._discovery.enabled:
            return
        table, now = self._table, time.monotonic()
        here = {one.address: (row, one) for row in table.rows() if (one := table.endpoints[row]) is not None}
        for address, met in list(self._met.items()):
            if address not in here or met != _identity(*here[address]):
                self._leave(address)
        for address, (row, endpoint) in here.items():
            if address in self.following or address in self._asking or self._ask_at.get(address, 0.0) > now:
                continue
            if not endpoint.ready or not (models := self._base_models(address, row)):
                continue
            self._ask_at[address] = now + _AGAIN_S
            task = asyncio.create_task(self._meet(session, row, endpoint, models))
            self._asking[address] = task
            task.add_done_callback(partial(self._met_it, address))

    async def _meet(
        self, session: aiohttp.ClientSession, row: int, endpoint: Endpoint, models: tuple[str, ...]
    ) -> None:
        """Find out where an endpoint publishes, and listen."""
        address = endpoint.address
        try:
            sources = await kv_sources.find(session, self._schemes.scheme(address), endpoint, self._discovery)
        except ValueError as problem:
            _LOG.warning("KV events cannot be followed", extra={"endpoint": address, "problem": str(problem)})
            sources = ()
        if self._table.endpoints[row] is not endpoint and self._table.row(address) != row:
            return
        self._met[address] = _identity(row, endpoint)
        followed = []
        for source in sources:
            member = self._index.open(row, model=models[0], replays=source.replay is not None)
            member.alone = len(models) == 1
            try:
                followed.append(_Following(self._context, source, member, self._discovery.topic.encode()))
            except zmq.ZMQError as error:
                member.close()
                _LOG.warning("KV events cannot be followed", extra={"source": source.address, "problem": str(error)})
        if followed:
            self.following[address] = followed
            _LOG.info("following KV events", extra={"endpoint": address, "ranks": len(followed)})

    def _met_it(self, address: str, task: asyncio.Task[None]) -> None:
        self._asking.pop(address, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("an engine's KV events cannot be followed", extra={"endpoint": address}, exc_info=error)

    def _leave(self, address: str) -> None:
        for one in self.following.pop(address, ()):
            one.close()
        self._met.pop(address, None)
        self._ask_at.pop(address, None)


def _identity(row: int, endpoint: Endpoint) -> tuple[int, str, str]:
    return row, endpoint.pod, endpoint.kv_events


def _readable(socket: zmq.Socket[bytes]) -> bool:
    return bool(int(socket.get(zmq.EVENTS)) & zmq.POLLIN)


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, address: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.set(zmq.LINGER, 0)
    socket.set(zmq.RECONNECT_IVL, 250)
    socket.set(zmq.RECONNECT_IVL_MAX, 10_000)
    socket.set(zmq.TCP_KEEPALIVE, 1)
    socket.set(zmq.TCP_KEEPALIVE_IDLE, 60)
    if "[" in address:
        socket.set(zmq.IPV6, 1)
    return socket
