"""TRACE on the command line: a generator, a file of Mooncake's form, or our own decision log; and the same at other loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from matrixinfer.cli.replaying import log
from matrixinfer.cli.simulate import generate, mooncake, oracle, recorded
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.trace import Trace

_ENOUGH: Final = 20_000  # requests that tell how many the engines could serve
_TRIES: Final = 3  # a generator's rate changes what is found in caches, and with it the rate that is meant


class Source:
    """Where requests come from. What was recorded is played faster or slower, what is made up is made for the rate."""

    def __init__(self, name: str, cluster: Cluster, *, requests: int | None) -> None:
        """Read it. Raises BadInput."""
        self.left_out = 0  # requests that need more tokens than an engine holds
        self._name = name
        self._cluster = cluster
        self._requests = requests
        self._kind: Any = None
        if name.startswith(generate.PREFIX):
            self._shown, self._kind = generate.kind(name)
            if requests:
                self._kind = replace(self._kind, requests=requests)
            self._trace = self._fitting(generate.made(self._shown, self._kind))
        else:
            file = Path(name)
            found = recorded.read(file) if log.is_log(file) else mooncake.read(file)
            self._trace = self._fitting(found.chosen(np.arange(min(requests or len(found), len(found)))))

    def own(self) -> Trace:
        """Return the requests at their own pace."""
        return self._trace

    def at_rate(self, rate: float) -> Trace:
        """Return the requests, `rate` a second on average."""
        if self._kind is None:
            return self._trace.at_rate(rate)
        return self._made(self._kind, rate).at_rate(rate)

    def at_load(self, load: float) -> Trace:
        """Return the requests at a share of what the engines could serve at best."""
        trace = self._trace
        for _ in range(_TRIES):
            rate = load * self.best(trace)
            if self._kind is None:
                return self._trace.at_rate(rate)
            trace = self._made(replace(self._kind, requests=min(self._kind.requests, _ENOUGH)), rate)
        return self.at_rate(rate)

    def best(self, trace: Trace) -> float:
        """Return how many of these requests the engines could serve in a second."""
        return oracle.rate(trace, self._cluster, self.found(trace))

    def found(self, trace: Trace) -> NDArray[np.int64]:
        """Return the oracle's hits."""
        return oracle.hits(trace, self._cluster)

    def _made(self, kind: Any, rate: float) -> Trace:
        return self._fitting(generate.made(self._shown, replace(kind, rate=rate)))

    def _fitting(self, trace: Trace) -> Trace:
        """Return the requests that every engine can hold. Raises BadInput if there is none."""
        room = min(group.capacity for group in self._cluster.each)
        needed = np.maximum(trace.prompt, np.diff(trace.starts) * trace.block_tokens) + trace.output
        fits = needed <= room
        if not fits.any():
            raise BadInput(
                self._name, f"no request fits: an engine holds {room} tokens, and the shortest needs {needed.min()}"
            )
        self.left_out = int((~fits).sum())
        return trace.chosen(np.flatnonzero(fits))
