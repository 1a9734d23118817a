"""The control plane's process, and where it is put together: who watches the cluster, who writes, who serves Envoy.

    python -m controllers --xds 0.0.0.0:18000

Every replica follows the cluster and serves Envoy what it observes; the one that holds the lease writes. Exit status: 0 after
SIGTERM or SIGINT, 1 for a configuration or an address that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from controllers import ir
from controllers.gateway.reconcile import CHOSEN, KEY, NAME, REPLICA_WATCHES, WATCHES, Reconciler
from controllers.gateway.replicas import Replica
from controllers.leaderworkersets import reconcile as leaderworkersets
from controllers.modelinfer import reconcile as modelinfer
from controllers.modelinfer.gangs import Served
from controllers.webhooks import reconcile as webhooks
from controllers.webhooks.server import Webhooks
from controllers.xds.publisher import Publisher
from matrixinfer.api import kinds
from matrixinfer.cluster import credentials, monitor
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.clock import boottime
from matrixinfer.cluster.election import Elector
from matrixinfer.cluster.lease import Candidate, Terms
from matrixinfer.cluster.loop import Controller, Loop
from matrixinfer.cluster.protocol import Forbidden, NotFound, Unavailable
from matrixinfer.cluster.ratelimit import Rate
from matrixinfer.cluster.store import Stores

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.protocol import Cluster

log = logging.getLogger("controllers")

_FINISH_S: Final = 10.0  # what reconciles get to end by themselves
_LEASE: Final = "matrixinfer-controllers"
_WORKERS: Final = 16  # ModelInfers that are worked on at once
_RETRY_S: Final = 1.0


@asynccontextmanager
async def gateway_loop(  # noqa: PLR0913 - the edge: everything impure is an argument
    cluster: Cluster,
    gateway: ir.Gateway,
    *addresses: str,
    replica: Replica | None = None,
    may_write: Callable[[], bool] = lambda: True,
    report: Callable[[str, float], None] = lambda _outcome, _seconds: None,
    stores: Stores | None = None,
) -> AsyncIterator[Loop]:
    """Serve xDS on `addresses` (`unix:PATH`, `HOST:PORT`); the loop that is given feeds it while its `run` runs.

    `replica` is who this is, where several serve one cluster and learn of each other's Envoys.
    """
    publisher = Publisher(on_change=lambda: loop.touch(KEY))
    reconciler = Reconciler(gateway, publisher.delivery, replica)
    controller = (
        Controller(NAME, reconciler.reconcile, WATCHES, chosen=CHOSEN)
        if replica is None
        else Controller(
            NAME,
            reconciler.reconcile,
            REPLICA_WATCHES,
            namespaces={kinds.LEASE: replica.namespace},
            chosen=CHOSEN,
        )
    )
    loop = Loop(cluster, controller, publish=publisher.publish, may_write=may_write, report=report, stores=stores)
    await publisher.start(*addresses)
    try:
        yield loop
    finally:
        await publisher.stop()


def modelinfer_loop(  # noqa: PLR0913 - the edge: everything impure is an argument
    cluster: Cluster,
    served: Served = Served.NOTHING,
    *,
    clock: Callable[[], float] = time.time,
    may_write: Callable[[], bool] = lambda: True,
    report: Callable[[str, float], None] = lambda _outcome, _seconds: None,
    stores: Stores | None = None,
) -> Loop:
    """Give the loop that makes the pods of ModelInfers, with what the cluster serves for gangs."""
    controller = modelinfer.controller(served)
    return Loop(cluster, controller, workers=_WORKERS, clock=clock, may_write=may_write, report=report, stores=stores)


def webhooks_loop(  # noqa: PLR0913 - the edge: everything impure is an argument
    cluster: Cluster,
    place: webhooks.Place,
    server: Webhooks,
    *,
    clock: Callable[[], float] = time.time,
    may_write: Callable[[], bool] = lambda: True,
    report: Callable[[str, float], None] = lambda _outcome, _seconds: None,
    stores: Stores | None = None,
) -> Loop:
    """Give the loop that keeps the certificates which `server` shows."""
    controller = webhooks.controller(place)
    loop = Loop(
        cluster, controller, publish=server.show, clock=clock, may_write=may_write, report=report, stores=stores
    )
    loop.touch(webhooks.KEY)  # there may be nothing yet whose change would
    return loop


async def gangs_served(cluster: Cluster) -> Served:
    """Ask an API server what it serves to schedule gangs with. Installed later, it is found by the next start."""
    try:
        crd = await cluster.get(kinds.CUSTOM_RESOURCE_DEFINITION, "podgroups.scheduling.volcano.sh")
    except (NotFound, Forbidden):
        return Served.IN_TREE if await _serves(cluster, kinds.IN_TREE_POD_GROUP) else Served.NOTHING
    schemas = [version["schema"]["openAPIV3Schema"] for version in crd["spec"]["versions"] if version.get("served")]
    fields = {field for schema in schemas for field in schema["properties"]["spec"].get("properties", {})}
    return Served.VOLCANO if "subGroupPolicy" in fields else Served.OLD_VOLCANO


async def _serves(cluster: Cluster, kind: Kind) -> bool:
    try:
        await cluster.list(kind, namespace="default")
    except (NotFound, Forbidden):
        return False
    return True


async def _once_there(cluster: Cluster, stopping: asyncio.Event) -> Served:
    """Ask until the API server answers, or nobody wants to know any more."""
    while not stopping.is_set():
        with suppress(Unavailable):
            return await gangs_served(cluster)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _RETRY_S)
    return Served.NOTHING


def main(argv: Sequence[str] | None = None) -> int:
    """Run the control plane."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(_serve(options))
    except (credentials.AccessError, OSError, ValueError) as error:
        print(f"controllers: {error}", file=sys.stderr)  # noqa: T201 - why the process does not start
        return 1
    return 0


