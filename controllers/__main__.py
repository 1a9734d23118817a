"""Where the control plane is put together: who watches the cluster, who serves Envoy."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from controllers.gateway.reconcile import KEY, NAME, WATCHES, Reconciler
from controllers.xds.publisher import Publisher
from matrixinfer.cluster.loop import Controller, Loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from controllers import ir
    from matrixinfer.cluster.protocol import Cluster


@asynccontextmanager
async def gateway_loop(cluster: Cluster, gateway: ir.Gateway, *addresses: str) -> AsyncIterator[Loop]:
    """Serve xDS on `addresses` (`unix:PATH`, `HOST:PORT`); the loop that is given feeds it while its `run` runs."""
    publisher = Publisher(on_change=lambda: loop.touch(KEY))
    reconciler = Reconciler(gateway, publisher.delivery)
    loop = Loop(cluster, Controller(NAME, reconciler.reconcile, WATCHES), publish=publisher.publish)
    await publisher.start(*addresses)
    try:
        yield loop
    finally:
        await publisher.stop()
