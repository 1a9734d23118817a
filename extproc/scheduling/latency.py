"""What an endpoint takes: times of settled requests enter the table here, and become predictions for the next ones.

Each endpoint keeps means that are weighted by age, the weight of a sample halving every `HALF_LIFE_S`. The time to the first
token is learned with its dependence on the prompt tokens that had to be computed, so that an endpoint that was sent
long prompts does not pass for a slow one. Not kept by model: an endpoint has one base model, and its adapters cost alike.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from extproc.scheduling.endpoints import EndpointTable

HALF_LIFE_S: Final = 30.0  # some dozen answers at one request in flight; a change of load shows within a minute
_NOISE_TOKENS: Final = 64.0  # prompts that differ by less say nothing about the price of a token
_LEAST: Final = 0.1  # of the mean: no prompt is so short that it takes less
_FADED: Final = 1e-3  # samples left after ten half-lives: as good as none


class Sample(NamedTuple):
    """What one request took; None is what it does not tell."""

    ttft_s: float | None
    tokens: float  # of the prompt, computed and not found in the cache
    tpot_s: float | None
    load: int  # requests in flight at the endpoint while it ran, itself among them


class Predicted(NamedTuple):
    """What a request would take at each of n endpoints, at the load that it would find there; arrays of shape (n,)."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    ttft_known: NDArray[np.bool_]  # False: nothing was measured there of late, the value is the best of the others
    tpot_known: NDArray[np.bool_]


def record(table: EndpointTable, row: int, sample: Sample, now: float) -> None:
    """Take a sample of the endpoint in `row` into its means."""
    fade = float(np.exp2((table.latency_at[row] - now) / HALF_LIFE_S))
    table.latency_at[row] = now
    table.ttft_samples[row] *= fade
    table.tpot_samples[row] *= fade
    if sample.ttft_s is not None:
        table.ttft_samples[row] += 1.0
        share = 1.0 / table.ttft_samples[row]
        tokens, time = sample.tokens - table.ttft_tokens[row], sample.ttft_s - table.ttft_s[row]
        table.ttft_tokens[row] += share * tokens
        table.ttft_s[row] += share * time
        table.ttft_variance[row] = (1.0 - share) * (table.ttft_variance[row] + share * tokens * tokens)
        table.ttft_covariance[row] = (1.0 - share) * (table.ttft_covariance[row] + share * tokens * time)
    if sample.tpot_s is not None:
        table.tpot_samples[row] += 1.0
        table.tpot_s[row] += (sample.tpot_s - table.tpot_s[row]) / table.tpot_samples[row]
    if samples := max(table.ttft_samples[row], table.tpot_samples[row]):
        table.latency_load[row] += (sample.load - table.latency_load[row]) / max(samples, 1.0)


