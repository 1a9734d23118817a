"""What a plugin is: the cycle it reads and the methods it may have.

A plugin has a `TYPE` (its name in EndpointPickerConfig), a frozen `Params` dataclass (unknown parameters fail) and the
method of its role. It reads the cycle and returns a value: no clock, no chance of its own, nothing kept but what its
`observe` methods are told.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable
    from extproc.types import InferenceRequest


class Draw(Protocol):
    """Chance as an argument: `random.Random` fits."""

    def random(self) -> float:
        """Return a number in [0, 1)."""
        ...


class Cycle(NamedTuple):
    """One scheduling cycle over n candidates; arrays are aligned with `rows` (shape (n,))."""

    request: InferenceRequest
    table: EndpointTable
    rows: NDArray[np.intp]  # the candidates' rows in the table
    matched: NDArray[np.int64]  # blocks at the prefix's start that each candidate holds
    blocks: int  # blocks of the whole prefix
    now: float  # monotonic seconds
    draw: Draw
    trunk: int = 0  # blocks at the prefix's start from which earlier requests went on; 0 if not known
    engine_model: str = ""  # the name that goes to the engine; "": the one that the client asked for
    peer: int | None = None  # row of the endpoint that another profile has chosen for this request
    weighted: NDArray[np.float64] | None = None  # `matched`, each block weighed by its tier; None: all weigh 1
    cached_tokens: NDArray[np.int64] | None = None  # each engine will report so many, -1: not known; None: none is
    home: NDArray[np.int64] | None = None  # blocks that requests took there, held still or not; None: hits decide alone

    def narrowed(self, keep: NDArray[np.bool_]) -> Cycle:
        """Return the cycle over the candidates that `keep` (shape (n,)) marks."""
        return self._replace(
            rows=self.rows[keep],
            matched=self.matched[keep],
            weighted=None if self.weighted is None else self.weighted[keep],
            cached_tokens=None if self.cached_tokens is None else self.cached_tokens[keep],
            home=None if self.home is None else self.home[keep],
        )


@dataclass(frozen=True, slots=True)
class NoParams:
    """Parameters of a plugin that takes none."""


def parameter(
    default: Any = MISSING, *, minimum: float | None = None, maximum: float | None = None, name: str | None = None
) -> Any:
    """Field of a `Params` dataclass: its default (none: it is required), its range (ends included), its name in YAML."""
    return field(default=default, metadata={"minimum": minimum, "maximum": maximum, "name": name})


class Plugin(Protocol):
    """What every plugin has; beside it, on the class, `Params`: a plugin is built as `PluginType(params)`."""

    TYPE: str


class Filter(Plugin, Protocol):
    """Leaves candidates out."""

    def keep(self, cycle: Cycle) -> NDArray[np.bool_]:
        """Mark the candidates that stay, shape (n,)."""
        ...


class Scorer(Plugin, Protocol):
    """Rates candidates."""

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return a score in [0, 1] for each candidate, 1 the best; shape (n,)."""
        ...


class Picker(Plugin, Protocol):
    """Orders candidates."""

    def order(self, cycle: Cycle, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return positions in `cycle.rows`, best first: the chosen one and those to fall back to."""
        ...


class ProfileHandler(Plugin, Protocol):
    """Says which profiles run."""

    def profiles(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Choose from the profiles' `names`. Raises ValueError if it cannot work with these."""
        ...


class Observer(Protocol):
    """A plugin that remembers decisions; told of every one in a profile that names it."""

    def observe(self, cycle: Cycle, row: int) -> None:
        """Take note that `row` was chosen among all candidates of `cycle`."""
        ...
