"""Objects that somebody else changes back as often as we put them right: the same is not applied to them without a pause. Pure.

A few times it is applied at once, since most who lay hands on an object do it once; then the pauses double, so that a quarrel with another
controller costs neither the API server nor what else there is to do more than a write now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import orjson

from matrixinfer.cluster.plan import Apply, Together

if TYPE_CHECKING:
    from matrixinfer.cluster.plan import Action

_AT_ONCE: Final = 5  # times
_FIRST_S: Final = 1.0
_MOST_S: Final = 30.0
_FORGOTTEN_S: Final = 2 * _MOST_S  # after so long it is another quarrel
_SWEEP: Final = 1024  # objects remembered before the old ones are looked through


@dataclass(slots=True)
class _Contest:
    what: int
    times: int
    last: float


class Contests:
    """What one controller has applied of late."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, ...], _Contest] = {}
        self._sweep_at = _SWEEP

    def due(self, action: Apply, now: float) -> float:
        """Say when this may be applied; now or earlier: at once."""
        one = self._of.get(_key(action))
        if one is None or one.times < _AT_ONCE or one.what != _digest(action):
            return now
        return one.last + min(_FIRST_S * 2.0 ** min(one.times - _AT_ONCE, 10), _MOST_S)

    def left_of(self, action: Action, now: float) -> tuple[Action, float | None]:
        """Give what may be done now, and when to come back for the rest."""
        applies = action.actions if isinstance(action, Together) else (action,)
        later = [one for one in applies if isinstance(one, Apply) and self.due(one, now) > now]
        if not later:
            return action, None
        left = [one for one in action.actions if one not in later] if isinstance(action, Together) else []
        return Together(tuple(left)), min(self.due(one, now) for one in later)

    def applied(self, action: Apply, now: float) -> None:
        """Take note that it was."""
        key, what = _key(action), _digest(action)
        one = self._of.get(key)
        if one is None or one.what != what or now - one.last > _FORGOTTEN_S:
            self._of[key] = _Contest(what, 1, now)
        else:
            one.times, one.last = one.times + 1, now
        if len(self._of) > self._sweep_at:
            self._of = {key: one for key, one in self._of.items() if now - one.last <= _FORGOTTEN_S}
            self._sweep_at = max(_SWEEP, 2 * len(self._of))


def _key(action: Apply) -> tuple[str, ...]:
    meta = action.manifest["metadata"]
    return action.kind.group, action.kind.kind, meta.get("namespace", ""), meta["name"], action.manager


def _digest(action: Apply) -> int:
    return hash(orjson.dumps(action.manifest))
