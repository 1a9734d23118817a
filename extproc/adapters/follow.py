"""Follows the cluster: lists a kind, watches it, and begins again when the source breaks off. The view keeps what it has."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from matrixinfer.cluster.protocol import ClusterError, EventType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from extproc.adapters.world import WorldView
    from matrixinfer.api.kinds import Kind
    from matrixinfer.cluster.protocol import ObjectList, WatchEvent

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 2.0  # the source is on this machine, and an edited route must not wait long for it


class Source(Protocol):
    """The read half of a cluster."""

    async def list(self, kind: Kind) -> ObjectList:
        """Return all objects."""
        ...

    def watch(self, kind: Kind, *, since: str) -> AsyncIterator[WatchEvent]:
        """Yield every change after `since`."""
        ...


@dataclass(slots=True)
class State:
    """How it stands with one kind."""

    synced: bool = False  # listed once at least
    connected: bool = False
    breaks: int = 0
    events: int = 0


class Follower:
    """Keeps a view in step with a source."""

    def __init__(self, source: Source, view: WorldView, kinds: Iterable[Kind]) -> None:
        self.states: Mapping[Kind, State] = {kind: State() for kind in kinds}
        self.synced = asyncio.Event()  # set once every kind has been listed
        self._source = source
        self._view = view

    async def run(self) -> None:
        """Follow all kinds until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind, state in self.states.items():
                group.create_task(self._follow(kind, state))

    async def _follow(self, kind: Kind, state: State) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            events = state.events
            try:
                await self._once(kind, state)
            except ClusterError as error:
                _LOG.log(
                    logging.WARNING if state.connected or not state.breaks else logging.DEBUG,
                    "the cluster cannot be followed; the last known state stays",
                    extra={"kind": kind.kind, "why": f"{error.reason}: {error}"},
                )
            state.connected = False
            state.breaks += 1
            pause = _FIRST_PAUSE_S if state.events > events else min(2 * pause, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause)

    async def _once(self, kind: Kind, state: State) -> None:
        listed = await self._source.list(kind)
        self._view.replace(kind, listed.items)
        state.synced = state.connected = True
        if all(each.synced for each in self.states.values()) and not self.synced.is_set():
            self._view.rebuild()
            self.synced.set()
        watching: Any = self._source.watch(kind, since=listed.resource_version)
        async for event in watching:
            state.events += 1
            if event.type is EventType.DELETED:
                self._view.drop(kind, event.object)
            elif event.type is not EventType.BOOKMARK:
                self._view.put(kind, event.object)
