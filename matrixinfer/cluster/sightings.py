"""Whether a controller's own writes have come back to it: who decides before that decides on the world of before, and writes twice.

A write is seen when the store of its kind is at it, or past it. Who waits is told of each sighting as it comes, so that a thousand
writes cost a thousand looks; and goes on without what nothing is heard of for a while, since the stores may have trouble of their own.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matrixinfer.cluster.chosen import Chosen
    from matrixinfer.cluster.protocol import Kind, Manifest
    from matrixinfer.cluster.store import Store

    Place = tuple[Kind, str, str]  # namespace, name

SILENCE_S: Final = 2.0  # without a sighting of what is waited for


@dataclass(frozen=True, slots=True)
class Written:
    """An object that was applied or deleted."""

    kind: Kind
    meta: Manifest
    deleted: bool = False

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.kind, self.meta.get("namespace", ""), self.meta["name"]

    def seen(self, store: Store | Chosen) -> bool:
        """Tell whether the store is at this write, or past it."""
        stands = store.get(self.meta["name"], self.meta.get("namespace", ""))
        if self.deleted:
            other = stands is not None and self.meta["uid"] not in (None, stands["metadata"].get("uid"))
            return stands is None or other or "deletionTimestamp" in stands["metadata"]
        return stands is not None and int(stands["metadata"]["resourceVersion"]) >= int(self.meta["resourceVersion"])


@dataclass(slots=True, eq=False)
class _Wait:
    unseen: dict[Place, Written]
    news: asyncio.Event = field(default_factory=asyncio.Event)


class Sightings:
    """Knows what is waited for. `changed` is to be called after each change of a store."""

    def __init__(self, stores: Mapping[Kind, Store | Chosen], *, silence_s: float = SILENCE_S) -> None:
        self._stores = stores
        self._silence_s = silence_s
        self._waits: defaultdict[Place, list[_Wait]] = defaultdict(list)

    def changed(self, place: Place) -> None:
        """Take note that the object there is another now, or gone."""
        for wait in list(self._waits.get(place, ())):
            if wait.unseen[place].seen(self._stores[place[0]]):
                self._forget(wait, place)
                wait.news.set()

    async def of(self, written: Iterable[Written]) -> None:
        """Return when all of these have been seen, or nothing more is heard of them."""
        last = {one.place: one for one in written if one.kind in self._stores}
        wait = _Wait({place: one for place, one in last.items() if not one.seen(self._stores[one.kind])})
        for place in wait.unseen:
            self._waits[place].append(wait)
        try:
            while wait.unseen:
                wait.news.clear()
                async with asyncio.timeout(self._silence_s):
                    await wait.news.wait()
        except TimeoutError:
            return
        finally:
            for place in list(wait.unseen):
                self._forget(wait, place)

    def _forget(self, wait: _Wait, place: Place) -> None:
        del wait.unseen[place]
        self._waits[place].remove(wait)
        if not self._waits[place]:
            del self._waits[place]
