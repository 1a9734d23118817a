"""`lora-affinity-scorer`: prefer endpoints where the request's LoRA adapter is at work, or has room."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from extproc.scheduling.framework import NoParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable, Lora
    from extproc.scheduling.framework import Cycle

_AT_WORK: Final = 1.0
_FREE_SLOT: Final = 0.8
_WAITING: Final = 0.6
_NO_ROOM: Final = 0.0
_ARRIVES_S: Final = 0.5  # a request that was sent so shortly before a scrape may not be on its page yet


class LoraAffinityScorer:
    """Score 1.0 where the adapter is at work, 0.8 with a free slot, 0.6 where it waits for one, else 0.

    At work: it has a request in the engine's batch as of the last scrape, or was sent one since (so that of a burst the
    second request knows of the first). Free slot: fewer adapters at work and waiting than the engine takes into a batch
    (`max_lora`); one that both works and waits is one adapter (upstream counts it twice). Slots, and who works
    and waits, are the labels of vLLM's lora_requests_info; an engine that does not report it, such as SGLang, has a free
    slot for each adapter that it lists.
    The adapter is the model under the name that goes to the engine. An endpoint that does not list it at /v1/models (as
    of the last time it was asked, every 15 seconds) scores 0 if another one does: it would answer 404. A model that is
    listed and is no adapter scores 1 everywhere, as there is nothing to load; one that nobody lists is taken for an adapter.
    No parameters. Source: llm-d's lora-affinity-scorer, for the grades.
    """

    TYPE = "lora-affinity-scorer"
    Params = NoParams

    def __init__(self, params: NoParams) -> None:
        self.params = params
        self._adapters = Adapters()

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        return self._adapters.grades(cycle)

    def observe(self, cycle: Cycle, row: int) -> None:
        """Remember that the adapter goes to work at `row`."""
        self._adapters.sent(cycle, row)


class Adapters:
    """Where adapters are, as engines reported it and as decisions since then have changed it."""

    def __init__(self) -> None:
        self._sent: dict[str, dict[str, float]] = {}  # by address: adapter, when it was last sent a request

    def grades(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the score of each candidate, shape (n,)."""
        name, table, rows = wanted(cycle), cycle.table, cycle.rows.tolist()
        listed = [name in table.models[row] for row in rows]
        if not any(listed):
            return np.array([self._grade(table, row, name) for row in rows])
        if not any(name in table.adapters[row] for row in rows):
            return np.array(listed, dtype=np.float64)
        return np.array(
            [
                self._grade(table, row, name) if is_listed else _NO_ROOM
                for row, is_listed in zip(rows, listed, strict=True)
            ]
        )

    def sent(self, cycle: Cycle, row: int) -> None:
        """Take note of a decision for `row`."""
        table, name = cycle.table, wanted(cycle)
        if table.lora[row] is None or name in table.models[row] - table.adapters[row]:
            return
        if len(self._sent) > len(table):  # of endpoints that left
            self._sent = {address: known for address, known in self._sent.items() if table.row(address) is not None}
        since = self._since_scrape(table, row)
        self._sent[table.address(row)] = since | {name: cycle.now}

    def _grade(self, table: EndpointTable, row: int, name: str) -> float:
        lora = table.lora[row]
        if lora is None:
            return _FREE_SLOT if name in table.models[row] else _NO_ROOM
        return _graded(name, lora, self._since_scrape(table, row))

    def _since_scrape(self, table: EndpointTable, row: int) -> dict[str, float]:
        known = self._sent.get(table.address(row))
        if not known:
            return {}
        scraped_at = table.scraped_at[row]
        return {name: at for name, at in known.items() if at + _ARRIVES_S >= scraped_at}


def wanted(cycle: Cycle) -> str:
    """Return the name by which the engine knows the model that is asked for."""
    return cycle.engine_model or cycle.request.model


def _graded(name: str, lora: Lora, sent: dict[str, float]) -> float:
    if name in lora.running or name in sent:
        return _AT_WORK
    if len(lora.running | lora.waiting | sent.keys()) < lora.slots:
        return _FREE_SLOT
    return _WAITING if name in lora.waiting else _NO_ROOM
