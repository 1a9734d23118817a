"""`queue-scorer`: prefer the shortest queue in the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.few import Few
    from extproc.scheduling.framework import Cycle


class QueueScorer:
    """Score (max q - q) / (max q - min q); 1 for all if all are equal.

    q: max(waiting + c - c0, 0), shape (n,), requests: those that waited in the engine at its last scrape, and how the
    requests sent by this picker and not settled have changed since: c now, c0 when the engine was asked. Without that
    change, which is ours, all requests of one scrape interval would go to the one shortest queue. Being relative, the score
    tells a queue of 1 from none as strongly as 100 from none; `load-aware-scorer` is the absolute one.
    No parameters. Source: llm-d's queue-scorer.
    """

    TYPE = "queue-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return shortest_first(since_scrape(cycle, cycle.table.waiting))

    def score_few(self, cycle: Few) -> list[float]:
        """Do the same for few."""
        return shortest_of_few(since_scrape_few(cycle, "waiting"))


def since_scrape(cycle: Cycle, scraped: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a count of requests that engines reported, with what has changed since by our own; shape (n,), at least 0."""
    table, rows = cycle.table, cycle.rows
    return np.maximum(scraped[rows] + (table.inflight[rows] - table.inflight_scraped[rows]), 0.0)


def since_scrape_few(cycle: Few, column: str) -> list[float]:
    """Do the same as `since_scrape` for few; `column` is the scraped one's name."""
    view = cycle.table.view
    scraped, now, then = view[column], view["inflight"], view["inflight_scraped"]
    return [max(scraped[row] + (now[row] - then[row]), 0.0) for row in cycle.rows]


def shortest_of_few(values: list[float]) -> list[float]:
    """Do the same as `shortest_first` for few."""
    low = min(values)
    spread = max(values) - low
    if spread == 0:
        return [1.0] * len(values)
    return [1.0 - (each - low) / spread for each in values]


def shortest_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map the least of `values` to 1 and the greatest to 0, linearly; all to 1 if they are equal. Shape (n,)."""
    low = float(values.min())
    spread = float(values.max()) - low
    if spread == 0:
        return np.ones(len(values))
    return 1.0 - (values - low) / spread
