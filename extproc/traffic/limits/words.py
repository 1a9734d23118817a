"""What clients read of limits: `x-ratelimit-*` on every answer, a message and `retry-after` on refusals.

The names and forms are OpenAI's, whose clients read them: `remaining` is a number, `reset` the time until nothing is
used, as in `6m0s` or `250ms`. Of several limits the one that has the least left counts. Shadow limits say nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from extproc import errors
from extproc.traffic.limits.rules import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.traffic.limits.buckets import Charge, Verdict
    from extproc.traffic.limits.rules import Limit

_LONGEST_S: Final = 30 * 86_400
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_COUNTED: Final = {Kind.REQUESTS: "requests", Kind.INPUT: "input tokens", Kind.OUTPUT: "output tokens"}


def headers(charges: Sequence[Charge], verdict: Verdict) -> tuple[tuple[str, str], ...]:
    """Return the headers that tell of these limits, as they stand after the verdict."""
    tightest: dict[str, tuple[float, Limit, float]] = {}
    for (limit, _), used in zip(charges, verdict.used, strict=True):
        if limit.shadow:
            continue
        unit = "requests" if limit.kind is Kind.REQUESTS else "tokens"
        left = (limit.amount - used) / limit.amount
        if unit not in tightest or left < tightest[unit][0]:
            tightest[unit] = (left, limit, used)
    found: list[tuple[str, str]] = []
    for unit, (_, limit, used) in tightest.items():
        found += (
            (f"x-ratelimit-limit-{unit}", str(limit.stated or limit.amount)),
            (f"x-ratelimit-remaining-{unit}", str(max(math.floor(limit.amount - used + 1e-6), 0))),
            (f"x-ratelimit-reset-{unit}", duration(used / limit.rate)),
        )
    return tuple(found)


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it."""
    if seconds < 1:
        return f"{max(math.ceil(seconds * 1000 - 1e-6), 0)}ms"
    whole = math.ceil(seconds - 1e-6)
    if whole < _MINUTE_S:
        return f"{whole}s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S}m{whole % _MINUTE_S}s"
    return f"{whole // _HOUR_S}h{whole % _HOUR_S // _MINUTE_S}m{whole % _MINUTE_S}s"


def refusal(charges: Sequence[Charge], verdict: Verdict) -> errors.LimitReached:
    """Return the answer to a request that was not admitted: of its limits, the one that it has to wait for longest."""
    wait_s, charge, used = max(
        (
            ((used + min(charge.amount, charge.limit.amount) - charge.limit.amount) / charge.limit.rate, charge, used)
            for charge, used, over in zip(charges, verdict.used, verdict.over, strict=True)
            if over and not charge.limit.shadow
        ),
        key=lambda one: one[0],
    )
    limit = charge.limit
    retry_s = min(max(math.ceil(wait_s - 1e-6), 1), _LONGEST_S)
    left = max(math.floor(limit.amount - used), 0)
    return errors.LimitReached(
        f"the limit of {limit.stated or limit.amount} {_COUNTED[limit.kind]} per {limit.unit} of {limit.whose} is reached: {left} are "
        f"left, and this request counts for {charge.amount}; try again in {duration(retry_s)}",
        retry_after_s=retry_s,
        headers=headers(charges, verdict),
    )
