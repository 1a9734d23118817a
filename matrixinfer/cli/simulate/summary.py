"""What a run comes to: the figures of one configuration at one load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from matrixinfer.cli.simulate.simulation import REFUSALS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from matrixinfer.cli.simulate.cluster import Slo
    from matrixinfer.cli.simulate.simulation import Record
    from matrixinfer.cli.simulate.trace import Trace

MOST_TENANTS: Final = 10  # that are shown by themselves


@dataclass(frozen=True, slots=True)
class Tenant:
    """What one tenant got. Times in milliseconds."""

    name: str
    requests: int
    refused: int
    waited_p99: float  # for its turn
    ttft_p50: float
    ttft_p99: float
    goodput_share: float
    behind: float  # tokens that it was behind its share while it waited, at most


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of the table. Times in milliseconds."""

    configuration: str
    load: float  # of what the engines could serve at best
    rate: float  # requests a second
    requests: int  # counted: those behind the warm-up
    refused: int
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    goodput: float  # requests a second that keep the SLO
    goodput_share: float  # of all
    hit_rate: float  # cached prompt tokens of all
    oracle_hit_rate: float
    balance: float  # requests of the busiest engine over the mean
    work_balance: float  # the same of prompt tokens that were computed
    utilisation: float  # share of the time in which an engine computes
    fairness: float  # Jain's index over the tenants' shares of requests that keep the SLO
    preemptions: int
    seconds: float  # of virtual time, to the end of the last answer
    # With flow control.
    queued: bool  # it is in force
    shed: int  # of the refused
    queue_full: int
    displaced: int
    waited_too_long: int
    waited_mean: float  # for their turn, those that were served
    waited_p50: float
    waited_p99: float
    behind: float  # tokens that a tenant was behind its share while it waited, at most, in the whole run
    tenants: tuple[Tenant, ...]  # those that ask most, if there are several

    @property
    def of_oracle(self) -> float:
        """Hit rate as a share of the oracle's; 1 where there is nothing to find."""
        return self.hit_rate / self.oracle_hit_rate if self.oracle_hit_rate else 1.0


def summary(  # noqa: PLR0913 - what a row is made of
    record: Record, trace: Trace, *, configuration: str, load: float, slo: Slo, found: NDArray[np.int64], warm_up: float
) -> Summary:
    """Sum up a run, the first `warm_up` of the requests left out. `found`: the oracle's hits."""
    counted = np.arange(len(trace)) >= int(warm_up * len(trace))
    served = counted & (record.ttft_s >= 0)
    ttft, tpot = record.ttft_s[served] * 1000, record.tpot_s[served] * 1000
    several = tpot[trace.output[served] > 1]
    good = np.zeros(len(trace), dtype=np.bool_)
    good[served] = (ttft <= slo.ttft_ms) & (tpot <= slo.tpot_ms)
    asked = int(counted.sum())
    began = float(trace.at[len(trace) - asked]) if asked else 0.0
    share = float(good.sum()) / max(asked, 1)
    waited = record.waited_s[served] * 1000
    refused = {name: int((record.refusal[counted] == at).sum()) for at, name in enumerate(REFUSALS)}
    return Summary(
        configuration=configuration,
        load=load,
        rate=trace.rate,
        requests=asked,
        refused=asked - int(served.sum()),
        ttft_mean=float(ttft.mean()) if len(ttft) else 0.0,
        ttft_p50=_percentile(ttft, 50),
        ttft_p90=_percentile(ttft, 90),
        ttft_p99=_percentile(ttft, 99),
        tpot_p50=_percentile(several, 50),
        tpot_p99=_percentile(several, 99),
        goodput=float(good.sum()) / max(record.ended_s - began, 1e-9),
        goodput_share=share,
        hit_rate=float(record.cached[served].sum()) / max(float(trace.prompt[served].sum()), 1.0),
        oracle_hit_rate=float(found[counted].sum()) / max(float(trace.prompt[counted].sum()), 1.0),
        balance=_imbalance(np.bincount(record.place[served], minlength=len(record.busy_s))),
        work_balance=_imbalance(record.computed),
        utilisation=float(record.busy_s.mean()) / max(record.ended_s, 1e-9),
        fairness=_jain(_shares(good, trace, counted)),
        preemptions=record.preemptions,
        seconds=record.ended_s,
        queued=record.behind is not None,
        shed=refused["shed"],
        queue_full=refused["queue-full"],
        displaced=refused["displaced"],
        waited_too_long=refused["waited-too-long"],
        waited_mean=float(waited.mean()) if len(waited) else 0.0,
        waited_p50=_percentile(waited, 50),
        waited_p99=_percentile(waited, 99),
        behind=max((record.behind or {}).values(), default=0.0),
        tenants=_tenants(record, trace, counted, good) if record.behind is not None else (),
    )


def _tenants(record: Record, trace: Trace, counted: NDArray[np.bool_], good: NDArray[np.bool_]) -> tuple[Tenant, ...]:
    """Sum up the tenants that ask most; nobody, if there is one only."""
    if len(trace.tenants) <= 1:
        return ()
    asked = np.bincount(trace.tenant[counted], minlength=len(trace.tenants))
    behind = record.behind or {}
    found = []
    for at in sorted(range(len(asked)), key=lambda at: -asked[at])[:MOST_TENANTS]:
        own = counted & (trace.tenant == at)
        served = own & (record.ttft_s >= 0)
        ttft = record.ttft_s[served] * 1000
        found.append(
            Tenant(
                name=trace.tenants[at],
                requests=int(asked[at]),
                refused=int(asked[at]) - int(served.sum()),
                waited_p99=_percentile(record.waited_s[served] * 1000, 99),
                ttft_p50=_percentile(ttft, 50),
                ttft_p99=_percentile(ttft, 99),
                goodput_share=float(good[own].sum()) / max(int(asked[at]), 1),
                behind=behind.get(trace.tenants[at], 0.0),
            )
        )
    return tuple(found)


def _percentile(values: NDArray[np.float64], share: float) -> float:
    return float(np.percentile(values, share)) if len(values) else 0.0


def _imbalance(amounts: NDArray[np.int64]) -> float:
    mean = float(amounts.mean())
    return float(amounts.max()) / mean if mean else 1.0


def _shares(good: NDArray[np.bool_], trace: Trace, counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return, for each tenant that asked, the share of its requests that were good."""
    tenants = len(trace.tenants)
    asked = np.bincount(trace.tenant[counted], minlength=tenants)
    kept = np.bincount(trace.tenant[counted], weights=good[counted], minlength=tenants)
    return np.asarray(kept[asked > 0] / asked[asked > 0], dtype=np.float64)


def _jain(shares: NDArray[np.float64]) -> float:
    squares = float((shares * shares).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares else 1.0
