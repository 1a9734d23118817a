"""The last known state of one kind: a list, kept up to date by a watch, with indexes and handlers.

A store outlives its source: while that cannot be reached the last state stands, and when it comes back with another history
the store lists again and tells its handlers the difference. Objects are shared with all readers and must not be changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol

from matrixinfer.cluster.backoff import Backoff
from matrixinfer.cluster.protocol import ClusterError, EventType, Expired, Key, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from matrixinfer.cluster.protocol import Kind, Manifest, ObjectList, WatchEvent

    Handler = Callable[[Manifest | None, Manifest | None], None]

log = logging.getLogger(__name__)

Place = tuple[str, str]  # namespace, name


class Source(Protocol):
    """What a store reads from: a Cluster, or a Feed of one."""

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> ObjectList:
        """Return the objects that stand."""
        ...

    def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change after `since`."""
        ...


class Store:
    """Implements the reading of one kind. `draw` gives the chance in the back-off."""

    def __init__(
        self,
        source: Source,
        kind: Kind,
        *,
        namespace: str | None = None,
        backoff: Backoff | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.kind = kind
        self.connected = False
        self._source = source
        self._namespace = namespace
        self._backoff = backoff or Backoff(most_s=5.0)
        self._draw = draw
        self._objects: dict[Place, Manifest] = {}
        self._by_label: defaultdict[tuple[str, str], dict[Place, None]] = defaultdict(dict)
        self._by_owner: defaultdict[str, dict[Place, None]] = defaultdict(dict)
        self._by_namespace: defaultdict[str, dict[Place, None]] = defaultdict(dict)
        self._handlers: list[Handler] = []
        self._synced = asyncio.Event()
        self._answered = asyncio.Event()  # filled, or refused for good
        self._since = ""

    # Reading

    def get(self, name: str, namespace: str = "") -> Manifest | None:
        """Return the object if it stands."""
        return self._objects.get((namespace, name))

    def holds(self, manifest: Manifest) -> bool:
        """Tell whether an object of this name stands."""
        meta = manifest["metadata"]
        return (meta.get("namespace", ""), meta["name"]) in self._objects

    def all(self, namespace: str | None = None) -> list[Manifest]:
        """Return all objects, or those of one namespace, by namespace and name."""
        places: Iterable[Place] = self._objects if namespace is None else self._by_namespace.get(namespace, ())
        return [self._objects[place] for place in sorted(places)]

    def select(self, labels: Mapping[str, str], namespace: str | None = None) -> list[Manifest]:
        """Return the objects whose labels include these; no labels select everything."""
        if not labels:
            return self.all(namespace)
        sets = sorted((self._by_label.get(pair, {}) for pair in labels.items()), key=len)
        return [
            self._objects[place]
            for place in sorted(sets[0])
            if namespace in (None, place[0]) and all(place in others for others in sets[1:])
        ]

    def owned(self, uid: str) -> list[Manifest]:
        """Return the objects that name this owner."""
        return [self._objects[place] for place in sorted(self._by_owner.get(uid, ()))]

    def on_change(self, handler: Handler) -> None:
        """Call `handler(old, new)` at each change; it is told at once of what stands already. None: not there."""
        self._handlers.append(handler)
        for manifest in list(self._objects.values()):
            self._tell(handler, None, manifest)

    @property
    def filled(self) -> bool:
        """Whether everything has been listed once."""
        return self._synced.is_set()

    async def synced(self) -> None:
        """Return once the store has been filled."""
        await self._synced.wait()

    async def answered(self) -> None:
        """Return once the store has been filled, or the source has said that it may not be read."""
        await self._answered.wait()

    # Following

    async def run(self) -> None:
        """Keep up with the source until cancelled."""
        failures = 0
        while True:
            try:
                async for watching in self._follow():
                    self.connected = True
                    if watching:
                        failures = 0
            except Expired:
                log.info("%s: the history has gone on without us: listing again", self.kind.plural)
                self._since = ""
            except Unavailable as error:
                if failures == 0:
                    log.info("%s: %s; the last known state stands", self.kind.plural, error)
            except ClusterError as error:
                self._answered.set()
                if failures == 0:
                    log.error("%s cannot be followed: %s", self.kind.plural, error)  # noqa: TRY400 - where is no news
            self.connected = False
            failures += 1
            await asyncio.sleep(self._backoff.delay_s(failures, self._draw()))

    async def _follow(self) -> AsyncIterator[bool]:
        """List unless the history goes on from where we are, then watch; yields at every sign of life, True for the watch's."""
        if not self._since:
            found = await self._source.list(self.kind, namespace=self._namespace)
            self._replace(found.items)
            self._since = found.resource_version
            self._synced.set()
            self._answered.set()
            yield False
        events = self._source.watch(self.kind, since=self._since, namespace=self._namespace)
        async with contextlib.aclosing(events) as following:  # type: ignore[type-var]  # every watch is a generator
            async for event in following:
                self._take(event)
                self._since = event.object["metadata"]["resourceVersion"]
                yield True

    def _take(self, event: WatchEvent) -> None:
        if event.type is EventType.DELETED:
            self._put(_place(event.object), None)
        elif event.type is not EventType.BOOKMARK:
            self._put(_place(event.object), event.object)

    def _replace(self, items: Iterable[Manifest]) -> None:
        found = {_place(item): item for item in items}
        for place in [place for place in self._objects if place not in found]:
            self._put(place, None)
        for place, item in found.items():
            old = self._objects.get(place)
            if old is not None and old["metadata"].get("uid") != item["metadata"].get("uid"):
                self._put(place, None)  # another object under the same name
                old = None
            if old is None or _version(old) != _version(item):
                self._put(place, item)

    def _put(self, place: Place, new: Manifest | None) -> None:
        old = self._objects.pop(place, None)
        if old is not None:
            self._index(place, old, present=False)
        if new is not None:
            self._objects[place] = new
            self._index(place, new, present=True)
        if old is not None or new is not None:
            for handler in self._handlers:
                self._tell(handler, old, new)

    def _index(self, place: Place, manifest: Manifest, *, present: bool) -> None:
        meta = manifest["metadata"]
        _enter(self._by_namespace, place[0], place, present=present)
        for pair in meta.get("labels", {}).items():
            _enter(self._by_label, pair, place, present=present)
        for reference in meta.get("ownerReferences", ()):
            _enter(self._by_owner, reference["uid"], place, present=present)

    def _tell(
        self,
        handler: Handler,
        old: Manifest | None,
        new: Manifest | None,
    ) -> None:
        try:
            handler(old, new)
        except Exception:
            place = _place(new or old or {"metadata": {"name": ""}})
            log.exception("a handler failed on %s", Key(self.kind.kind, *place))


class Stores:
    """The stores of one process in which several follow the same cluster: each kind is read once."""

    def __init__(self, source: Source, *, draw: Callable[[], float] = random.random) -> None:
        self._source = source
        self._draw = draw
        self._stores: dict[tuple[Kind, str | None], Store] = {}

    def of(self, kind: Kind, namespace: str | None = None) -> Store:
        """Return the store of a kind, in all namespaces or in one. To be asked before `run`."""
        place = kind, namespace
        if place not in self._stores:
            self._stores[place] = Store(self._source, kind, namespace=namespace, draw=self._draw)
        return self._stores[place]

    async def run(self) -> None:
        """Keep up with the source until cancelled."""
        async with asyncio.TaskGroup() as group:
            for store in self._stores.values():
                group.create_task(store.run())
            await asyncio.Event().wait()


def _place(manifest: Manifest) -> Place:
    meta = manifest["metadata"]
    return meta.get("namespace", ""), meta["name"]


def _version(manifest: Manifest) -> Any:
    return manifest["metadata"].get("resourceVersion")


def _enter(index: defaultdict[Any, dict[Place, None]], name: Any, place: Place, *, present: bool) -> None:
    if present:
        index[name][place] = None
        return
    index[name].pop(place, None)
    if not index[name]:
        del index[name]
