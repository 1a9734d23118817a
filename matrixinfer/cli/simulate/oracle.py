"""What the best placing could find in the caches, and how many requests the engines could serve with it.

The oracle's cache is all engines' caches as one: as many tokens as they hold together, each block once, nothing set aside for
requests that run, given up in the engines' order, and a block is there as soon as a request that has it arrives. No placing
over the same engines finds more, but for luck in what is given up.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matrixinfer.cli.simulate.cluster import Cluster, Group
    from matrixinfer.cli.simulate.trace import Trace


def hits(trace: Trace, cluster: Cluster) -> NDArray[np.int64]:
    """Return, for each request, the prompt tokens that the oracle's cache holds; shape (n,)."""
    size = trace.block_tokens
    room = sum(group.capacity for group in cluster.each) // size
    found = np.zeros(len(trace), dtype=np.int64)
    held: OrderedDict[int, None] = OrderedDict()
    most = trace.prompt - 1  # the last token is always computed
    for number in range(len(trace)):
        chain = trace.chain(number)
        known = 0
        for block in chain:
            if block not in held:
                break
            known += 1
        found[number] = min(known * size, int(most[number]))
        for block in reversed(chain + trace.answer(number)):
            held[block] = None
            held.move_to_end(block)
        for _ in range(len(held) - room):
            held.popitem(last=False)
    return found


def rate(trace: Trace, cluster: Cluster, found: NDArray[np.int64]) -> float:
    """Return the requests a second at which all engines are busy all the time, if prompts are found as `found` says.

    An engine's time for a request is that of computing the rest of the prompt, and its share of the steps of a batch that is
    as large as fits.
    """
    prompt, output, cached = (float(column.mean()) for column in (trace.prompt, trace.output, found))
    return sum(1 / _seconds(group, prompt, output, cached) for group in cluster.each)


def _seconds(group: Group, prompt: float, output: float, cached: float) -> float:
    own = prompt - cached + output  # tokens in no block that others use, too
    batch = int(max(1, min(group.max_num_seqs, group.capacity / own)))
    return group.prefill_s(int(cached), int(prompt)) + output * group.decode_s(batch) / batch