def expected_ttft(table: EndpointTable, rows: NDArray[np.intp], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the time to the first token for `tokens` to compute, at the load of the samples; shape (n,), seconds.

    mean + slope * (tokens - mean tokens), slope = covariance / (variance + 64^2), at least 0; no less than a tenth of the
    mean. 0 where nothing was measured.
    """
    mean = table.ttft_s[rows]
    slope = np.maximum(table.ttft_covariance[rows], 0.0) / (table.ttft_variance[rows] + _NOISE_TOKENS**2)
    return np.maximum(mean + slope * (tokens - table.ttft_tokens[rows]), _LEAST * mean)


def predicted(
    table: EndpointTable, rows: NDArray[np.intp], tokens: NDArray[np.float64], *, now: float
) -> Predicted | None:
    """Predict for a request that has `tokens` (shape (n,)) to compute at each of `rows`; None if nothing was measured.

    x = (w * measured + best) / (w + 1) * (c + 1) / K: w, samples faded to now; best, the least that any endpoint measured;
    c, requests in flight now; K, their mean while the samples were taken, blended likewise with the mean of all K.
    So an endpoint without samples, or with old ones, is tried as if it were the best, but for one request at a time: what is
    in flight there counts at once. An engine shares its time among its requests, so that twice the load takes twice the time.
    """
    fade = np.exp2(np.minimum(table.latency_at[rows] - now, 0.0) / HALF_LIFE_S)
    ttft_weight, tpot_weight = table.ttft_samples[rows] * fade, table.tpot_samples[rows] * fade
    ttft_known, tpot_known = ttft_weight > _FADED, tpot_weight > _FADED
    known = ttft_known | tpot_known
    if not np.count_nonzero(known):
        return None
    weight = np.maximum(ttft_weight, tpot_weight)
    loads = table.latency_load[rows]
    usual = (weight * loads + loads[known].mean()) / (weight + 1.0)
    load = (table.inflight[rows] + 1.0) / np.maximum(usual, 1.0)
    return Predicted(
        _blended(expected_ttft(table, rows, tokens), ttft_weight, ttft_known) * load,
        _blended(table.tpot_s[rows], tpot_weight, tpot_known) * load,
        ttft_known,
        tpot_known,
    )


class PredictedFew(NamedTuple):
    """The same as lists of length n."""

    ttft_s: list[float]
    tpot_s: list[float]
    ttft_known: list[bool]
    tpot_known: list[bool]


def predicted_few(table: EndpointTable, rows: list[int], tokens: list[float], *, now: float) -> PredictedFew | None:
    """Do the same as `predicted` for few."""
    view = table.view
    at, load_of = view["latency_at"], view["latency_load"]
    fades = [2.0 ** (min(at[row] - now, 0.0) / HALF_LIFE_S) for row in rows]
    ttft_weights = [view["ttft_samples"][row] * fade for row, fade in zip(rows, fades, strict=True)]
    tpot_weights = [view["tpot_samples"][row] * fade for row, fade in zip(rows, fades, strict=True)]
    ttft_known, tpot_known = [each > _FADED for each in ttft_weights], [each > _FADED for each in tpot_weights]
    known = [one or other for one, other in zip(ttft_known, tpot_known, strict=True)]
    if not any(known):
        return None
    usual = sum(load_of[row] for row in compress(rows, known)) / sum(known)
    loads = []
    for row, one, other in zip(rows, ttft_weights, tpot_weights, strict=True):
        weight = max(one, other)
        loads.append((view["inflight"][row] + 1.0) / max((weight * load_of[row] + usual) / (weight + 1.0), 1.0))
    ttft = [_expected_ttft(view, row, each) for row, each in zip(rows, tokens, strict=True)]
    tpot = [view["tpot_s"][row] for row in rows]
    return PredictedFew(
        [x * load for x, load in zip(_blended_few(ttft, ttft_weights, ttft_known), loads, strict=True)],
        [x * load for x, load in zip(_blended_few(tpot, tpot_weights, tpot_known), loads, strict=True)],
        ttft_known,
        tpot_known,
    )


def _expected_ttft(view: Mapping[str, memoryview[Any]], row: int, tokens: float) -> float:
    mean: float = view["ttft_s"][row]
    slope: float = max(view["ttft_covariance"][row], 0.0) / (view["ttft_variance"][row] + _NOISE_TOKENS**2)
    usual: float = view["ttft_tokens"][row]
    return max(mean + slope * (tokens - usual), _LEAST * mean)


def _blended_few(measured: list[float], weights: list[float], known: list[bool]) -> list[float]:
    best = min(compress(measured, known), default=0.0)
    return [(weight * each + best) / (weight + 1.0) for each, weight in zip(measured, weights, strict=True)]


def _blended(
    measured: NDArray[np.float64], weight: NDArray[np.float64], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    best = measured[known].min() if np.count_nonzero(known) else 0.0
    blended: NDArray[np.float64] = (weight * measured + best) / (weight + 1.0)
    return blended
