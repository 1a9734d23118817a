"""The one loop: stores -> queue -> reconcile -> perform. It knows no kind; controllers give it theirs.

`reconcile(key, world, now)` is pure and returns a `Plan`. A Conflict, a missing right or an unreachable cluster puts the key
back with a growing delay; so does a bug, which is logged with its key. Other keys are not held up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from matrixinfer.cluster.chosen import Chosen
from matrixinfer.cluster.contests import Contests
from matrixinfer.cluster.plan import Apply, ApplyStatus, Delete, Emit, Plan, Publish, SetStatus, Together
from matrixinfer.cluster.protocol import (
    AlreadyExists,
    ClusterError,
    Conflict,
    Forbidden,
    Invalid,
    Key,
    NotFound,
    Unavailable,
)
from matrixinfer.cluster.queue import WorkQueue
from matrixinfer.cluster.sightings import Sightings, Written
from matrixinfer.cluster.store import Stores
from matrixinfer.cluster.telling import Teller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from matrixinfer.cluster.plan import Action
    from matrixinfer.cluster.protocol import Cluster, Kind, Manifest
    from matrixinfer.cluster.store import Store

    Reconcile = Callable[[Key, "World", float], Plan]
    Touches = Callable[[Manifest, "World"], Iterable[Key]]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16  # writes of one plan on their way
_REST: Final = 4.0  # times what the look at a key took is how long it rests: changes in bulk are looked at together
_REST_AT_MOST_S: Final = 1.0
_PATIENCE_S: Final = 1.0  # a status that is soon another waits, and is written that often at most;
_PATIENCE_BUSY_S: Final = 30.0  # while other keys wait to be looked at
_TELLING_S: Final = 3.0  # what Events get to be written in when the loop stops


class World:
    """What a reconcile may read: the last known objects of every kind that its controller watches."""

    def __init__(self, stores: Mapping[Kind, Store | Chosen]) -> None:
        self._stores = stores

    def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest | None:
        """Return the object if it stands."""
        return self._stores[kind].get(name, namespace)

    def all(self, kind: Kind, namespace: str | None = None) -> list[Manifest]:
        """Return all objects, or those of one namespace, by namespace and name."""
        return self._stores[kind].all(namespace)

    def select(self, kind: Kind, labels: Mapping[str, str], namespace: str | None = None) -> list[Manifest]:
        """Return the objects whose labels include these."""
        return self._stores[kind].select(labels, namespace)

    def owned(self, kind: Kind, uid: str) -> list[Manifest]:
        """Return the objects that name this owner."""
        return self._stores[kind].owned(uid)


@dataclass(frozen=True, slots=True)
class Controller:
    """What makes the loop one kind's: how to reconcile, and whose changes touch which keys."""

    name: str  # the manager of the fields it applies, and who its events are from
    reconcile: Reconcile
    watches: Mapping[Kind, Touches]
    # What to write when the cluster refuses what a plan wants and only a user can change that.
    refused: Callable[[Key, World, ClusterError, float], Plan] | None = None
    namespaces: Mapping[Kind, str] = field(default_factory=dict)  # kinds of which one namespace is followed
    # Kinds of which only those objects are followed that others name, by namespace and name.
    chosen: Mapping[Kind, Callable[[World], Iterable[tuple[str, str]]]] = field(default_factory=dict)


def itself(kind: Kind) -> Touches:
    """Say that a change of an object of this kind touches the object."""

    def touches(manifest: Manifest, _: World) -> Iterable[Key]:
        meta = manifest["metadata"]
        return (Key(kind.kind, meta.get("namespace", ""), meta["name"]),)

    return touches


def owner(kind: Kind) -> Touches:
    """Say that a change touches the owner of this kind that controls the object."""

    def touches(manifest: Manifest, _: World) -> Iterable[Key]:
        meta = manifest["metadata"]
        namespace = meta.get("namespace", "") if kind.namespaced else ""
        return [
            Key(kind.kind, namespace, reference["name"])
            for reference in meta.get("ownerReferences", ())
            if reference.get("controller")
            and reference["kind"] == kind.kind
            and reference["apiVersion"].partition("/")[0] == kind.api_version.partition("/")[0]
        ]

    return touches


