"""Writes Events beside the loop, one at a time: what is only said holds up nothing that is done.

They are written in the order in which they were said, one on its way at a time, so that a server that is busy is asked for few. What
waits is bounded: the oldest give way to newer ones, warnings last, since conditions say how things stand; how many did is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from matrixinfer.api import kinds
from matrixinfer.cluster.events import Recorder
from matrixinfer.cluster.protocol import AlreadyExists, ClusterError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixinfer.cluster.plan import Emit
    from matrixinfer.cluster.protocol import Cluster, Manifest

log = logging.getLogger(__name__)

_WAITING_AT_MOST: Final = 512


class Teller:
    """What one controller says. `clock` tells the time of day; while `may_write` says no, nothing is written.

    `run` writes until cancelled; `finish` gives it the time to write what has been said.
    """

    def __init__(
        self, cluster: Cluster, controller: str, *, clock: Callable[[], float], may_write: Callable[[], bool]
    ) -> None:
        self._cluster = cluster
        self._controller = controller
        self._clock = clock
        self._may_write = may_write
        self._recorder = Recorder(controller)
        self._waiting: deque[Manifest] = deque()
        self._news = asyncio.Event()
        self._told = asyncio.Event()  # nothing waits, and nothing is on its way
        self._told.set()
        self._left_out = 0

    def say(self, emit: Emit) -> None:
        """Have the Event written, or counted if the same has been said before."""
        event = self._recorder.record(emit, self._clock())
        if event is None:
            return
        if len(self._waiting) == _WAITING_AT_MOST:
            del self._waiting[next((at for at, one in enumerate(self._waiting) if one["type"] == "Normal"), 0)]
            self._left_out += 1
        self._waiting.append(event)
        self._told.clear()
        self._news.set()

    async def run(self) -> None:
        """Write what is said."""
        while True:
            if not self._waiting:
                self._rest()
                await self._news.wait()
            event = self._waiting.popleft()
            if self._may_write():
                await self._write(event)

    async def finish(self, within_s: float) -> None:
        """Return when what has been said is written, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._told.wait()

    def _rest(self) -> None:
        if self._left_out:
            log.warning("%s: too much was said at once: %d events were left out", self._controller, self._left_out)
            self._left_out = 0
        self._news.clear()
        self._told.set()

    async def _write(self, event: Manifest) -> None:
        """Create the Event, or count one more of it. It may fail: it is logged."""
        try:
            if "series" in event:
                await self._cluster.apply(kinds.EVENT, event, manager=self._controller, force=True)
            else:
                await self._first(event)
        except ClusterError as error:
            log.warning("%s: an event could not be written: %s: %s", self._controller, error, event["note"])
            if isinstance(error, Unavailable):  # nor could those behind it
                self._left_out += len(self._waiting)
                self._waiting.clear()
        except Exception:  # a bug: this task's root
            log.exception("%s: an event could not be written: %s", self._controller, event["note"])

    async def _first(self, event: Manifest) -> None:
        try:
            await self._cluster.create(kinds.EVENT, event)
        except AlreadyExists:  # an earlier process has said the same
            stands = await self._cluster.get(kinds.EVENT, event["metadata"]["name"], event["metadata"]["namespace"])
            again = self._recorder.resume(stands, self._clock())
            await self._cluster.apply(kinds.EVENT, again, manager=self._controller, force=True)
