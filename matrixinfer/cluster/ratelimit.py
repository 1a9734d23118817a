"""How fast a client may ask: a bucket of tokens, in which urgent requests never wait. Pure: time is an argument.

The server's own fairness protects the server; this bucket keeps one client from filling the server's queues with work in
front of its own lease. A lease's requests take their token as well, and may leave the bucket in debt.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second in the long run, and how many may go at once after a rest.

    The defaults leave the pace to the server as long as all goes well: a client has only so many requests on their way, and waits for
    their answers. They bound what a fault that writes again and again costs. A server that can do less answers 429, and `Bucket.pause`
    follows it.
    """

    per_s: float = 500.0
    burst: int = 1000

    def __post_init__(self) -> None:
        if self.per_s <= 0 or self.burst < 1:
            raise ValueError(f"a rate of {self.per_s:g}/s with a burst of {self.burst} lets nothing through")


class Bucket:
    """Gives each request the time to wait before it goes; requests go in the order in which they asked."""

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._at = now
        self._paused_until = now

    def take(self, now: float, *, urgent: bool = False) -> float:
        """Take a token; return the seconds to wait until it is there."""
        self._tokens = min(self._tokens + (now - self._at) * self._rate.per_s, self._rate.burst)
        self._at = now
        self._tokens -= 1
        if urgent:
            return 0.0
        return max(-self._tokens / self._rate.per_s, self._paused_until - now, 0.0)

    def pause(self, until: float) -> None:
        """Let nothing but urgent requests through before: the server has said so."""
        self._paused_until = max(self._paused_until, until)