class Loop:
    """Runs one controller against a cluster. `publish` receives the values of its `Publish` actions.

    While `may_write` says no, values are published all the same, as is what is this process's own, and nothing else is performed;
    `refresh` makes up for it.
    `report` is told of every reconcile: how it ended ("done", "again" or "failed"), and its seconds. `stores` are those that others read
    as well, and that somebody else runs.
    """

    def __init__(  # noqa: PLR0913 - the edge: everything impure is an argument
        self,
        cluster: Cluster,
        controller: Controller,
        *,
        publish: Callable[[Any], None] | None = None,
        workers: int = 1,
        clock: Callable[[], float] = time.time,
        draw: Callable[[], float] = random.random,
        queue: WorkQueue[Key] | None = None,
        may_write: Callable[[], bool] = lambda: True,
        report: Callable[[str, float], None] = lambda _outcome, _seconds: None,
        stores: Stores | None = None,
    ) -> None:
        self._cluster = cluster
        self._controller = controller
        self._publish = publish
        self._workers = workers
        self._clock = clock
        self._draw = draw
        self._teller = Teller(cluster, controller.name, clock=clock, may_write=may_write)
        self._may_write = may_write
        self._report = report
        self._queue: WorkQueue[Key] = queue or WorkQueue()
        self._chosen = {kind: Chosen(cluster, kind, draw=draw) for kind in controller.chosen}
        self._own = Stores(cluster, draw=draw)
        followed = stores or self._own
        self._stores: dict[Kind, Store | Chosen] = {
            kind: self._chosen.get(kind) or followed.of(kind, controller.namespaces.get(kind))
            for kind in controller.watches
        }
        self.world = World(self._stores)
        self._wake = asyncio.Event()
        self._sightings = Sightings(self._stores)
        self._contests = Contests()
        self._held_since: dict[Key, float] = {}  # keys with a status that waits, or from when on the next one does
        self._stopping = False

    async def run(self) -> None:
        """Work until `stop`, then finish what is being worked on; cancelling breaks off at once."""
        async with asyncio.TaskGroup() as group:
            around = [group.create_task(chosen.run()) for chosen in self._chosen.values()]
            around += [group.create_task(one()) for one in (self._own.run, self._listen, self._teller.run)]
            await self._work(group)
            await self._teller.finish(_TELLING_S)
            for task in around:
                task.cancel()

    def stop(self) -> None:
        """Take no further key."""
        self._stopping = True
        self._wake.set()

    def touch(self, key: Key) -> None:
        """Reconcile this key soon, for a reason outside the cluster."""
        self._queue.add(key)
        self._wake.set()

    def refresh(self) -> None:
        """Reconcile everything that there is."""
        for kind, touches in self._controller.watches.items():
            changed = self._handler(kind, touches)
            for manifest in self._stores[kind].all():
                changed(None, manifest)

    @property
    def synced(self) -> bool:
        """Whether the world is complete."""
        return all(store.filled for store in self._stores.values())

    @property
    def connected(self) -> bool:
        """Whether every watch is up."""
        return all(store.connected for store in self._stores.values())

    @property
    def waiting(self) -> int:
        """How many keys wait."""
        return len(self._queue)

    async def _listen(self) -> None:
        """Once the world is complete, turn its objects and their changes into keys."""
        for store in self._stores.values():
            await store.synced()
        self._wake.set()
        for kind, touches in self._controller.watches.items():
            self._stores[kind].on_change(self._handler(kind, touches))

    def _handler(self, kind: Kind, touches: Touches) -> Callable[[Manifest | None, Manifest | None], None]:
        def changed(old: Manifest | None, new: Manifest | None) -> None:
            meta = (new or old or {}).get("metadata", {})
            self._sightings.changed((kind, meta.get("namespace", ""), meta.get("name", "")))
            for manifest in (old, new):
                if manifest is not None:
                    for key in touches(manifest, self.world):
                        self.touch(key)

        return changed

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Give keys out to be worked on, some at once, until told to stop; return when that work has ended."""
        loop = asyncio.get_running_loop()
        working: set[asyncio.Task[None]] = set()

        def ended(task: asyncio.Task[None]) -> None:
            working.discard(task)
            self._wake.set()

        while not self._stopping:
            ready = self.synced and len(working) < self._workers  # nothing is decided on half a world
            key = self._queue.pop(loop.time()) if ready else None
            if key is None:
                await self._wait(self._queue.next_due() if ready else None)
                continue
            task = group.create_task(self._one(key, loop))
            working.add(task)
            task.add_done_callback(ended)
        if working:
            await asyncio.wait(working)

    async def _one(self, key: Key, loop: asyncio.AbstractEventLoop) -> None:
        rest_s = 0.0
        try:
            rest_s = await self._reconcile(key, loop)
        finally:
            loop.call_later(rest_s, self._give_back, key)

    def _give_back(self, key: Key) -> None:
        self._queue.done(key)
        self._wake.set()

    async def _wait(self, due: float | None) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(
                due
            ):  # unlike wait_for, it loses no cancellation to an event at the same moment
                await self._wake.wait()

    async def _reconcile(self, key: Key, loop: asyncio.AbstractEventLoop) -> float:
        """Look at a key, and do what it needs; return for how long it is to rest."""
        began, outcome, rest_s = loop.time(), "done", 0.0
        try:
            for kind, chosen in self._chosen.items():
                await chosen.choose(set(self._controller.chosen[kind](self.world)))
            looked = loop.time()
            plan = self._controller.reconcile(key, self.world, self._clock())
            rest_s = min((loop.time() - looked) * _REST, _REST_AT_MOST_S)
            await self._perform_all(key, plan, loop)
        except (Conflict, Forbidden, Unavailable) as error:
            outcome = "again"
            delay_s = self._queue.retry(key, loop.time(), self._draw())
            log.info("%s: %s: %s; again in %.2f s", self._controller.name, key, error, delay_s)
            if isinstance(error, Forbidden):
                await self._say(key, error)
        except Invalid as error:
            outcome = "failed"
            delay_s = self._queue.retry(key, loop.time(), self._draw())
            log.warning("%s: %s: %s; again in %.2f s", self._controller.name, key, error, delay_s)
            await self._say(key, error)
        except Exception:  # a bug, or a refusal that is one: this task's root
            outcome = "failed"
            delay_s = self._queue.retry(key, loop.time(), self._draw())
            log.exception("%s: %s failed; again in %.2f s", self._controller.name, key, delay_s)
        else:
            self._queue.forget(key)
            if plan.requeue_after_s is not None:
                self._queue.add_at(key, loop.time() + plan.requeue_after_s)
        finally:
            self._report(outcome, loop.time() - began)
        return rest_s

    async def _perform_all(self, key: Key, plan: Plan, loop: asyncio.AbstractEventLoop) -> None:
        """Perform a plan in order, and return when the world shows it: the next look is not to decide on that of before."""
        if not any(isinstance(action, ApplyStatus) for action in plan.actions):
            self._held_since.pop(key, None)
        written: list[Written] = []
        try:
            for planned in plan.actions:
                action, due = self._contests.left_of(planned, loop.time())
                if due is not None:
                    log.warning("%s: %s: others change back what is put right", self._controller.name, key)
                    self._queue.add_at(key, due)
                always = isinstance(action, Publish) or (isinstance(action, Apply) and action.own)
                if always or (self._may_write() and not self._waits(key, action, loop.time())):
                    await self._perform(action, written)
        except ClusterError:
            await self._sightings.of(written)
            raise
        await self._sightings.of(written)

    def _waits(self, key: Key, action: Action, now: float) -> bool:
        """Tell whether an action is a status that is soon another: the key comes again when it has waited long enough."""
        if not isinstance(action, ApplyStatus):
            return False
        patience_s = _PATIENCE_BUSY_S if self._queue.ready else _PATIENCE_S
        if action.patient and now < (due := self._held_since.setdefault(key, now) + patience_s):
            self._queue.add_at(key, due)
            return True
        self._held_since.pop(key, None)
        if action.patient:
            self._held_since[key] = now
        return False

    async def _say(self, key: Key, error: ClusterError) -> None:
        """Let the controller tell the users of an object what was refused. What is only said may fail: it is logged."""
        if self._controller.refused is None or not self._may_write():
            return
        try:
            for action in self._controller.refused(key, self.world, error, self._clock()).actions:
                await self._perform(action)
        except ClusterError as again:
            log.info("%s: %s: cannot be said: %s", self._controller.name, key, again)

    async def _perform(self, action: Action, written: list[Written] | None = None) -> None:
        name = self._controller.name
        written = [] if written is None else written
        match action:
            case Apply():
                written.append(Written(action.kind, await self._apply(action)))
            case ApplyStatus(kind, manifest, force=force):
                with contextlib.suppress(NotFound):  # deleted meanwhile: there is no status to write
                    stands = await self._cluster.apply_status(kind, manifest, manager=name, force=force)
                    written.append(Written(kind, stands["metadata"]))
            case SetStatus(kind, manifest):
                with contextlib.suppress(NotFound):
                    stands = await self._cluster.update_status(kind, manifest)
                    written.append(Written(kind, stands["metadata"]))
            case Delete():
                await self._delete(action)
                gone = {"name": action.name, "namespace": action.namespace, "uid": action.uid}
                written.append(Written(action.kind, gone, deleted=True))
            case Emit():
                self._teller.say(action)
            case Together(actions):
                await self._perform_together(actions, written)
            case Publish(value):
                if self._publish is None:
                    raise TypeError(f"{name} publishes, but its loop was built without `publish`")
                self._publish(value)

    async def _perform_together(self, actions: Iterable[Apply | ApplyStatus | Delete], written: list[Written]) -> None:
        """Perform all of them, then raise the first error."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(action: Action) -> None:
            async with room:
                if self._may_write():
                    await self._perform(action, written)

        ended = await asyncio.gather(*map(one, actions), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _apply(self, action: Apply) -> Manifest:
        """Write it; return the metadata of what stands then."""
        kind, manifest = action.kind, action.manifest
        changes = kind in self._stores and self._stores[kind].holds(manifest)
        try:
            if action.new:
                stands = await self._cluster.create(kind, manifest)
            else:
                manager = action.manager or self._controller.name
                stands = await self._cluster.apply(kind, manifest, manager=manager, force=action.force)
        except AlreadyExists as error:  # the world is not shown yet as it is
            raise Conflict(f"{kind.kind} {manifest['metadata']['name']} is to be made, and stands: {error}") from error
        if changes:
            self._contests.applied(action, asyncio.get_running_loop().time())
        meta: Manifest = stands["metadata"]
        return meta

    async def _delete(self, action: Delete) -> None:
        with contextlib.suppress(NotFound):
            await self._cluster.delete(
                action.kind,
                action.name,
                action.namespace,
                uid=action.uid,
                propagation=action.propagation,
                grace_period_s=action.grace_period_s,
            )
