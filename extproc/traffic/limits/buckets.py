"""Buckets: what has been used of each limit. It fills with what requests take and drains at the limit's rate.

The rule: a request is admitted if, for each of its limits, what is used and what it takes are within the limit; one that
takes more than the whole limit is admitted when nothing is used, and is paid off before the next. All of its limits are
charged, or none.

What was reserved in excess is given back, but never more than would be missing had it not been reserved: what has drained
meanwhile may have been the reservation's own. That is min(excess, lowest level since the reservation): a level below the
excess means that without it the bucket would have been empty. `_Bucket.lows` keeps the levels that can be such a minimum.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.traffic.limits.rules import Limit

_MOST_LOWS: Final = 64
_SLACK: Final = 1e-6  # of rounding, in tokens


class Charge(NamedTuple):
    """What a request takes of one limit."""

    limit: Limit
    amount: int


class Verdict(NamedTuple):
    """What became of a request's charges, position by position."""

    admitted: bool
    over: tuple[bool, ...]  # it did not fit; a shadow limit that it did not fit is not charged
    used: tuple[float, ...]  # afterwards
    at: float  # time of the bucket


@dataclass(slots=True)
class _Bucket:
    used: float
    at: float
    rate: float
    lows: list[tuple[float, float]] = field(default_factory=list)  # time, level before a charge; both rise
    opened: dict[float, int] = field(default_factory=dict)  # times of reservations that are open, oldest first

    def drain(self, now: float) -> None:
        """Bring the level to `now`. A clock that went back drains nothing, and goes on from there."""
        if now > self.at:
            self.used = max(self.used - (now - self.at) * self.rate, 0.0)
        elif now < self.at:
            self.lows = [(min(at, now), level) for at, level in self.lows]
        self.at = now

    def take(self, amount: float) -> None:
        """Add a charge, and open its reservation."""
        lows, opened = self.lows, self.opened
        while lows and lows[-1][1] >= self.used:
            lows.pop()
        if opened:
            lows.append((self.at, self.used))
            if len(lows) > _MOST_LOWS:
                self.lows = _thinned(lows)
        self.used += amount
        opened[self.at] = opened.get(self.at, 0) + 1

    def close(self, since: float) -> None:
        """End a reservation made at `since`; what no other can need is forgotten."""
        opened = self.opened
        left = opened.get(since, 0)
        if left > 1:
            opened[since] = left - 1
            return
        opened.pop(since, None)
        oldest = next(iter(opened), None)
        if oldest is None:
            self.lows.clear()
        elif self.lows and self.lows[0][0] <= oldest:
            del self.lows[: bisect_right(self.lows, oldest, key=_time)]

    def give_back(self, amount: float, since: float) -> None:
        """Take off what is left of `amount`, reserved at `since`."""
        lows = self.lows
        first = bisect_right(lows, since, key=_time)
        given = min(amount, self.used)
        if first < len(lows):
            given = min(given, lows[first][1])
            later = [(at, level - given) for at, level in lows[first:]]
            while first and lows[first - 1][1] >= later[0][1]:
                first -= 1
            lows[first:] = later
        self.used -= given


def _thinned(lows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return about half of them: of two the lower stands for both, which gives less back.

    Those that lie closest go: what was reserved between them is less than either then, so that nothing is lost.
    """
    apart = [after[1] / max(before[1], 1.0) for before, after in pairwise(lows)]
    limit = sorted(apart)[len(apart) // 2]
    kept = [lows[0]]
    merged = False
    for low, distance in zip(lows[1:], apart, strict=True):
        if distance <= limit and not merged:
            kept[-1] = (low[0], kept[-1][1])
            merged = True  # never three at once: distances would add up
        else:
            kept.append(low)
            merged = False
    return kept


def _time(low: tuple[float, float]) -> float:
    return low[0]


class Buckets:
    """All buckets of one counter. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def used(self, key: str, now: float) -> float:
        """Return what is used of a limit."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return 0.0
        bucket.drain(now)
        return bucket.used

    def take(self, charges: Sequence[Charge], now: float) -> Verdict:
        """Charge all limits, or none if one of them is reached that is not in shadow."""
        over, found, admitted = [], [], True
        for limit, amount in charges:
            bucket = self._of(limit, now)
            exceeds = bucket.used + min(amount, limit.amount) > limit.amount + _SLACK
            admitted = admitted and (limit.shadow or not exceeds)
            over.append(exceeds)
            found.append(bucket)
        if admitted:
            for bucket, (_, amount), exceeds in zip(found, charges, over, strict=True):
                if not exceeds:
                    bucket.take(amount)
        return Verdict(admitted, tuple(over), tuple(bucket.used for bucket in found), now)

    def settle(self, charge: Charge, *, actual: float, since: float, now: float) -> None:
        """Put what was really taken in place of a charge made at `since`."""
        bucket = self._buckets.get(charge.limit.key)
        if bucket is None:  # empty, and forgotten
            if actual <= charge.amount:
                return
            bucket = self._of(charge.limit, now)
        bucket.drain(now)
        if actual > charge.amount:
            bucket.used += actual - charge.amount
        elif actual < charge.amount:
            bucket.give_back(charge.amount - actual, since)
        bucket.close(since)

    def put(self, limit: Limit, used: float, now: float) -> None:
        """Take the level of a limit from somebody who knows it better."""
        bucket = self._of(limit, now)
        bucket.used = used
        bucket.lows.clear()

    def prune(self, now: float) -> None:
        """Forget buckets that are empty."""
        for key in [key for key, one in self._buckets.items() if not one.opened and self.used(key, now) <= 0.0]:
            del self._buckets[key]

    def _of(self, limit: Limit, now: float) -> _Bucket:
        """Return the bucket of a limit, drained by the rate of before, to drain by the limit's from now on."""
        bucket = self._buckets.get(limit.key)
        if bucket is None:
            bucket = self._buckets[limit.key] = _Bucket(0.0, now, limit.rate)
            return bucket
        bucket.drain(now)
        bucket.rate = limit.rate
        return bucket
