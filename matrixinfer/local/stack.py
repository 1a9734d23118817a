"""The one-machine stack: what `matrixinfer up` and the end-to-end tests start, put together here and nowhere else.

In this process: the memory cluster, what fills it (a directory, or engines that run already), the controllers,
the node, and the feed that tells pickers of it all. Beside it, kept running: Envoy and the picker, once for each gateway,
and Redis where they are to count together.
`async with Stack(config) as stack` starts everything and stops everything; `ready` waits until a request would be served.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from controllers import ir
from matrixinfer.api import kinds
from matrixinfer.cluster import feed
from matrixinfer.cluster.directory import Directory
from matrixinfer.cluster.memory import MemoryCluster
from matrixinfer.local import counter, engines, envoy, gateways, ports, readiness, state, tls
from matrixinfer.local.addresses import Addresses
from matrixinfer.local.containers import Backoff, Settings
from matrixinfer.local.node import Node
from matrixinfer.local.services import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType
    from typing import Any, Self

    from matrixinfer.cluster.documents import Finding
    from matrixinfer.cluster.loop import Loop
    from matrixinfer.cluster.protocol import Cluster
    from matrixinfer.local.processes import Command

logger = logging.getLogger("matrixinfer.local")

STOP_GRACE_S = 2.5  # what pods get to stop by themselves when the whole stack goes
LOOK_EVERY_S = 0.05  # whether it serves by now


class CannotStart(Exception):
    """Something that the user can put right keeps the stack from starting; the message says what."""


class NotReady(Exception):
    """The stack runs and does not serve; the message says why."""


@dataclass(frozen=True, slots=True)
class Config:
    """How the stack is to be. One of `directory` and `engines` is given; a port of 0 means any free one."""

    directory: Path | None = None
    engines: tuple[str, ...] = ()
    port: int = 8080
    bind: str = "127.0.0.1"
    tls: tls.Files | None = None  # given, `bind` is where TLS is spoken, and without it on this machine only
    tls_port: int = 8443
    admin_port: int = 15000
    metrics_port: int = 9090
    gateways: int = 1  # pairs of Envoy and picker; each further one has the ports that follow
    redis: str = ""  # where they count together, whatever address routes name: a URL, or `counter.HERE` to start one
    scheduling: Path | None = None  # an EndpointPickerConfig; None: the picker's own defaults
    decision_log: Path | None = None  # where the picker writes its decisions; None: nowhere
    state_dir: Path | None = None  # kept afterwards; None: a temporary folder
    fail_open: bool = True
    max_body_bytes: int = 32 * 1024 * 1024
    envoy_workers: int = 2
    log_level: str = "info"
    backoff: Backoff = field(default_factory=Backoff)


class Stack:
    """A running stack. Made by its constructor, started by `async with`; what it offers is there from then on."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.cluster = MemoryCluster()
        self.findings: tuple[Finding, ...] = ()  # what is wrong in the directory now
        self.gateways: tuple[gateways.Gateway, ...] = ()
        self._cleanup = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._services: list[Service] = []
        self._envoy_admins: dict[int, aiohttp.ClientSession] = {}  # by number of the gateway
        self._failure: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        """Start everything. Raises CannotStart, and leaves nothing behind then."""
        self._failure = asyncio.get_running_loop().create_future()
        try:
            await self._start()
        except (
            tls.BadCertificate,
            ports.PortInUse,
            envoy.EnvoyMissing,
            state.StateInUse,
            engines.EngineAddress,
            counter.RedisMissing,
        ) as error:
            await self._stop()
            raise CannotStart(str(error)) from error
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        await self._stop()

    @property
    def port(self) -> int:
        """Where clients connect: of the first gateway, as all that follows here."""
        return self.gateways[0].port

    @property
    def tls_port(self) -> int:
        """Where they speak TLS; 0: nowhere."""
        return self.gateways[0].tls_port

    @property
    def admin_port(self) -> int:
        """Of the picker's admin pages."""
        return self.gateways[0].admin_port

    @property
    def metrics_port(self) -> int:
        """Of the picker's metrics."""
        return self.gateways[0].metrics_port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return self.gateways[0].url

    @property
    def admin_url(self) -> str:
        """Where the picker's admin pages are."""
        return self.gateways[0].admin_url

    @property
    def metrics_url(self) -> str:
        """Where the picker's metrics are."""
        return self.gateways[0].metrics_url

    @property
    def logs(self) -> Path:
        """Folder of the log files: `envoy.log`, `picker.log`, `envoy-2.log`..., `{namespace}_{pod}_{container}.log`."""
        return self._state.logs

    def pids(self) -> dict[str, int]:
        """Process ids of what runs now: `envoy`, `picker`, `envoy-2`..., `redis`, and `namespace/pod/container`."""
        own = {service.name: service.pid for service in self._services if service.pid is not None}
        return own | self.node.pids()

    async def failed(self) -> None:
        """Wait until a part of the stack that is never to end has ended, and raise its error."""
        if self._failure is not None:
            await asyncio.shield(self._failure)

    async def ready(self, within_s: float = 60.0) -> None:
        """Wait until a request would be served. Raises NotReady with everything that is known of why not."""
        problem = "nothing has been asked yet"
        try:
            async with asyncio.timeout(within_s):
                while problem := await self._problem():  # noqa: ASYNC110 - Envoy announces nothing
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            why = await readiness.explain(
                self.cluster, self.node, self._services, [str(item) for item in self.findings]
            )
            raise NotReady(f"cannot serve after {within_s:g} s: {problem}\n{why}".rstrip()) from None

    async def _problem(self) -> str:
        for one in self.gateways:
            problem = await readiness.gateway_problem(
                self.cluster,
                url=one.url,
                picker_url=one.admin_url,
                http=self._http,
                envoy_admin=self._envoy_admins[one.number],
            )
            if problem:
                return problem if len(self.gateways) == 1 else f"gateway {one.number}: {problem}"
        return ""

    async def _start(self) -> None:
        config, cleanup = self.config, self._cleanup
        binary = envoy.find()
        if config.scheduling is not None:
            await asyncio.to_thread(_check_scheduling, config.scheduling)
        if config.decision_log is not None and not config.decision_log.absolute().parent.is_dir():
            raise CannotStart(f"--decision-log {config.decision_log}: there is no such folder")
        state.sweep()
        self._state = state.State(config.state_dir)
        cleanup.callback(self._state.close)
        held = cleanup.enter_context(ExitStack())
        self.gateways = tuple(
            gateways.claim(config, number, self._state.folder, held) for number in range(1, config.gateways + 1)
        )
        addresses = Addresses()
        cleanup.callback(addresses.close)
        self.node = Node(
            self.cluster,
            addresses=addresses,
            settings=Settings(self.logs, config.backoff),
            shutdown_grace_s=STOP_GRACE_S,
        )
        self._http = await cleanup.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)))
        for one in self.gateways:
            self._envoy_admins[one.number] = await cleanup.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.UnixConnector(str(one.sockets.admin)), timeout=aiohttp.ClientTimeout(total=5)
                )
            )

        counting = self._count()
        await self._fill()
        news = self.gateways[0].sockets.feed
        await cleanup.enter_async_context(feed.serve(self.cluster, news, feed.KINDS))
        self._keep(self.node.run(), "node")
        for one in self.gateways:
            command = gateways.picker(config, one, feed=news, counter=counting, logs=self.logs)
            self._serve(one.named("picker"), command)
        await self._control()
        for one in self.gateways:
            self._serve(one.named("envoy"), gateways.proxy(binary, config, one, logs=self.logs))

    def _count(self) -> Path | None:
        """See to a Redis, if one is wanted; returns the file that says how it is entered."""
        url = self.config.redis
        if url == counter.HERE:
            url, command = counter.server(self._state.folder, self.logs / "redis.log")
            self._serve("redis", command)
            logger.info("global limits count in %s", url)
        return counter.entry(self._state.folder, url) if url else None

    def _serve(self, name: str, command: Command) -> None:
        service = Service(name, command, backoff=self.config.backoff)
        self._services.append(service)
        self._keep(service.run(), name)

    async def _control(self) -> None:
        """Run the controllers, and serve what that of the gateway makes of the cluster to Envoy."""
        secured = self._secure()
        gateway_loop, modelinfer_loop = await asyncio.to_thread(_control_plane)
        self._keep(modelinfer_loop(self.cluster).run(), "modelinfer")
        for one in self.gateways:
            loop = await self._cleanup.enter_async_context(
                gateway_loop(
                    self.cluster,
                    gateways.settings(self.config, one, secured),
                    f"unix:{one.sockets.xds}",
                    may_write=lambda first=one.number == 1: first,  # what Envoy took is told of the first
                )
            )
            self._keep(loop.run(), "gateway")

    def _secure(self) -> ir.Tls | None:
        """Tell how TLS is spoken, if it is, and keep its certificates up to date."""
        files = self.config.tls
        if files is None:
            return None
        secrets = tls.Secrets(files, self._state.folder)
        secrets.write()
        self._keep(secrets.follow(), "certificates")
        clients = str(secrets.clients) if files.client_ca is not None else ""
        return ir.Tls(str(secrets.certificate), clients, files.client_ca is not None and not files.client_optional)

    async def _fill(self) -> None:
        """Bring into the cluster what the user has given, and keep it up to date."""
        if self.config.directory is None:
            found = await engines.resolve(self.config.engines)
            self._keep(engines.Engines(self.cluster, found).run(), "engines")
            return
        directory = Directory(self.config.directory, self.cluster, report=self._report)
        await directory.load()
        errors = [finding for finding in self.findings if finding.severity == "error"]
        unsafe = await asyncio.to_thread(_unsafe, self.config.directory, errors)
        if unsafe:
            raise CannotStart(
                "\n".join([*map(str, unsafe), "without this AccessPolicy its models would be open to all"])
            )
        nothing_to_do = not (await self.cluster.list(kinds.MODEL_ROUTE)).items
        if nothing_to_do and errors:
            raise CannotStart("\n".join([*map(str, self.findings), "nothing usable is left"]))
        self._keep(directory.follow(), "directory")

    def _report(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        for finding in findings:
            level = logging.ERROR if finding.severity == "error" else logging.WARNING
            logger.log(level, "%s", finding)

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a part of the stack that is never to end; should it, the stack has failed."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._failure is None or self._failure.done():
            return
        error = task.exception() or RuntimeError(f"{task.get_name()} ended by itself")
        logger.error("%s failed", task.get_name(), exc_info=error)
        self._failure.set_exception(error)
        self._failure.exception()  # said; whoever waits for it gets it as well

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._cleanup.aclose()


def _unsafe(directory: Path, errors: Sequence[Finding]) -> list[Finding]:
    """Choose the mistakes for which an AccessPolicy may be missing: those in files that speak of one."""
    guards = {
        name
        for name in {error.file for error in errors}
        if (file := directory / name).is_file() and b"AccessPolicy" in file.read_bytes()
    }
    return [error for error in errors if error.file in guards]


def _check_scheduling(file: Path) -> None:
    """Read the scheduler's configuration as the picker will. Raises CannotStart."""
    from extproc.adapters.settings import Settings  # noqa: PLC0415 - only where there is a file
    from extproc.errors import ConfigError  # noqa: PLC0415

    try:
        Settings(file)
    except ConfigError as error:
        raise CannotStart(f"--config {file}: {error}") from error


def _control_plane() -> tuple[Callable[..., AbstractAsyncContextManager[Loop]], Callable[[Cluster], Loop]]:
    """Import the controllers: a second's work, in which pods and the picker start already."""
    from controllers.__main__ import gateway_loop, modelinfer_loop  # noqa: PLC0415 - see above

    return gateway_loop, modelinfer_loop
