"""What tenants were served at other pickers, through Redis: told and heard once a second, never by a request.

For every queue Redis has a hash, in which each picker adds what its tenants were charged, by tenant. What others have added
since the last time is charged here, too, to tenants that wait here: they compete, and nobody else does. A hash lasts for an
hour, so that tenants who are gone take no memory. While Redis is away each picker shares by what it serves itself, and
tells the rest later.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from extproc.adapters import telemetry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from extproc.traffic.flow.gate import Gate
    from extproc.traffic.flow.queue import Band

_LOG = logging.getLogger(__name__)
_EVERY_S: Final = 1.0  # in which tenants may differ by what the other pickers serve
_WITHIN_S: Final = 0.5
_EPOCH_S: Final = 3600
_PREFIX: Final = "matrixinfer:flow:"


class _Told(NamedTuple):
    """One queue's part of an exchange."""

    band: Band
    key: str
    fresh: dict[str, float]
    asked: list[str]  # tenants


class Shares:
    """Exchanges counters with other pickers while the configuration names a Redis."""

    def __init__(self, gate: Gate, client: Callable[[str], Any], epoch: Callable[[], float]) -> None:
        """`client` gives a connection to an address, `epoch` the seconds since 1970."""
        self.counts: Counter[str] = Counter()
        self._gate = gate
        self._client = client
        self._epoch = epoch
        self._seen: dict[str, dict[str, float]] = {}  # by key: totals as last heard, by tenant

    async def run(self) -> None:
        """Exchange until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.exchange()

    async def exchange(self) -> None:
        """Tell what was charged here, and charge what was served elsewhere."""
        rules = self._gate.rules
        if rules is None or not rules.redis:
            return
        told = self._gathered()
        if not told:
            return
        try:
            async with asyncio.timeout(_WITHIN_S):
                totals = await self._totals(self._client(rules.redis), told)
        except Exception as error:  # noqa: BLE001 - whatever the client raises: shares are local until it is back
            self.counts["failed"] += 1
            _LOG.log(
                logging.WARNING if self.counts["failed"] == 1 else logging.DEBUG,
                "Redis cannot share what tenants were served",
                extra={"address": rules.redis, "problem": str(error) or type(error).__name__},
            )
            for one in told:  # whether Redis took it is not known: better told twice than lost
                for tenant, tokens in one.fresh.items():
                    one.band.counters.fresh[tenant] = one.band.counters.fresh.get(tenant, 0.0) + tokens
            return
        self.counts["ok"] += 1
        for one, found in zip(told, totals, strict=True):
            self._hear(one, found)
        keys = {one.key for one in told}
        self._seen = {key: seen for key, seen in self._seen.items() if key in keys}

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics."""
        yield telemetry.counter(
            "matrixinfer_queue_exchanges",
            "Exchanges of tenants' counters with other pickers through Redis.",
            {(result,): float(number) for result, number in self.counts.items()},
            ("result",),
        )

    def _gathered(self) -> list[_Told]:
        hour = int(self._epoch() // _EPOCH_S)
        return [
            _Told(band, f"{_PREFIX}{{{server}}}/{priority}/{hour}", band.counters.taken(), list(band.flows))
            for server, queue in self._gate.queues.items()
            for priority, band in queue.bands.items()
        ]

    async def _totals(self, client: Any, told: list[_Told]) -> list[dict[str, float]]:
        """Add what is new, and return the totals of those that wait here."""
        return list(await asyncio.gather(*(self._total(client.execute_command, one) for one in told)))

    async def _total(self, run: Callable[..., Any], one: _Told) -> dict[str, float]:
        tenants = list({*one.fresh, *one.asked})
        if not tenants:
            return {}
        if one.fresh:
            added = (run("HINCRBYFLOAT", one.key, tenant, repr(tokens)) for tenant, tokens in one.fresh.items())
            await asyncio.gather(*added, run("EXPIRE", one.key, 2 * _EPOCH_S))
        values = await run("HMGET", one.key, *tenants)
        return {tenant: float(value or 0.0) for tenant, value in zip(tenants, values, strict=True)}

    def _hear(self, told: _Told, totals: dict[str, float]) -> None:
        """Charge what others have added to the tenants that wait here."""
        seen = self._seen.setdefault(told.key, {})
        for tenant, total in totals.items():
            before = seen.get(tenant)
            if before is not None and tenant in told.asked:
                others = total - before - told.fresh.get(tenant, 0.0)
                if others > 0:  # less: Redis lost its memory
                    told.band.counters.hear(tenant, others)
        for tenant in [one for one in seen if one not in totals]:
            del seen[tenant]  # it does not wait: what it is served meanwhile is not held against it
        seen.update(totals)
