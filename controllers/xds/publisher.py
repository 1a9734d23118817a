"""From a published IR to Envoys that have it, and back to what they said of it: the gateway controller's way out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from controllers import ir
from controllers.xds.ads import Ads
from controllers.xds.snapshot import RDS, Builder

if TYPE_CHECKING:
    from collections.abc import Callable

    from controllers.xds.session import Nack

BACKEND: Final = re.compile(r"modelserver/([^/\s'\"]+)/([^/\s'\",:)]+)")
ROUTE: Final = re.compile(r"model/(.+?)/\d+\b")


class Publisher:
    """Serves one IR after the other to all Envoys. `on_change` is called when what became of the last one has changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._builder = Builder()
        self._config: ir.IR | None = None
        self._told = ir.Delivery()
        self._ads = Ads(self._progress)

    def publish(self, config: ir.IR) -> None:
        """Serve `config` from now on; the same again changes nothing."""
        if config == self._config:
            return
        self._config = config
        self._ads.publish(self._builder.build(config))

    def delivery(self) -> ir.Delivery:
        """Say what became of the last IR."""
        progress = self._ads.progress
        refusals = tuple(dict.fromkeys(_refusal(nack) for nack in progress.refused))
        return ir.Delivery(self._config, progress.envoys, progress.settled, refusals)

    async def start(self, *addresses: str) -> tuple[int, ...]:
        """Listen on `unix:PATH` and `HOST:PORT`; returns the ports (1 for a socket)."""
        return await self._ads.start(*addresses)

    async def stop(self) -> None:
        """Close all streams; Envoys keep what they have."""
        await self._ads.stop()

    def _progress(self) -> None:
        now = self.delivery()
        if now != self._told and (now.settled or now.refusals or not now.envoys):
            self._told = now
            self._on_change()


def _refusal(nack: Nack) -> ir.Refusal:
    """Trace the resources that Envoy named back to what they were made of."""
    text = " ".join((nack.message, *(nack.names if nack.type_url != RDS else ())))
    backends = frozenset((found[1], found[2]) for found in BACKEND.finditer(text))
    models = frozenset(found[1] for found in ROUTE.finditer(text))
    return ir.Refusal(
        nack.message,
        backends or (None if not models else frozenset()),
        models or (None if not backends else frozenset()),
    )
