"""What an endpoint takes: times of settled requests enter the table here, and become predictions for the next ones.

Each endpoint keeps means that are weighted by age, the weight of a sample halving every `HALF_LIFE_S`. The time to the first
token is learned with its dependence on the prompt tokens that had to be computed, so that an endpoint that was sent
long prompts does not pass for a slow one. Not kept by model: an endpoint has one base model, and its adapters cost alike.
"""

from __future__ import annotations

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
    view = table.view
    ttft_s, ttft_tokens, tpot_s, load = view["ttft_s"], view["ttft_tokens"], view["tpot_s"], view["latency_load"]
    at = view["latency_at"]
    fade = 2.0 ** ((at[row] - now) / HALF_LIFE_S)
    at[row] = now
    ttft_samples = view["ttft_samples"][row] * fade
    tpot_samples = view["tpot_samples"][row] * fade
    if sample.ttft_s is not None:
        variance, covariance = view["ttft_variance"], view["ttft_covariance"]
        ttft_samples += 1.0
        share = 1.0 / ttft_samples
        tokens, time = sample.tokens - ttft_tokens[row], sample.ttft_s - ttft_s[row]
        ttft_tokens[row] += share * tokens
        ttft_s[row] += share * time
        variance[row] = (1.0 - share) * (variance[row] + share * tokens * tokens)
        covariance[row] = (1.0 - share) * (covariance[row] + share * tokens * time)
    if sample.tpot_s is not None:
        tpot_samples += 1.0
        tpot_s[row] += (sample.tpot_s - tpot_s[row]) / tpot_samples
    view["ttft_samples"][row], view["tpot_samples"][row] = ttft_samples, tpot_samples
    if samples := max(ttft_samples, tpot_samples):
        load[row] += (sample.load - load[row]) / max(samples, 1.0)


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
    usual = (weight * loads + np.add.reduce(loads[known]) / np.count_nonzero(known)) / (weight + 1.0)
    load = (table.inflight[rows] + 1.0) / np.maximum(usual, 1.0)
    return Predicted(
        _blended(expected_ttft(table, rows, tokens), ttft_weight, ttft_known) * load,
        _blended(table.tpot_s[rows], tpot_weight, tpot_known) * load,
        ttft_known,
        tpot_known,
    )


class PredictedFew(NamedTuple):
    """The same as lists of length n; what is known is told for all together."""

    ttft_s: list[float]
    tpot_s: list[float]
    ttft_known: bool
    tpot_known: bool


def predicted_few(table: EndpointTable, rows: list[int], tokens: list[float], *, now: float) -> PredictedFew | None:
    """Do the same as `predicted` for few."""
    view = table.view
    at, ttft_samples, tpot_samples = view["latency_at"], view["ttft_samples"], view["tpot_samples"]
    tpot_s, load_of, inflight = view["tpot_s"], view["latency_load"], view["inflight"]
    found: list[tuple[int, float, float, float, float]] = []
    known_ttft: list[float] = []
    known_tpot: list[float] = []
    loads: list[float] = []
    for row, missing in zip(rows, tokens, strict=True):
        age = at[row] - now
        fade = 2.0 ** (age / HALF_LIFE_S) if age < 0 else 1.0
        ttft_weight, tpot_weight = ttft_samples[row] * fade, tpot_samples[row] * fade
        ttft, tpot = expected_ttft_at(view, row, missing), tpot_s[row]
        found.append((row, ttft_weight, tpot_weight, ttft, tpot))
        if ttft_weight > _FADED:
            known_ttft.append(ttft)
        if tpot_weight > _FADED:
            known_tpot.append(tpot)
        if ttft_weight > _FADED or tpot_weight > _FADED:
            loads.append(load_of[row])
    if not loads:
        return None
    usual = sum(loads) / len(loads)
    best_ttft, best_tpot = min(known_ttft, default=0.0), min(known_tpot, default=0.0)
    ttfts: list[float] = []
    tpots: list[float] = []
    for row, ttft_weight, tpot_weight, ttft, tpot in found:
        weight = max(ttft_weight, tpot_weight)
        load = (inflight[row] + 1.0) / max((weight * load_of[row] + usual) / (weight + 1.0), 1.0)
        ttfts.append((ttft_weight * ttft + best_ttft) / (ttft_weight + 1.0) * load)
        tpots.append((tpot_weight * tpot + best_tpot) / (tpot_weight + 1.0) * load)
    return PredictedFew(ttfts, tpots, bool(known_ttft), bool(known_tpot))


def expected_ttft_at(view: Mapping[str, memoryview[Any]], row: int, tokens: float) -> float:
    """Do the same as `expected_ttft` for one endpoint, by the table's view."""
    mean: float = view["ttft_s"][row]
    covariance: float = view["ttft_covariance"][row]
    if covariance <= 0:
        return mean
    slope: float = covariance / (view["ttft_variance"][row] + _NOISE_TOKENS**2)
    usual: float = view["ttft_tokens"][row]
    return max(mean + slope * (tokens - usual), _LEAST * mean)


def _blended(
    measured: NDArray[np.float64], weight: NDArray[np.float64], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    best = measured[known].min() if np.count_nonzero(known) else 0.0
    blended: NDArray[np.float64] = (weight * measured + best) / (weight + 1.0)
    return blended
