"""Turns: stories that wait at the gate are told on when it says so, and one timer refuses those that wait too long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from extproc.traffic.flow.gate import Gate
    from extproc.types import Turn


_GRAIN_S: Final = 0.002  # uvloop's timers count milliseconds, and may be early by one: too early would be for nothing


class Turns:
    """Performs `Turn`."""

    def __init__(self, gate: Gate) -> None:
        gate.alarm = self._wake_at
        self._gate = gate
        self._timer: asyncio.TimerHandle | None = None

    @property
    def longest_s(self) -> float:
        """The longest that a turn may take."""
        return 0.0 if self._gate.rules is None else self._gate.rules.longest_s

    async def run(self, turn: Turn) -> None:
        """Return when the turn has come. Raises the refusal if it does not come."""
        over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

        def end(refusal: Exception | None) -> None:
            if not over.done():
                over.set_result(refusal)

        turn.then(end)
        refusal = await over
        if refusal is not None:
            raise refusal

    def _wake_at(self, at: float) -> None:
        """Look for those that wait too long just after the time `at`, by the loop's clock."""
        at += _GRAIN_S
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        at = self._gate.expire(asyncio.get_running_loop().time())
        if at is not None:
            self._wake_at(at)
