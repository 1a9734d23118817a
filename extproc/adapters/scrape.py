"""Asks the engines how they are: /metrics often where there is work, seldom where there is none; /v1/models rarely.

Our own in-flight counts are exact at once; what is scraped adds the load that others put on an engine, and tells that it
lives. So a busy engine is asked about once a second, an idle one every few seconds, and the more of them there are the
more seldom, which bounds what all of it costs. An engine that cannot be reached is avoided until it answers again.

One tick looks at all endpoints; a few requests at a time run beside it, over connections that stay open.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import aiohttp
import msgspec

from extproc.adapters import pages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Draw

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, how long, how many at once. Times in seconds."""

    tick_s: float = 0.1
    busy_s: float = 0.8  # an engine with requests; a page costs as much as two or three decisions (Kthena: 1 s)
    idle_s: float = 2.0  # an engine without
    spread_s: float = 0.05  # of further interval for each endpoint: 100 idle ones are asked every 5 s, 20 a second
    busy_spread_s: float = 0.02  # the same for busy ones: at most 50 a second
    models_s: float = 15.0  # adapters come and go by hand
    timeout_s: float = 3.0  # an engine in a long prefill answers late
    concurrency: int = 16
    misses: int = 3  # failures in a row after which an engine is avoided
    max_page_bytes: int = 8 << 20


class Schemes(Protocol):
    """Knows how engines are spoken to."""

    def scheme(self, address: str) -> str:
        """Return http or https."""
        ...


@dataclass(slots=True)
class _Target:
    due: float
    models_due: float
    running: bool = False
    misses: int = 0
    asked_at: float = -1e9


@dataclass(slots=True)
class Counts:
    """What came of the requests."""

    pages: int = 0
    failures: int = 0
    unreadable: int = 0  # pages without a metric that we know


