"""TRACE on the command line: a generator, a file of Mooncake's form, or our own decision log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from matrixinfer.cli.simulate import generate, mooncake
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from rich.console import Console

    from matrixinfer.cli.simulate.cluster import Cluster
    from matrixinfer.cli.simulate.trace import Trace


def read(name: str) -> Trace:
    """Read a trace. Raises BadInput."""
    if name.startswith(generate.PREFIX):
        return generate.generated(name)
    return mooncake.read(Path(name))


def fitting(trace: Trace, cluster: Cluster, said: Console) -> Trace:
    """Return the requests that some engine can hold; says how many it leaves out. Raises BadInput if none is left."""
    room = max(group.capacity for group in cluster.each)
    blocks = np.diff(trace.starts)
    needed = np.maximum(trace.prompt, blocks * trace.block_tokens) + trace.output
    fits = needed <= min(group.capacity for group in cluster.each)
    if not fits.any():
        raise BadInput(trace.name, f"no request fits: an engine holds {room} tokens, the shortest needs {needed.min()}")
    if not fits.all():
        said.print(f"{int((~fits).sum())} requests are left out: they need more tokens than an engine holds")
    return trace.chosen(np.flatnonzero(fits))
