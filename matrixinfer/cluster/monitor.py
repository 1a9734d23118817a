"""What a process that works on a cluster shows of itself: metrics, and whether it is well, over HTTP.

`/metrics` for Prometheus, `/healthz` (it works), `/readyz` (it knows the whole world); with the reasons, one a line, if not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from matrixinfer.cluster.loop import Loop

_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)


class Monitor:
    """Owns the metrics; its methods are what the parts take as `report`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._loops: dict[str, Loop] = {}
        self._needs: list[Callable[[], str]] = []
        self._requests = Counter(
            "matrixinfer_cluster_requests",
            "Requests to the API server, by verb, resource and HTTP status; 0: no answer came.",
            ("verb", "resource", "code"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "matrixinfer_cluster_request_duration_seconds",
            "Time that requests to the API server took, watches left out.",
            ("verb",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._reconciles = Counter(
            "matrixinfer_reconciles",
            "Reconciles by controller and outcome: done, again (a conflict, or the cluster was away) or failed (a fault).",
            ("controller", "outcome"),
            registry=self.registry,
        )
        self._reconcile_seconds = Histogram(
            "matrixinfer_reconcile_duration_seconds",
            "Time that reconciles took, with what they wrote, by controller.",
            ("controller",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.leads = Gauge(
            "matrixinfer_leader", "Whether this process is the one that writes to the cluster.", registry=self.registry
        )

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Give what is read when somebody asks."""
        waiting = GaugeMetricFamily(
            "matrixinfer_reconcile_queue", "Keys that wait to be reconciled, by controller.", labels=["controller"]
        )
        connected = GaugeMetricFamily(
            "matrixinfer_cluster_connected", "Whether all watches of a controller are up.", labels=["controller"]
        )
        for name, loop in self._loops.items():
            waiting.add_metric([name], loop.waiting)
            connected.add_metric([name], float(loop.connected))
        return waiting, connected

    def watch(self, name: str, loop: Loop) -> None:
        """Show this loop's queue and connection, and wait for its world before being ready."""
        self._loops[name] = loop

    def require(self, problem: Callable[[], str]) -> None:
        """Be ready only while this says nothing."""
        self._needs.append(problem)

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count a request to the API server."""
        self._requests.labels(verb, resource, str(code)).inc()
        if verb != "watch":
            self._request_seconds.labels(verb).observe(seconds)

    def reconciled(self, name: str) -> Callable[[str, float], None]:
        """Return what counts the reconciles of one controller."""

        def count(outcome: str, seconds: float) -> None:
            self._reconciles.labels(name, outcome).inc()
            self._reconcile_seconds.labels(name).observe(seconds)

        return count

    def problems(self) -> list[str]:
        """Say what this process does not know yet."""
        unsynced = [
            f"{name}: not everything has been listed yet" for name, loop in self._loops.items() if not loop.synced
        ]
        return unsynced + [problem for need in self._needs if (problem := need())]


@contextlib.asynccontextmanager
async def serve(monitor: Monitor, host: str, port: int) -> AsyncIterator[int]:
    """Answer at this address until the context is left; gives the port, which may be chosen (0)."""

    def answer(problems: Callable[[], list[str]]) -> Callable[[web.Request], object]:
        async def handle(_: web.Request) -> web.Response:
            found = problems()
            return web.Response(text="".join(f"{line}\n" for line in found or ["ok"]), status=503 if found else 200)

        return handle

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(monitor.registry), headers=_METRICS)

    app = web.Application()
    app.add_routes(
        [
            web.get("/metrics", metrics),
            web.get("/healthz", answer(list)),  # type: ignore[arg-type]  # a handler, as aiohttp types it
            web.get("/readyz", answer(monitor.problems)),  # type: ignore[arg-type]
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


_METRICS: Mapping[str, str] = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
