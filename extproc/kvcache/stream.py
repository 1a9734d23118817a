"""The order of an engine's batches: what came twice, what is missing, and when the engine is another one than before.

Batches of one publisher are numbered from 0. A number that is skipped is asked for again, from the engine's buffer of past
batches; where it cannot be had, what is known of the engine is dropped and learned anew. A number that goes back with a
later time is an engine that started anew. Asking always begins one batch early: if that one is not the batch which was
applied under its number, or there is none, the engine is in another life. After a connection was made again not all
counts as known until the engine has shown that it is the same, and that nothing was missed.

A pure state machine: each method returns the steps to take, in order.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from extproc.kvcache.events import Batch

_HELD: Final = 20_000  # batches that may wait for a replay: minutes of a busy engine


class Apply(NamedTuple):
    """This batch is next."""

    batch: Batch


class Reset(NamedTuple):
    """What is known of the engine is wrong: forget it."""

    anew: bool = False  # it started anew, and has nothing of what it had


class Ask(NamedTuple):
    """Ask the engine for its batches from this number on."""

    first: int


Step = Apply | Reset | Ask


@dataclass(slots=True)
class StreamCounts:
    """What has happened on streams."""

    gaps: int = 0
    replays: int = 0  # asked for
    failed_replays: int = 0  # that brought nothing
    resets: int = 0
    restarts: int = 0
    duplicates: int = 0


class Stream:
    """One publisher's batches."""

    def __init__(self, counts: StreamCounts, *, replays: bool) -> None:
        """Share `counts` with others; `replays`: the engine can be asked for past batches."""
        self.complete = False  # every batch since the engine's start was applied
        self._counts = counts
        self._replays = replays
        self._next: int | None = None  # None: none was applied
        self._last_at = 0.0  # time of the batch before `_next`
        self._asked: int | None = None  # what `_next` was when a replay was asked for, -1 for None; None: not asked
        self._stale = False  # what else the running replay brings is of no use
        self._brought = False  # the running replay brought something
        self._doubted = False  # was complete when the connection was made again; whether it is still has to show
        self._held: deque[tuple[int, Batch]] = deque(maxlen=_HELD)  # came while a replay was on its way

    @property
    def started(self) -> bool:
        """True once something was heard: a batch, or that there was none so far."""
        return self._next is not None

    @property
    def waiting(self) -> bool:
        """True while a replay is on its way."""
        return self._asked is not None

    @property
    def whole(self) -> bool:
        """True while all is known of the engine: every batch since its start was applied, and none waits for a replay."""
        return self.complete and self._asked is None

    def begin(self) -> list[Step]:
        """Return what to do first, once new batches are listened to: at the start, and when the connection is made again."""
        if self._next is not None and self.complete:
            self.complete, self._doubted = False, True
        return self._ask() if self._replays and self._asked is None else []

    def take(self, number: int, batch: Batch) -> list[Step]:
        """Take a batch that the engine published."""
        if self._asked is not None:
            self._held.append((number, batch))
            return []
        return self._advance(number, batch)

    def replayed(self, number: int, batch: Batch) -> list[Step]:
        """Take a batch of the replay."""
        self._brought = True
        if self._asked is None or self._stale:
            return []
        if self._next is None:
            self.complete = number == 0
            return [self._apply(number, batch)]
        if number == self._next - 1 and batch.at != self._last_at:
            self._stale = True
            return [self._restarted()]
        if number < self._next:
            if number == self._next - 1:
                self._believe()
            return []
        if number > self._next:
            return [self._reset(), self._apply(number, batch)]
        return [self._apply(number, batch)]

    def replay_ended(self) -> list[Step]:
        """Take the end of the replay."""
        if self._asked is None:
            return []
        if self._stale:
            self._stale = False
            return self._ask()
        if self._asked > 0 and not self._brought:  # what was applied last would have come from the same engine
            return [self._restarted(), *self._ask()]
        while self._held and self._held[0][1].at <= self._last_at:  # the replay brought it, or it is of an earlier life
            self._held.popleft()
        waits = bool(self._held) and self._held[0][0] > (0 if self._next is None else self._next)
        if waits and self._asked == (-1 if self._next is None else self._next):
            return self.replay_failed()
        self._asked = None
        if self._next is None and not self._held:  # it has told nothing so far
            self._next, self.complete = 0, True
        elif self._next == 0:  # as before: there was nothing to ask for
            self._believe()
        return self._release()

    def replay_failed(self) -> list[Step]:
        """Take that no replay comes: go on with what is new."""
        if self._asked is None:
            return []
        self._counts.failed_replays += 1
        self._asked = None
        self._stale = False
        steps: list[Step] = []
        if self._held and self._next is not None and self._held[0][0] > self._next:
            steps.append(self._reset())
        if self._held:
            number, batch = self._held.popleft()
            if self._next is None or number > self._next:
                self.complete = number == 0
                steps.append(self._apply(number, batch))
            else:
                steps += self._advance(number, batch)
        return steps + self._release()

    def restarted(self) -> list[Step]:
        """Take that the engine is another one than before; the cluster says so."""
        if self._next is None:
            return []
        self._stale = self.waiting
        return [self._restarted()]

    def lost(self) -> list[Step]:
        """Take that a batch could not be read: what it changed is not known."""
        if self._next is None:
            return []
        return [self._reset()]

    def _advance(self, number: int, batch: Batch) -> list[Step]:
        if self._next is None:
            if number and self._replays:
                return self._hold(number, batch)
            self.complete = number == 0
            return [self._apply(number, batch)]
        if number >= self._next:
            missing = number > self._next
            self._counts.gaps += missing
            if missing and self._replays:
                return self._hold(number, batch)
            return [*([self._reset()] if missing else ()), self._apply(number, batch)]
        if batch.at <= self._last_at:
            self._counts.duplicates += 1
            return []
        return [self._restarted(), *self._advance(number, batch)]

    def _release(self) -> list[Step]:
        """Take the batches that waited, up to one that has to wait again."""
        steps: list[Step] = []
        while self._held and self._asked is None:
            steps += self._advance(*self._held.popleft())
        return steps

    def _hold(self, number: int, batch: Batch) -> list[Step]:
        self._held.appendleft((number, batch))
        return self._ask()

    def _ask(self) -> list[Step]:
        self._counts.replays += 1
        self._brought = False
        self._asked = -1 if self._next is None else self._next
        return [Ask(max(self._asked - 1, 0))]

    def _believe(self) -> None:
        """Take that the engine is the same, and that nothing of it was missed."""
        self.complete = self.complete or self._doubted
        self._doubted = False

    def _apply(self, number: int, batch: Batch) -> Apply:
        if number == self._next:
            self._believe()
        self._next = number + 1
        self._last_at = batch.at
        return Apply(batch)

    def _reset(self) -> Reset:
        self._counts.resets += 1
        self.complete = self._doubted = False
        return Reset()

    def _restarted(self) -> Reset:
        self._counts.restarts += 1
        self._next = None
        self.complete = self._doubted = False
        return Reset(anew=True)