async def _serve(options: argparse.Namespace) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    access = credentials.find(path=options.kubeconfig, context=options.context)
    candidate = Candidate(
        options.lease_name,
        options.lease_namespace or access.namespace,
        f"{socket.gethostname()}_{secrets.token_hex(4)}",
        Terms(options.lease_duration, options.lease_renew, options.lease_margin),
    )
    watched = monitor.Monitor()

    def led(leads: bool) -> None:  # noqa: FBT001 - an answer
        watched.leads.set(leads)
        if leads:
            for loop in loops.values():
                loop.refresh()
            if webhooks.NAME in loops:
                loops[webhooks.NAME].touch(webhooks.KEY)

    async with AsyncExitStack() as stack:
        server = ApiServer(
            access,
            Settings(rate=Rate(options.qps, options.burst), user_agent=f"matrixinfer-controllers/{candidate.identity}"),
            remaining=(lambda: candidate.tenure.remaining(boottime())) if options.leader_elect else None,
            report=watched.request,
        )
        cluster = await stack.enter_async_context(server)
        stores = Stores(cluster)
        elector = Elector(cluster, candidate, changed=led)
        may_write = (lambda: elector.leads) if options.leader_elect else (lambda: True)
        gateway = gateway_loop(
            cluster,
            _gateway(options),
            *options.xds,
            replica=Replica(candidate.namespace, socket.gethostname()),
            may_write=may_write,
            report=watched.reconciled(NAME),
            stores=stores,
        )
        loops = {
            NAME: await stack.enter_async_context(gateway),
            modelinfer.NAME: modelinfer_loop(
                cluster,
                await _once_there(cluster, stopping),
                clock=server.clock,
                may_write=may_write,
                report=watched.reconciled(modelinfer.NAME),
                stores=stores,
            ),
        }
        if options.leader_worker_sets:
            loops[leaderworkersets.NAME] = Loop(
                cluster,
                leaderworkersets.controller(),
                clock=server.clock,
                may_write=may_write,
                report=watched.reconciled(leaderworkersets.NAME),
                stores=stores,
            )
        if options.webhooks:
            asked = Webhooks(watched.registry)
            place = webhooks.Place(candidate.namespace, options.webhooks_name)
            loops[webhooks.NAME] = webhooks_loop(
                cluster,
                place,
                asked,
                clock=server.clock,
                may_write=may_write,
                report=watched.reconciled(webhooks.NAME),
                stores=stores,
            )
            watched.require(asked.problem)
            listening = await stack.enter_async_context(asked.serve(*_socket("--webhooks", options.webhooks)))
            log.info("webhooks on port %d", listening)
        for name, loop in loops.items():
            watched.watch(name, loop)
        port = await stack.enter_async_context(monitor.serve(watched, options.metrics_host, options.metrics_port))
        log.info("following %s; metrics and health on port %d", access.server, port)
        standing = asyncio.create_task(elector.run() if options.leader_elect else asyncio.Event().wait())
        await _run(loops.values(), [standing, asyncio.create_task(stores.run())], stopping)
        await elector.release()  # by now nothing is being written


