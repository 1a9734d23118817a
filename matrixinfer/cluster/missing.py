"""Reading kinds that a cluster may not have: whose CRDs others install, or nobody.

A kind that is not there has no objects. It is looked for again from time to time, and read like any other as soon as it is
there; when it goes, its objects are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from matrixinfer.cluster.protocol import Expired, NotFound, ObjectList

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from matrixinfer.cluster.protocol import Kind, WatchEvent
    from matrixinfer.cluster.store import Source

log = logging.getLogger(__name__)

NOWHERE: Final = "not-installed"  # resource version of a list of nothing: no cluster gives such a one
LOOK_EVERY_S: Final = 30.0


class Lenient:
    """A `store.Source` like `source`, but that each of `kinds` may be missing."""

    def __init__(self, source: Source, kinds: Collection[Kind], *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._source = source
        self._kinds = kinds
        self._look_every_s = look_every_s

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> ObjectList:
        """Return the objects that stand."""
        try:
            return await self._source.list(kind, namespace=namespace, labels=labels)
        except NotFound:
            if kind not in self._kinds:
                raise
            return ObjectList((), NOWHERE)

    async def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change after `since`. Raises Expired, too, when the kind has come or gone: list again."""
        if since == NOWHERE:
            await self._come(kind, namespace)
            log.info("%s of %s are there now", kind.plural, kind.group)
            raise Expired(f"{kind.plural} of {kind.group} have been installed")
        events = self._source.watch(kind, since=since, namespace=namespace, bookmarks=bookmarks)
        try:
            async with contextlib.aclosing(events) as following:  # type: ignore[type-var]  # every watch is a generator
                async for event in following:
                    yield event
        except NotFound as error:
            if kind not in self._kinds:
                raise
            log.info("%s of %s are not there any more", kind.plural, kind.group)
            raise Expired(f"{kind.plural} of {kind.group} are not installed any more") from error

    async def _come(self, kind: Kind, namespace: str | None) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            if (await self.list(kind, namespace=namespace)).resource_version != NOWHERE:
                return
