"""`latency-scorer`: prefer endpoints by what the predicted latency leaves of the request's objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from extproc.plugins.least_latency_scorer import prediction
from extproc.plugins.queue_scorer import since_scrape
from extproc.scheduling.framework import parameter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.framework import Cycle

TTFT_HEADERS: Final = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")  # the older name last
TPOT_HEADERS: Final = ("x-llm-d-slo-tpot-ms", "x-slo-tpot-ms")


class LatencyScorer:
    """Score by headroom, objective - prediction, among the endpoints that come into question; 0 for the others.

    In question: those with room for both objectives; if there is none, the idle ones (c = 0); if there is none, those
    that miss TPOT only, else those that miss TTFT only, else all. Of the two headrooms h = |TTFT| and |TPOT| each is
    brought to 0..1 between the least and the greatest of them, a = its weighted mean, and the score is
    0.01 + 0.99 * (1 - a) for `least`, 0.01 + 0.99 * a for `most` where both objectives are met; by `least` where not.
    Objectives are the headers x-llm-d-slo-ttft-ms and x-llm-d-slo-tpot-ms (or x-slo-...), milliseconds; without one it
    is 0 and missed, so that the fastest endpoint wins. Predictions are those of least-latency-scorer, shape (n,): learned from
    settled requests, at the present load (upstream asks a service beside the picker).
    Before any sample: the weighted mean of 1 - u (share of the KV cache in use), (max q - q) / max q with q as in
    queue-scorer, and m / b (share of the prefix that it holds).
    `ttftWeight` 0.8, `tpotWeight` 0.2; `headroomSelectionStrategy` least: fill up who just meets the objectives, and keep
    the others free for harder requests; `compositeKVWeight`, `compositeQueueWeight`, `compositePrefixWeight` 1 each: upstream's.
    `latencyPredictionInfoProducerName`, `prefixMatchInfoProducerName`: there is one of each, so they can be named, not chosen.
    Source: llm-d's latency-scorer.
    """

    TYPE = "latency-scorer"

    @dataclass(frozen=True, slots=True)
    class Params:
        """Upstream's parameters."""

        ttft_weight: float = parameter(0.8, minimum=0)
        tpot_weight: float = parameter(0.2, minimum=0)
        headroom_selection_strategy: Literal["least", "most"] = "least"
        composite_kv_weight: float = parameter(1.0, minimum=0, name="compositeKVWeight")
        composite_queue_weight: float = parameter(1.0, minimum=0)
        composite_prefix_weight: float = parameter(1.0, minimum=0)
        latency_prediction_info_producer_name: Literal["", "predicted-latency-producer"] = ""
        prefix_match_info_producer_name: str = ""

    def __init__(self, params: Params) -> None:
        self.params = params

    def score(self, cycle: Cycle) -> NDArray[np.float64]:
        """Return the scores, shape (n,)."""
        left = headrooms(cycle)
        if left is None:
            return self._composite(cycle)
        ttft, tpot = left
        in_question, met = _in_question(ttft, tpot, cycle.table.inflight[cycle.rows])
        share = self._share(np.abs(ttft[in_question]), np.abs(tpot[in_question]))
        most = met and self.params.headroom_selection_strategy == "most"
        scores = np.zeros(len(ttft))
        scores[in_question] = 0.01 + 0.99 * (share if most else 1.0 - share)
        return scores

    def _share(self, ttft: NDArray[np.float64], tpot: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weighted mean of both headrooms on a scale of 0 to 1; one that is the same for all says nothing."""
        weights = np.array([self.params.ttft_weight, self.params.tpot_weight])
        values = np.stack([ttft, tpot])
        low = values.min(axis=1, keepdims=True)
        spread = values.max(axis=1, keepdims=True) - low
        weights = weights * (spread[:, 0] > 0)
        if not (total := weights.sum()):
            return np.zeros(len(ttft))
        share: NDArray[np.float64] = weights @ ((values - low) / np.maximum(spread, np.finfo(np.float64).tiny)) / total
        return np.minimum(share, 1.0)

    def _composite(self, cycle: Cycle) -> NDArray[np.float64]:
        params = self.params
        parts = (params.composite_kv_weight, params.composite_queue_weight, params.composite_prefix_weight)
        kv, queue, prefix = parts if any(parts) else (1.0, 0.0, 0.0)
        waiting = since_scrape(cycle, cycle.table.waiting)
        longest = max(float(waiting.max()), 1.0)
        total = kv * np.maximum(1.0 - cycle.table.kv_usage[cycle.rows], 0.0)
        total += queue * (1.0 - waiting / longest)
        total += prefix * (cycle.matched / max(cycle.blocks, 1))
        return np.asarray(total / (kv + queue + prefix), dtype=np.float64)


def headrooms(cycle: Cycle) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return objective - prediction for TTFT and TPOT, shape (n,) each, milliseconds; None without predictions."""
    times = prediction(cycle)
    if times is None:
        return None
    headers = cycle.request.headers
    ttft = _objective_ms(headers, TTFT_HEADERS) - 1000.0 * times.ttft_s
    return ttft, _objective_ms(headers, TPOT_HEADERS) - 1000.0 * times.tpot_s


def _objective_ms(headers: Mapping[str, str], names: tuple[str, str]) -> float:
    given = headers.get(names[0]) or headers.get(names[1]) or "0"
    try:
        value = float(given)
    except ValueError:
        return 0.0
    return value if 0 <= value < float("inf") else 0.0


def _in_question(
    ttft: NDArray[np.float64], tpot: NDArray[np.float64], active: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], bool]:
    """Mark who is scored, and tell whether these meet the objectives."""
    late, slow = ttft < 0, tpot < 0
    met = ~(late | slow)
    if np.count_nonzero(met):
        return met, True
    for group in (active == 0, slow & ~late, late & ~slow):
        if np.count_nonzero(group):
            return group, False
    return late & slow, False
