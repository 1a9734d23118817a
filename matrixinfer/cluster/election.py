"""Stands for election by a Lease of the cluster, and stays leader as long as that can be had: the edge of `lease.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from matrixinfer.api import kinds
from matrixinfer.cluster.clock import boottime
from matrixinfer.cluster.lease import Look, Write
from matrixinfer.cluster.protocol import AlreadyExists, ClusterError, Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from matrixinfer.cluster.lease import Candidate
    from matrixinfer.cluster.protocol import Cluster, Manifest

log = logging.getLogger(__name__)

_AGAIN_S = 0.5  # after a failure: the lease runs out
_ARRIVES_S = 5.0  # a write that is on its way when all ends; nobody waits longer for it, and the lease runs out


def _wall() -> datetime:
    return datetime.now(UTC)


class Elector:
    """Keeps a candidate's part. `changed` is called with whether this process leads, each time that is another answer."""

    def __init__(  # noqa: PLR0913 - the edge: everything impure is an argument
        self,
        cluster: Cluster,
        candidate: Candidate,
        *,
        changed: Callable[[bool], None],
        clock: Callable[[], float] = boottime,
        wall: Callable[[], datetime] = _wall,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._cluster = cluster
        self._candidate = candidate
        self._changed = changed
        self._clock = clock
        self._wall = wall
        self._draw = draw
        self._led = False

    @property
    def leads(self) -> bool:
        """Whether this process may write now."""
        return self._candidate.leads(self._clock())

    async def run(self) -> None:
        """Stand, and keep what is won, until cancelled."""
        await self._look()
        while True:
            step = self._candidate.next(self._clock(), self._wall())
            if isinstance(step, Look):
                await self._sleep(step.after_s)
                await self._look()
            else:
                await self._sleep(self._candidate.terms.every_s if await self._write(step) else _AGAIN_S)

    async def release(self) -> None:
        """Let another start at once. Nothing may be on its way to be written any more, and `run` must have ended."""
        lease = self._candidate.release()
        self._tell()
        if lease is None:
            return
        try:
            await self._cluster.update(kinds.LEASE, lease)
        except ClusterError as error:
            log.info("the lease runs out by itself: %s", error)

    async def _sleep(self, seconds: float) -> None:
        """Wait, and notice meanwhile if the tenure ends."""
        until = self._clock() + seconds * (1 - self._draw() / 10)
        while (left_s := until - self._clock()) > 0:
            tenure_s = self._candidate.tenure.remaining(self._clock())
            await asyncio.sleep(min(left_s, tenure_s) if tenure_s > 0 else left_s)
            self._tell()

    async def _write(self, step: Write) -> bool:
        sent_at = self._clock()
        writing = asyncio.ensure_future(self._put(step.lease))
        try:
            written = await asyncio.shield(writing)
        except asyncio.CancelledError:  # what is on its way arrives all the same, and only who knows it can release it
            with contextlib.suppress(ClusterError, TimeoutError):
                self._candidate.wrote(await asyncio.wait_for(writing, _ARRIVES_S), sent_at)
            raise
        except (Conflict, AlreadyExists, NotFound):  # another was faster
            await self._look()
            return False
        except ClusterError as error:
            log.warning("lease %s: %s", self._candidate.name, error)
            return False
        finally:
            self._tell()
        self._candidate.wrote(written, sent_at)
        self._tell()
        return True

    async def _put(self, lease: Manifest) -> Manifest:
        if "resourceVersion" in lease["metadata"]:
            return await self._cluster.update(kinds.LEASE, lease)
        return await self._cluster.create(kinds.LEASE, lease)

    async def _look(self) -> None:
        try:
            self._candidate.saw(await self._read(), self._clock())
        except ClusterError as error:
            log.warning("lease %s: %s", self._candidate.name, error)
            await asyncio.sleep(_AGAIN_S)
        self._tell()

    async def _read(self) -> Manifest | None:
        try:
            return await self._cluster.get(kinds.LEASE, self._candidate.name, self._candidate.namespace)
        except NotFound:
            return None

    def _tell(self) -> None:
        if self.leads is not self._led:
            self._led = self.leads
            lease, holder = self._candidate.name, self._candidate.holder or "nobody"
            if self._led:
                log.info("lease %s: this process leads", lease)
            else:
                log.info("lease %s: this process does not lead any more; the last holder known is %s", lease, holder)
            self._changed(self._led)
