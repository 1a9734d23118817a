"""Wake-ups: while requests wait for want of an engine, the cluster's feed is told, so that something may start one.

The gate is looked at twice a second, which costs nothing beside the start of an engine, and each ModelServer is told of when that
begins and every few seconds as long as it lasts. What the feed makes of it is its own business; no request waits for its answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from matrixinfer.cluster.protocol import ClusterError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from extproc.traffic.flow.gate import Gate

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.5
_TELL_EVERY_S: Final = 5.0
_WITHIN_S: Final = 5.0


class WakeUps:
    """Tells of the ModelServers for which requests are held."""

    def __init__(self, gate: Gate, tell: Callable[[str, str], Awaitable[None]], *, clock: Callable[[], float]) -> None:
        """`tell` takes the namespace and the name of a ModelServer."""
        self._gate = gate
        self._tell = tell
        self._clock = clock
        self._told: dict[str, float] = {}  # when, of those for which requests are held
        self._failing = False

    async def run(self) -> None:
        """Look and tell until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Tell what is due."""
        now, gate = self._clock(), self._gate
        held = [server for server, queue in gate.queues.items() if queue.count and gate.held(server)]
        told = self._told
        due = [server for server in held if server not in told or now - told[server] >= _TELL_EVERY_S]
        self._told = {server: now if server in due else told[server] for server in held}
        await asyncio.gather(*map(self._say, due))

    async def _say(self, server: str) -> None:
        namespace, _, name = server.partition("/")
        try:
            async with asyncio.timeout(_WITHIN_S):
                await self._tell(namespace, name)
        except (ClusterError, TimeoutError) as error:
            _LOG.log(
                logging.DEBUG if self._failing else logging.WARNING,
                "nobody hears that requests wait for an engine",
                extra={"server": server, "problem": str(error) or type(error).__name__},
            )
            self._failing = True
        else:
            self._failing = False
