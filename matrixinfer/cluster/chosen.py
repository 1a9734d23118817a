"""Those objects of a kind that others name, each by a list and a watch of its own: no right is needed to read any other.

It stands in the place of a `Store`. An account that may read certain Secrets by name can follow them so, where a watch of all would take
the right to read all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from matrixinfer.cluster.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from matrixinfer.cluster.protocol import Cluster, Kind, Manifest, ObjectList, WatchEvent
    from matrixinfer.cluster.store import Handler, Place


class Chosen:
    """Follows the objects that `choose` names while `run` runs; the others are as if they were not there."""

    def __init__(self, cluster: Cluster, kind: Kind, *, draw: Callable[[], float]) -> None:
        self.kind = kind
        self._cluster = cluster
        self._draw = draw
        self._following: dict[Place, tuple[Store, asyncio.Task[None]]] = {}
        self._handlers: list[Handler] = []
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Keep up with what is chosen until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            await asyncio.Event().wait()

    async def choose(self, places: Collection[Place]) -> None:
        """Follow these from now on, by namespace and name, and no others; return when of each it is known whether it is there.

        One that may not be read is as if it were not there.
        """
        for gone in self._following.keys() - set(places):
            self._following.pop(gone)[1].cancel()
        if self._group is None:
            return
        for place in sorted(set(places) - self._following.keys()):
            store = Store(_Named(self._cluster, place[1]), self.kind, namespace=place[0], draw=self._draw)
            for handler in self._handlers:
                store.on_change(handler)
            self._following[place] = store, self._group.create_task(store.run())
        for store, _ in list(self._following.values()):
            await store.answered()

    def on_change(self, handler: Handler) -> None:
        """Call `handler(old, new)` at each change."""
        self._handlers.append(handler)
        for store, _ in self._following.values():
            store.on_change(handler)

    def get(self, name: str, namespace: str = "") -> Manifest | None:
        """Return the object if it is chosen and stands."""
        found = self._following.get((namespace, name))
        return None if found is None else found[0].get(name, namespace)

    def all(self, namespace: str | None = None) -> list[Manifest]:
        """Return all chosen objects, or those of one namespace, by namespace and name."""
        return [
            manifest
            for place in sorted(self._following)
            if namespace in (None, place[0]) and (manifest := self.get(place[1], place[0])) is not None
        ]

    def select(self, labels: Mapping[str, str], namespace: str | None = None) -> list[Manifest]:
        """Return the chosen objects whose labels include these."""
        return [one for one in self.all(namespace) if labels.items() <= one["metadata"].get("labels", {}).items()]

    def owned(self, uid: str) -> list[Manifest]:
        """Return the chosen objects that name this owner."""
        return [
            one
            for one in self.all()
            if any(reference["uid"] == uid for reference in one["metadata"].get("ownerReferences", ()))
        ]

    def holds(self, manifest: Manifest) -> bool:
        """Tell whether an object of this name is chosen and stands."""
        meta = manifest["metadata"]
        found = self._following.get((meta.get("namespace", ""), meta["name"]))
        return found is not None and found[0].holds(manifest)

    @property
    def filled(self) -> bool:
        """Nothing is chosen before others have been read: `choose` waits for what is."""
        return True

    @property
    def connected(self) -> bool:
        """Whether every watch is up."""
        return all(store.connected for store, _ in self._following.values())

    async def synced(self) -> None:
        """Return at once: see `filled`."""


class _Named:
    """The one object of a name in a namespace, as what a store reads from."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> ObjectList:
        """Return it, if it stands."""
        return await self._cluster.list(kind, namespace=namespace, labels=labels, name=self._name)

    def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change of it."""
        return self._cluster.watch(kind, since=since, namespace=namespace, bookmarks=bookmarks, name=self._name)
