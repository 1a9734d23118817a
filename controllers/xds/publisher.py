"""From a published IR to Envoys that have it, and back to what they said of it: the gateway controller's way out.

Routes are one resource, which Envoy takes or refuses as a whole. When it refuses, what is new since the last that it took
is held back by halves until what is left is taken, and then added again; what is refused alone is left out until it
changes.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from controllers import ir
from controllers.xds.ads import Ads
from controllers.xds.key_files import KeyFiles
from controllers.xds.snapshot import RDS, Builder

if TYPE_CHECKING:
    from collections.abc import Callable

    from controllers.xds.session import Nack

BACKEND: Final = re.compile(r"modelserver/([^/\s'\"]+)/([^/\s'\",:)]+)")
PROVIDER: Final = re.compile(r"provider/([^/\s'\"]+)/([^/\s'\",:)]+)")
Piece = ir.Backend | ir.Model | ir.Handling
ROUTE: Final = re.compile(r"model/(.+?)/\d+\b")


class Publisher:
    """Serves one IR after the other to all Envoys. `on_change` is called when what became of the last one has changed."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._builder = Builder()
        self._ads = Ads(self._progress)
        self._told = ir.Delivery()
        self._wanted: ir.IR | None = None
        self._served: ir.IR | None = None
        self._taken: frozenset[Piece] = frozenset()  # of what Envoys took last
        self._held: list[Piece] = []  # to be tried when what is served without them is taken
        self._left_out: dict[Piece, str] = {}  # refused alone, with Envoy's words
        self._key_files = KeyFiles(lambda: self._serve(self._wanted) if self._wanted is not None else None)
        self._following: asyncio.Task[None] | None = None

    def publish(self, config: ir.IR) -> None:
        """Serve `config` from now on; the same again changes nothing."""
        if config == self._wanted:
            return
        self._wanted = config
        pieces = _pieces(config)
        self._held = [piece for piece in self._held if piece in pieces]
        self._left_out = {piece: why for piece, why in self._left_out.items() if piece in pieces}
        self._serve(config)

    def delivery(self) -> ir.Delivery:
        """Say what became of the last IR."""
        progress = self._ads.progress
        refusals = [_refusal(nack) for nack in progress.refused] if not self._held else []
        refusals += [_alone(piece, why) for piece, why in self._left_out.items()]
        settled = progress.settled and not self._held
        return ir.Delivery(self._wanted, progress.envoys, settled, tuple(dict.fromkeys(refusals)))

    async def start(self, *addresses: str) -> tuple[int, ...]:
        """Listen on `unix:PATH` and `HOST:PORT`; returns the ports (1 for a socket)."""
        self._following = asyncio.create_task(self._key_files.follow())
        return await self._ads.start(*addresses)

    async def stop(self) -> None:
        """Close all streams; Envoys keep what they have."""
        if self._following is not None:
            self._following.cancel()
        await self._ads.stop()

    def _serve(self, wanted: ir.IR) -> None:
        without = {*self._held, *self._left_out}
        self._served = replace(
            wanted,
            backends=tuple(one for one in wanted.backends if replace(one, endpoints=()) not in without),
            models=tuple(one for one in wanted.models if one not in without),
            handlings=tuple(one for one in wanted.handlings if one not in without),
            access=self._key_files.put_in(wanted.access),
        )
        self._ads.publish(self._builder.build(self._served))

    def _progress(self) -> None:
        progress = self._ads.progress
        if progress.settled and self._wanted is not None and self._served is not None:
            refused = next((nack for nack in progress.refused if nack.type_url == RDS), None)
            if self._isolate(_pieces(self._served), refused):
                self._serve(self._wanted)
        now = self.delivery()
        if now != self._told and (now.settled or now.refusals or not now.envoys):
            self._told = now
            self._on_change()

    def _isolate(self, served: frozenset[Piece], refused: Nack | None) -> bool:
        """Decide what to serve instead; False if nothing is to change."""
        if refused is None:
            self._taken = served
            released, self._held = self._held, []
            return bool(released)
        new = sorted(served - self._taken, key=repr)
        if len(new) == 1:
            self._left_out[new[0]] = refused.message
        else:
            self._held += new[(len(new) + 1) // 2 :]
        return bool(new)


def _pieces(config: ir.IR) -> frozenset[Piece]:
    """Cut into what can be left out by itself; endpoints have no part in routes."""
    return frozenset((*(replace(one, endpoints=()) for one in config.backends), *config.models, *config.handlings))


def _alone(piece: Piece, why: str) -> ir.Refusal:
    if isinstance(piece, ir.Model):
        return ir.Refusal(why, backends=frozenset(), models=frozenset((piece.name,)))
    names = piece.targets if isinstance(piece, ir.Handling) else (piece.name,)
    return ir.Refusal(why, backends=frozenset((piece.namespace, name) for name in names), models=frozenset())


def _refusal(nack: Nack) -> ir.Refusal:
    """Trace the resources that Envoy named back to what they were made of."""
    text = " ".join((nack.message, *(nack.names if nack.type_url != RDS else ())))
    backends = frozenset((found[1], found[2]) for found in BACKEND.finditer(text))
    models = frozenset(found[1] for found in ROUTE.finditer(text))
    providers = frozenset((found[1], found[2]) for found in PROVIDER.finditer(text))
    known = bool(backends or models or providers)
    return ir.Refusal(nack.message, backends if known else None, models if known else None, providers)