class Scraper:
    """Keeps the scraped columns of the table. `run` is its one task."""

    def __init__(
        self,
        table: EndpointTable,
        schemes: Schemes,
        *,
        clock: Callable[[], float],
        draw: Draw,
        pace: Pace | None = None,
    ) -> None:
        self.counts = Counts()
        self.heard: Callable[[], None] = lambda: None  # called when an engine has told its load
        self._table = table
        self._schemes = schemes
        self._clock = clock
        self._draw = draw
        self._pace = pace or Pace()
        self._watched: Mapping[str, Mapping[str, pages.Metric]] = {}
        self._targets: dict[str, _Target] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def watch(self, metrics: Mapping[str, Mapping[str, pages.Metric]]) -> None:
        """Read these from now on, too: by engine, by the attribute's name."""
        self._watched = metrics
        self._table.watch({name for named in metrics.values() for name in named})

    async def run(self) -> None:
        """Scrape until cancelled."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, ssl=False)
        timeout = aiohttp.ClientTimeout(total=self._pace.timeout_s)
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            auto_decompress=False,
            headers={"accept-encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            try:
                while True:
                    self._tick(session)
                    await asyncio.sleep(self._pace.tick_s)
            finally:
                for task in self._asking:
                    task.cancel()

    def _tick(self, session: aiohttp.ClientSession) -> None:
        now = self._clock()
        table, targets = self._table, self._targets
        present = table.rows()
        if len(targets) != len(present) or any(table.address(row) not in targets for row in present):
            self._meet(now)
        busy_s, idle_s = self._intervals(len(present))
        inflight = table.inflight
        for row in present:
            address = table.address(row)
            target = targets[address]
            if target.running:
                continue
            wanted = now >= target.due or (inflight[row] and now - target.asked_at >= busy_s)
            if wanted and len(self._asking) < self._pace.concurrency:
                target.running, target.asked_at = True, now
                task = asyncio.get_running_loop().create_task(self._ask(session, address, target, (busy_s, idle_s)))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    def _intervals(self, endpoints: int) -> tuple[float, float]:
        pace = self._pace
        return max(pace.busy_s, endpoints * pace.busy_spread_s), max(pace.idle_s, endpoints * pace.spread_s)

    def _meet(self, now: float) -> None:
        """Begin with newcomers, spread over an interval once there are many; forget who left."""
        table = self._table
        addresses = {table.address(row) for row in table.rows()}
        for address in self._targets.keys() - addresses:
            del self._targets[address]
        newcomers = addresses - self._targets.keys()
        span = min(self._pace.idle_s, len(newcomers) * self._pace.busy_spread_s)
        for address in newcomers:
            due = now + span * self._draw.random()
            self._targets[address] = _Target(due=due, models_due=due)

    async def _ask(
        self, session: aiohttp.ClientSession, address: str, target: _Target, intervals: tuple[float, float]
    ) -> None:
        busy = False
        try:
            busy = await self._ask_load(session, address)
            if self._clock() >= target.models_due:
                target.models_due = self._clock() + self._pace.models_s
                await self._ask_models(session, address)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._missed(address, target, error)
        else:
            self._answered(address, target)
        finally:
            doubtful = 0 < target.misses < self._pace.misses
            interval = intervals[0] if busy or doubtful else intervals[1]
            target.due = self._clock() + interval * (0.9 + 0.2 * self._draw.random())
            target.running = False

    async def _ask_load(self, session: aiohttp.ClientSession, address: str) -> bool:
        """Write what the engine reports; tells whether it has work."""
        before = self._table.row(address)
        seen = (0, 0) if before is None else (self._table.inflight[before], self._table.inflight_tokens[before])
        status, page = await self._get(session, address, "/metrics")
        row = self._table.row(address)
        endpoint = None if row is None else self._table.endpoints[row]
        if row is None or endpoint is None:
            return False
        found = pages.load(page, pages.NAMES[endpoint.engine]) if status == 200 else None  # noqa: PLR2004 - HTTP's OK
        if found is None:
            self.counts.unreadable += 1
            return False
        self.counts.pages += 1
        table = self._table
        table.waiting[row], table.running[row], table.kv_usage[row] = found.waiting, found.running, found.kv_usage
        table.inflight_scraped[row], table.inflight_tokens_scraped[row] = seen
        table.kv_tokens[row], table.lora[row] = found.kv_tokens, found.lora
        for name, wanted in self._watched.get(endpoint.engine, {}).items():
            table.attributes[name][row] = pages.attribute(page, wanted)
        table.scraped_at[row] = self._clock()
        self.heard()
        return bool(found.waiting or found.running)

    async def _ask_models(self, session: aiohttp.ClientSession, address: str) -> None:
        status, body = await self._get(session, address, "/v1/models")
        row = self._table.row(address)
        if row is None or status != 200:  # noqa: PLR2004 - HTTP's OK
            return
        with suppress(msgspec.MsgspecError):
            found = _models(body).data
            self._table.models[row] = frozenset(model.id for model in found)
            self._table.adapters[row] = frozenset(model.id for model in found if model.parent)

    async def _get(self, session: aiohttp.ClientSession, address: str, path: str) -> tuple[int, bytes]:
        url = f"{self._schemes.scheme(address)}://{address}{path}"
        async with session.get(url, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._pace.max_page_bytes:
                    raise aiohttp.ClientPayloadError("the page is too large")
            return response.status, bytes(body)

    def _answered(self, address: str, target: _Target) -> None:
        if target.misses >= self._pace.misses:
            _LOG.info("an engine answers again", extra={"endpoint": address})
            row = self._table.row(address)
            if row is not None:
                self._table.avoid_until[row] = 0.0
        target.misses = 0

    def _missed(self, address: str, target: _Target, error: Exception) -> None:
        """Count a failure; after some in a row the endpoint is avoided until shortly after the next question."""
        self.counts.failures += 1
        target.misses += 1
        if target.misses < self._pace.misses:
            return
        row = self._table.row(address)
        endpoint = None if row is None else self._table.endpoints[row]
        if row is not None and endpoint is not None:
            if target.misses == self._pace.misses and endpoint.ready:  # one that starts is silent for long
                _LOG.warning("an engine does not answer", extra={"endpoint": address, "error": type(error).__name__})
            until = self._clock() + 2 * self._pace.idle_s + self._pace.timeout_s
            self._table.avoid_until[row] = max(self._table.avoid_until[row], until)


class _Model(msgspec.Struct):
    id: str
    parent: object = None  # of an adapter: its base model


class _Models(msgspec.Struct):
    data: list[_Model] = []


_decoder: Final[Any] = msgspec.json.Decoder(_Models)


def _models(body: bytes) -> _Models:
    models: _Models = _decoder.decode(body)
    return models