async def _run(loops: Collection[Loop], standing: Collection[asyncio.Task[object]], stopping: asyncio.Event) -> None:
    """Run until told to stop, or until a part ends that never should; let what is being worked on come to its end."""
    running = [asyncio.create_task(loop.run()) for loop in loops]
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait([told, *standing, *running], return_when=asyncio.FIRST_COMPLETED)
    for loop in loops:
        loop.stop()
    await asyncio.wait(running, timeout=_FINISH_S)
    ended = [task for task in (*standing, *running) if task.done()]
    for task in (told, *standing, *running):
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
    for task in ended:
        task.result()


def _gateway(options: argparse.Namespace) -> ir.Gateway:
    host, _, port = options.gateway.rpartition(":")
    return ir.Gateway(
        listeners=(ir.Listener("gateway", host or "0.0.0.0", int(port)),),
        picker=ir.Picker(
            _address("--picker", options.picker),
            fail_open=not options.fail_closed,
            translator=_address("--translator", options.translator) if options.translator else None,
        ),
        module=options.envoy_module,
        authorities=options.authorities,
    )


def _address(flag: str, text: str) -> ir.Address:
    if text.startswith("unix:"):
        return ir.Address(path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{flag} {text}: must be unix:PATH or HOST:PORT")
    return ir.Address(host=host, port=int(port))


def _socket(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{flag} {text}: must be HOST:PORT")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="controllers", description="The control plane of MatrixInfer.")
    cluster = parser.add_argument_group("the cluster")
    cluster.add_argument(
        "--kubeconfig", default="", help="file; by default the pod's own account, $KUBECONFIG or ~/.kube/config"
    )
    cluster.add_argument("--context", default="", help="context of the kubeconfig; by default its current one")
    cluster.add_argument("--qps", type=float, default=Rate().per_s, help="requests per second in the long run")
    cluster.add_argument("--burst", type=int, default=Rate().burst, help="requests at once after a rest")
    lease = parser.add_argument_group("who writes")
    lease.add_argument(
        "--leader-elect", action=argparse.BooleanOptionalAction, default=True, help="write only with the lease"
    )
    lease.add_argument("--lease-name", default=_LEASE)
    lease.add_argument(
        "--lease-namespace", default=os.environ.get("POD_NAMESPACE", ""), help="by default the context's"
    )
    lease.add_argument(
        "--lease-duration",
        type=int,
        default=Terms().duration_s,
        metavar="S",
        help="a dead leader is replaced after this",
    )
    lease.add_argument(
        "--lease-renew", type=float, default=Terms().every_s, metavar="S", help="how often it is renewed"
    )
    lease.add_argument(
        "--lease-margin", type=float, default=Terms().margin_s, metavar="S", help="writes end this long before its end"
    )
    gateway = parser.add_argument_group("the gateway")
    gateway.add_argument(
        "--xds",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="serve Envoy here: HOST:PORT or unix:PATH (repeatable)",
    )
    gateway.add_argument("--gateway", default="0.0.0.0:8080", metavar="HOST:PORT", help="where Envoy listens")
    gateway.add_argument(
        "--picker", default="unix:/run/matrixinfer/picker.sock", metavar="ADDRESS", help="where Envoy asks"
    )
    gateway.add_argument(
        "--translator",
        default="",
        metavar="ADDRESS",
        help="where the picker speaks with external providers; by default beside --picker, if that is a Unix socket",
    )
    gateway.add_argument(
        "--authorities",
        default=ir.AUTHORITIES,
        metavar="FILE",
        help="on Envoy's machine: who may sign the certificates of providers and issuers",
    )
    gateway.add_argument("--fail-closed", action="store_true", help="answer 503 where the picker does not answer")
    gateway.add_argument("--envoy-module", action="store_true", help="Envoy has the project's module")
    others = parser.add_argument_group("kinds of others")
    others.add_argument(
        "--leader-worker-sets",
        action="store_true",
        help="run LeaderWorkerSets as ModelInfers; only where their own controller does not",
    )
    admission = parser.add_argument_group("admission")
    admission.add_argument("--webhooks", default="", metavar="HOST:PORT", help="answer API servers here, over HTTPS")
    admission.add_argument(
        "--webhooks-name",
        default=webhooks.NAME,
        metavar="NAME",
        help="of the Service, of the Secret with the certificates, and of the configuration",
    )
    own = parser.add_argument_group("itself")
    own.add_argument("--metrics-host", default="0.0.0.0")
    own.add_argument("--metrics-port", type=int, default=9090)
    own.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
