"""Errands: what a request's story waits for is done beside the loop, and the story told on.

`Errands` runs them, a bounded number at a time; `Telling` is one story that waits, which the transport holds as a parked
request. A client that leaves closes the story at the place where it waits.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

from extproc.adapters.calls import Calls
from extproc.errors import Busy, Rejection
from extproc.types import Call, Take, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

    from extproc.adapters.transport.ext_proc import Answer
    from extproc.adapters.turns import Turns
    from extproc.types import Errand, Story, Taken

_LOG = logging.getLogger(__name__)
_MAX_WAIT_S: Final = 60.0  # a story's errands but for its turn end by themselves, long before


class Counters(Protocol):
    """Limits that several pickers count together."""

    async def take(self, take: Take) -> Taken:
        """Charge. Raises Busy where there is no answer in time."""
        ...


class Errands:
    """Runs errands. `waiting` counts those that are under way."""

    def __init__(
        self,
        *,
        threads: int = 1,
        most_waiting: int = 64,
        counters: Counters | None = None,
        turns: Turns | None = None,
    ) -> None:
        """`threads`: one keeps the second core of a small machine for Envoy. `most_waiting`: further ones are refused."""
        self.waiting = 0
        self._counters = counters
        self._turns = turns
        self.refused = 0
        self.calls = Calls()
        self._most = most_waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="errand")

    @property
    def longest_s(self) -> float:
        """The longest that a story waits."""
        return _MAX_WAIT_S + (self._turns.longest_s if self._turns is not None else 0.0)

    async def run(self, errand: Errand) -> Any:
        """Return what came of it. Raises Busy where it cannot be run now, and what the errand raises."""
        if isinstance(errand, Turn):
            if self._turns is None:
                raise Busy
            return await self._turns.run(errand)
        if isinstance(errand, Call):
            return await self.calls.run(errand)
        if isinstance(errand, Take):
            if self._counters is None:
                raise Busy
            return await self._counters.take(errand)
        if self.waiting >= self._most:
            self.refused += 1
            raise Busy
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, errand.work)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Telling:
    """A story that waits for an errand; a `Parked` of the transport."""

    def __init__(self, story: Story, errand: Errand, errands: Errands, told: Callable[[Answer], None]) -> None:
        """`told` hears the answer before the transport does."""
        self._story = story
        self._errand = errand
        self._errands = errands
        self._told = told
        self._task: asyncio.Task[None] | None = None
        self._withdrawn = False

    @property
    def max_wait_s(self) -> float:
        """The answer comes within this time."""
        return self._errands.longest_s

    def then(self, answered: Callable[[Answer], None]) -> None:
        """Tell the story to its end, then call `answered`."""
        if self._withdrawn:
            return
        self._task = asyncio.get_running_loop().create_task(self._tell(answered))
        self._task.add_done_callback(lambda _task: self._story.close())  # withdrawn before it began

    def withdraw(self) -> None:
        """Stop here: the client is gone. A task may outlive that: `wait_for` of some Pythons loses what cancels it."""
        self._withdrawn = True
        self._story.close()
        if self._task is not None:
            self._task.cancel()

    async def _tell(self, answered: Callable[[Answer], None]) -> None:
        try:
            answer = await self._end()
        except Rejection as rejection:
            answer = rejection
        except Exception:  # noqa: BLE001 - a bug met by one request: the others go on
            _LOG.exception("deciding a request failed")
            answer = Rejection("The picker failed on this request; its log says why.")
        finally:
            self._story.close()
        if not self._withdrawn:
            self._told(answer)
            answered(answer)

    async def _end(self) -> Answer:
        """Run errand after errand until the story is over."""
        errand = self._errand
        try:
            while True:
                try:
                    result = await self._errands.run(errand)
                except Exception as error:  # noqa: BLE001 - the story knows what to do without
                    errand = self._story.throw(error)
                else:
                    errand = self._story.send(result)
        except StopIteration as told:
            answer: Answer = told.value
            return answer
