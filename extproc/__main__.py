"""The picker's process: builds everything, passes it down, serves until it is told to stop.

    python -m extproc --socket /run/picker.sock --cluster-socket /run/cluster.sock

Exit status: 0 after SIGTERM or SIGINT, 1 for a configuration or an address that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import random
import secrets
import signal
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop
from aiohttp import web

from extproc.adapters import admin, custom, flow_metrics, kv_metrics, logs, prefill, redis_limits, settings, telemetry
from extproc.adapters.arrivals import Arrivals
from extproc.adapters.decision_log import DecisionLog
from extproc.adapters.desk import Desk
from extproc.adapters.errands import Errands
from extproc.adapters.kv_events import KvEvents
from extproc.adapters.outward import Outward
from extproc.adapters.scrape import Scraper
from extproc.adapters.shares import Shares
from extproc.adapters.tokenizers import Tokenizers
from extproc.adapters.transport import access_log, ext_proc, health, serving
from extproc.adapters.transport.calls import Limits
from extproc.adapters.turns import Turns
from extproc.adapters.wakeup import WakeUps
from extproc.adapters.world import KINDS, WorldView
from extproc.candidates import World
from extproc.director import Director
from extproc.errors import ConfigError
from extproc.kvcache.index import PrefixIndex
from extproc.providers.relay import Relay
from extproc.scheduling import config, topology
from extproc.scheduling.endpoints import EndpointTable
from extproc.tokens.blocks import Counts
from extproc.traffic.ledger import Ledger
from extproc.traffic.pools import Pools
from matrixinfer.api import dataplane
from matrixinfer.cluster.feed import MAY_BE_MISSING, Feed
from matrixinfer.cluster.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from prometheus_client.metrics_core import Metric

    from extproc.adapters.transport.calls import Service
    from extproc.types import Call, Called

_LOG = logging.getLogger("extproc")
_EXPIRE_EVERY_S: Final = 5.0
_SWITCH_S: Final = 0.0005  # a thread that turns token ids into arrays holds the loop up no longer; Python's own is 5 ms
_TOKENIZERS_S: Final = 30.0  # for reading them at the start; a large one takes a second
_DRAIN_S: Final = 10.0
_MAX_BODY: Final = 32 << 20  # a prompt of a million tokens is 4 to 6 MB; the rest is room for images
_MEET_S: Final = 1.0  # for engines to say whether they publish KV events, before we are ready
_REPLAY_S: Final = 10.0  # for those that do to tell what they hold
_ENVELOPE: Final = 1 << 20  # headers and metadata around a body


def main(argv: Sequence[str] | None = None) -> int:
    """Run the picker."""
    args = _arguments(argv)
    logs.configure(args.log_level)
    try:
        sys.setswitchinterval(_SWITCH_S)
        uvloop.run(_Picker(args).run())
    except (ConfigError, OSError, ValueError) as error:
        _LOG.error("the picker cannot start: %s", error)
        return 1
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m extproc", description="MatrixInfer's endpoint picker.")
    add = parser.add_argument
    add("--socket", required=True, help="where Envoy finds us: a path, unix:/path or host:port")
    add(
        "--providers-socket",
        default="",
        help="where Envoy has answers of providers translated; default: beside --socket",
    )
    add("--cluster-socket", type=Path, required=True, help="Unix socket of the cluster's feed")
    add(
        "--envoy-admin",
        type=Path,
        metavar="SOCKET",
        help="Envoy's admin interface: requests held for want of an engine go when Envoy has it, too",
    )
    add("--config", type=Path, help="EndpointPickerConfig (YAML), followed when it changes; default: built in")
    add("--metrics-host", default="0.0.0.0")
    add("--metrics-port", type=int, default=9090, help="/metrics and /healthz; 0: any free port")
    add("--admin-port", type=int, default=15000, help="admin pages, on loopback only; 0: any free port")
    add("--health-port", type=int, help="gRPC health over TCP as well; default: on --socket only")
    add("--transport", choices=("ngh2", "grpc"), default="ngh2", help="the gRPC server; grpc is the slower reference")
    add("--max-body-bytes", type=int, default=_MAX_BODY, help="larger bodies are answered 413")
    add(
        "--no-usage",
        action="store_true",
        help="do not ask streams for usage: for gateways that cannot hide it from clients",
    )
    add(
        "--follow",
        action="store_true",
        help="settle by the ext_proc stream: for gateways that send no access log here; dearer for each request",
    )
    add("--topology", default="", help="where this picker runs: host=a,rack=b,zone=c,region=d, any of them")
    add("--decision-log", type=Path, metavar="FILE", help="every decision and its end, for `matrixinfer replay`")
    add("--redis", type=Path, metavar="FILE", help="one URL a line: how the servers of global limits are entered")
    add("--access-log", action="store_true", help="log every request; otherwise only what went wrong")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser.parse_args(argv)


class _Picker:
    """Everything in the process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._settings = settings.Settings(args.config)
        self._in_force = self._settings.current
        self._watch = custom.Watch()
        table = EndpointTable()
        table.home = topology.told(args.topology)
        self._exact = settings.exact_index(self._settings.current, secret=secrets.randbits(64))
        self._world = World(table, Pools(table), Ledger(table), _index(self._settings.current), self._exact)
        numbers, process = itertools.count(1), secrets.token_hex(4)

        def tickets() -> str:
            return f"{process}-{next(numbers):x}"

        self._token_counts = Counts()
        self._tokenizers = Tokenizers(
            settings.tokens(self._settings.current),
            lambda: self._director.routes,
            self._engines_of,
            self._called,
        )
        draw = random.Random()  # noqa: S311 - chance for balance, not for secrets
        self._decisions = DecisionLog(args.decision_log, epoch=time.time) if args.decision_log else None
        self._director = Director(
            self._world,
            scheduler=config.build(self._settings.current, self._watch.guarded),
            blocks=settings.token_blocks(self._settings.current, self._tokenizers, self._token_counts),
            clock=time.monotonic,
            draw=draw,
            tickets=tickets,
            ask_usage=not args.no_usage,
            witness=self._decisions,
        )
        self._arrivals = Arrivals(self._director.gate, args.envoy_admin) if args.envoy_admin else None
        self._view = WorldView(self._world, self._director, self._arrivals)
        feed = Feed(args.cluster_socket)
        self._stores = [Store(feed, kind) for kind in KINDS]
        self._synced = False
        self._kv_events = KvEvents(
            table,
            self._exact,
            self._view,
            discovery=settings.discovery(self._settings.current),
            base_models=self._view.base_models,
        )
        self._scraper = Scraper(table, self._view, clock=time.monotonic, draw=draw)
        self._scraper.watch(settings.metrics(self._settings.current))
        self._telemetry = telemetry.Telemetry(self._world, self._director.routes_know)
        self._counters = redis_limits.Stores(redis_limits.endpoints(args.redis), picker=process)
        self._director.limiter.tell = self._counters.tell
        self._counters.told = self._director.limiter.told
        self._counters.heard = lambda store, pickers, levels: self._director.limiter.heard(
            store, pickers, levels, time.monotonic()
        )
        self._errands = Errands(counters=self._counters, turns=Turns(self._director.gate))
        self._control_flow(self._settings.current)
        self._shares = Shares(self._director.gate, self._counters.client, time.time)
        self._wakeups = WakeUps(self._director.gate, feed.held, clock=time.monotonic)
        self._scraper.heard = self._director.gate.pump
        self._desk = Desk(self._director, self._telemetry, self._errands, access_log=args.access_log)
        self._exchanges = ext_proc.ExtProcService(
            self._desk,
            max_body_bytes=args.max_body_bytes,
            follower=self._desk if args.follow else None,
            tickets=tickets,
        )
        self._outward = Outward(Relay(self._director.relay, lambda: self._director.routes))
        self._health = health.HealthService()
        self._telemetry.add_source(self._metrics)
        self._telemetry.add_source(self._watch.metrics)
        self._telemetry.add_source(lambda: self._tokenizers.metrics(self._token_counts))
        self._telemetry.add_source(lambda: kv_metrics.metrics(self._exact, self._kv_events))
        self._telemetry.add_source(lambda: self._counters.metrics(self._director.limiter.counts))
        self._telemetry.add_source(lambda: flow_metrics.metrics(self._director.gate, time.monotonic()))
        self._telemetry.add_source(self._shares.metrics)
        self._telemetry.add_source(lambda: prefill.metrics(self._director.prefilling.counts, self._errands.calls))
        self._telemetry.add_source(self._outward.metrics)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        for store in self._stores:
            self._view.follow(store)
        async with AsyncExitStack() as stack:
            if self._decisions is not None:
                stack.callback(self._decisions.close)
            stack.callback(self._errands.close)
            if self._arrivals is not None:
                stack.callback(self._arrivals.close)
            stack.push_async_callback(self._errands.calls.close)
            stack.push_async_callback(self._counters.close)
            await self._open_pages(stack)
            for name, work in (
                *((store.kind.plural, store.run) for store in self._stores),
                ("scrape", self._scraper.run),
                ("kv-events", self._kv_events.run),
                ("config", lambda: self._settings.follow(self._use)),
                ("expire", self._expire),
                ("shares", self._shares.run),
                ("wake-ups", self._wakeups.run),
                ("tokenizers", self._follow_tokenizers),
                *([("decision log", self._decisions.run)] if self._decisions is not None else []),
            ):
                task = asyncio.create_task(_kept_up(name, work), name=name)
                stack.push_async_callback(_cancelled, task)
            await _first(self._sync(), stop.wait())
            if self._synced and not stop.is_set():
                await self._serve(stop)

    async def _sync(self) -> None:
        """Wait until the world is known."""
        await self._filled()
        self._view.rebuild()
        with suppress(TimeoutError):  # a volume that does not answer: begin with text blocks
            async with asyncio.timeout(_TOKENIZERS_S):
                await self._tokenizers.look()
        if not await self._kv_events.warm(meet_s=_MEET_S, replay_s=_REPLAY_S):
            _LOG.info("serving before all engines have told what they hold")
        self._synced = True

    async def _serve(self, stop: asyncio.Event) -> None:
        """Answer Envoy; it is only let in when there is something to answer."""
        args = self._args
        limits = Limits(max_message_bytes=args.max_body_bytes + _ENVELOPE)
        services: dict[str, Service] = {
            ext_proc.METHOD: self._exchanges,
            access_log.METHOD: access_log.AccessLogService(self._desk.settle),
            **self._health.methods(),
        }
        address = args.socket if ":" in args.socket else f"unix:{args.socket}"
        servers = [await serving.serve(address, services, transport=args.transport, limits=limits)]
        outward = args.providers_socket or (dataplane.translator_socket(args.socket) if "unix:" in address else "")
        if outward:
            self._director.candidates.relays = not args.no_usage  # which is for other gateways
            where = outward if ":" in outward else f"unix:{outward}"
            also = {ext_proc.METHOD: self._outward}
            servers.append(await serving.serve(where, also, transport=args.transport, limits=limits))
        if args.health_port is not None:
            servers.append(
                await serving.serve(f"0.0.0.0:{args.health_port}", self._health.methods(), transport=args.transport)
            )
        _settle_memory()
        self._health.set_ready(ready=True)
        _LOG.info("serving", extra={"addresses": [server.address for server in servers]})
        await stop.wait()
        _LOG.info("stopping", extra={"open": len(self._world.ledger)})
        self._health.set_ready(ready=False)
        await asyncio.gather(*(server.stop(_DRAIN_S) for server in servers))

    async def _open_pages(self, stack: AsyncExitStack) -> None:
        shown = admin.Shown(
            world=self._world,
            director=self._director,
            view=self._view,
            clock=time.monotonic,
            config=self._settings.described,
            ready=lambda: self._health.ready,
            registry=telemetry.registry(self._telemetry),
            refusals=self._desk.refusals,
        )
        for name, host, port, pages in (
            ("admin", "127.0.0.1", self._args.admin_port, True),
            ("metrics", self._args.metrics_host, self._args.metrics_port, False),
        ):
            runner = web.AppRunner(admin.application(shown, pages=pages), access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, host, port).start()
            _LOG.info("listening", extra={"what": name, "address": runner.addresses[0]})

    async def _filled(self) -> None:
        """Wait until every store is; one that requests can do without may as well be refused: an older account may not read it."""
        for store in self._stores:
            await (store.answered() if store.kind in MAY_BE_MISSING else store.synced())

    def _engines_of(self, server: str) -> list[str]:
        """Return the URLs of a ModelServer's engines that are ready."""
        addresses = [self._world.table.address(row) for row in self._world.pools.ready(server).tolist()]
        return [f"{self._view.scheme(address)}://{address}" for address in addresses]

    async def _called(self, call: Call) -> Called:
        """Call an engine."""
        return await self._errands.calls.run(call)

    async def _follow_tokenizers(self) -> None:
        """Look for tokenizers again and again, once the routes are known."""
        await self._filled()
        await self._tokenizers.run()

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(_EXPIRE_EVERY_S)
            self._desk.expire()

    def _use(self, current: config.Config) -> None:
        """Schedule by a new configuration; what is known of engines and prefixes stays."""
        self._world.index.resize(per_endpoint=current.prefix.lru_capacity_per_server, total=self._world.index.total)
        self._tokenizers.use(settings.tokens(current))
        self._scraper.watch(settings.metrics(current))
        if settings.follow_exact(self._exact, before=self._in_force, after=current, secret=secrets.randbits(64)):
            self._kv_events.use(settings.discovery(current))
        self._control_flow(current)
        self._in_force = current
        self._director.use_scheduler(
            config.build(current, self._watch.guarded),
            settings.token_blocks(current, self._tokenizers, self._token_counts),
        )

    def _control_flow(self, current: config.Config) -> None:
        """Queue by a new configuration; what waits goes on waiting by its rules."""
        if current.flow != self._director.gate.rules or current.plugins != self._in_force.plugins:
            self._director.gate.use(current.flow, config.detector(current))

    def _metrics(self) -> Iterable[Metric]:
        """Yield what the parts count for themselves."""
        scrapes, settled = self._scraper.counts, self._settings
        connected = all(store.connected for store in self._stores)
        yield telemetry.gauge(
            "matrixinfer_feed_connected", "1 while the picker hears of the cluster's changes.", connected
        )
        yield telemetry.counter(
            "matrixinfer_feed_changes", "Changes of resources that the picker heard of.", {(): self._view.changes}
        )
        yield telemetry.counter(
            "matrixinfer_world_rebuilds", "Rebuilds of routes and pools that they caused.", {(): self._view.rebuilds}
        )
        yield telemetry.gauge(
            "matrixinfer_resource_problems",
            "Resources that cannot be read; their last good version is in force.",
            len(self._view.problems),
        )
        unmet: Counter[telemetry.Labels] = Counter(
            (label.partition(" ")[0], condition) for label, types in self._view.unmet.items() for condition in types
        )
        yield telemetry.labelled_gauge(
            "matrixinfer_resource_conditions_unmet",
            "Conditions of routes and servers that are False; Programmed: Envoy has not taken the resource.",
            unmet,
            ("kind", "condition"),
        )
        yield telemetry.counter(
            "matrixinfer_scrapes",
            "Engines' metrics pages asked for.",
            {("ok",): scrapes.pages, ("unreadable",): scrapes.unreadable, ("failed",): scrapes.failures},
            ("result",),
        )
        yield telemetry.counter(
            "matrixinfer_config_loads",
            "Scheduler configurations read.",
            {("ok",): settled.loads, ("refused",): settled.failures},
            ("result",),
        )
        yield telemetry.gauge(
            "matrixinfer_config_problem", "1 while the scheduler's configuration cannot be used.", bool(settled.problem)
        )
        exchanges = self._exchanges
        yield telemetry.counter("matrixinfer_exchanges", "ext_proc streams opened.", {(): exchanges.exchanges})
        yield telemetry.counter(
            "matrixinfer_exchange_errors",
            "ext_proc streams that ended by a bug, or by a message out of turn.",
            {("bug",): exchanges.bugs, ("protocol",): exchanges.protocol_errors},
            ("kind",),
        )


def _index(current: config.Config) -> PrefixIndex:
    return PrefixIndex(per_endpoint=current.prefix.lru_capacity_per_server)


def _settle_memory() -> None:
    """Keep what was built at the start out of the cycle collector's sight.

    A full collection over the modules, message classes and models of a started picker takes some 60 ms, in which every
    request waits; over what requests leave behind it takes next to nothing. Thresholds made no measurable difference.
    """
    gc.collect()
    gc.freeze()


async def _kept_up(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run a background task for good; one that breaks is logged and begins again."""
    while True:
        try:
            return await work()
        except Exception:  # noqa: BLE001 - the root of a task: a bug here must not stop requests
            _LOG.exception("a background task broke; it begins again", extra={"task": name})
            await asyncio.sleep(1.0)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _first(*awaited: Awaitable[object]) -> None:
    """Wait for the first of these; the others are given up."""
    tasks = [asyncio.ensure_future(each) for each in awaited]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    sys.exit(main())
