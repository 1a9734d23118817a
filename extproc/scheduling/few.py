"""Small pools without numpy: a few candidates as lists, where an array's overhead is dearer than the arithmetic.

One array expression costs about 2 µs amid other work, whatever its length; seven plugins need some thirty. Over four
candidates the same in plain Python takes a quarter of that. So a plugin may have its method a second time, for a `Few`,
under the name that ends in `_few`; a profile whose plugins all have it uses these up to `MOST` candidates. A test holds
both forms of every plugin to the same answers.
"""

from __future__ import annotations

from itertools import compress
from operator import mul
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.scheduling.framework import Cycle, Draw
    from extproc.types import InferenceRequest

MOST: Final = 20  # candidates; both ways cost the same at about 23 (the default profile: 37 µs)
_ROLES: Final = ("keep", "score", "order")


class Few(NamedTuple):
    """A cycle over n candidates, as `framework.Cycle`, with lists of length n; columns are read by `table.view`."""

    request: InferenceRequest
    table: EndpointTable
    rows: list[int]
    matched: list[int]
    blocks: int
    now: float
    draw: Draw
    trunk: int
    engine_model: str
    peer: int | None
    weighted: list[float] | None = None
    cached_tokens: list[int] | None = None
    home: list[int] | None = None

    def narrowed(self, keep: Sequence[bool]) -> Few:
        """Return the cycle over the candidates that `keep` (length n) marks."""
        return self._replace(
            rows=list(compress(self.rows, keep)),
            matched=list(compress(self.matched, keep)),
            weighted=None if self.weighted is None else list(compress(self.weighted, keep)),
            cached_tokens=None if self.cached_tokens is None else list(compress(self.cached_tokens, keep)),
            home=None if self.home is None else list(compress(self.home, keep)),
        )


def few(cycle: Cycle) -> Few:
    """Return the same cycle as lists."""
    request, table, rows, matched, *rest, weighted, cached, home = cycle
    lists = (None if one is None else one.tolist() for one in (weighted, cached, home))
    return Few._make((request, table, rows.tolist(), matched.tolist(), *rest, *lists))


def able(plugin: Any) -> bool:
    """Tell whether the plugin has all its methods in the form for few."""
    return all(hasattr(plugin, f"{role}_few") for role in _ROLES if hasattr(plugin, role))


def weighted(parts: Sequence[Sequence[float]], shares: Sequence[float], n: int) -> list[float]:
    """Return the mean over the scorers' `parts`, weighted by `shares`; length n."""
    if not parts:
        return [0.0] * n
    return [sum(map(mul, column, shares)) for column in zip(*parts, strict=True)]
