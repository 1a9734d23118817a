"""Arrivals: the endpoints for which requests are held are chosen once Envoy has them, too.

Both hear of a pod by ways of their own. While a pool has endpoints, one that Envoy does not know yet is passed by; the first of a
pool has nobody beside it, so that requests that have waited a minute for it would be refused in the milliseconds between.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import aiohttp

from matrixinfer.api import dataplane, envoy_admin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from extproc.traffic.flow.gate import Gate

_LOG = logging.getLogger(__name__)
_ASK_EVERY_S: Final = 0.05
_WITHIN_S: Final = 5.0  # for Envoy to learn of it; then its silence must not hold anybody up


class Arrivals:
    """Knows which endpoints are to be waited for. On the loop only."""

    def __init__(self, gate: Gate, admin: Path) -> None:
        """`admin`: Unix socket of Envoy's admin interface."""
        self._gate = gate
        self._admin = admin
        self._there: set[str] = set()  # that Envoy has, of those that were waited for
        self._awaited: dict[str, tuple[str, float]] = {}  # by address: Envoy's cluster, and until when
        self._asking: asyncio.Task[None] | None = None

    def awaited(self, ready: Mapping[str, Iterable[str]], then: Callable[[], None]) -> frozenset[str]:
        """Return the addresses that are not to be chosen yet, of those that are ready by ModelServer; `then` hears when to ask again."""
        until = asyncio.get_running_loop().time() + _WITHIN_S
        seen = {address for addresses in ready.values() for address in addresses}
        self._there &= seen
        for server, addresses in ready.items():
            queue = self._gate.queues.get(server)
            if queue is None or not queue.count or not self._gate.held(server):
                continue
            cluster = dataplane.cluster_name(*server.split("/"))
            for address in set(addresses) - self._there:
                self._awaited.setdefault(address, (cluster, until))
        for address in self._awaited.keys() - seen:
            del self._awaited[address]
        if self._awaited and self._asking is None:
            self._asking = asyncio.create_task(self._ask(then))
        return frozenset(self._awaited)

    def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self, then: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._admin))) as session:
                while self._awaited:
                    healthy = await self._healthy(session)
                    now = loop.time()
                    came = {
                        address
                        for address, (cluster, until) in self._awaited.items()
                        if healthy is None or now >= until or address in healthy.get(cluster, ())
                    }
                    if came:
                        self._there |= came
                        self._awaited = {
                            address: kept for address, kept in self._awaited.items() if address not in came
                        }
                        then()
                    await asyncio.sleep(_ASK_EVERY_S)
        finally:
            self._asking = None
        if self._awaited:  # they came while the session was being closed
            then()

    async def _healthy(self, session: aiohttp.ClientSession) -> Mapping[str, frozenset[str]] | None:
        """Return Envoy's endpoints by cluster; None if it does not say."""
        try:
            async with asyncio.timeout(_WITHIN_S), session.get(envoy_admin.CLUSTERS) as answer:
                return envoy_admin.healthy(await answer.json(content_type=None))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            _LOG.warning(
                "Envoy does not say which endpoints it has", extra={"problem": str(error) or type(error).__name__}
            )
            return None
