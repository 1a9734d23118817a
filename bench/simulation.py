"""The table that chooses the default profile: placing side by side in virtual time, on three traces at three loads.

`docs/simulate.md` shows it. Simple ways of placing, the published ones, and our default; with prefixes that the picker learned
from its decisions, and with those that engines tell.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench import table
from matrixinfer.cli.simulate import cluster, configurations, jobs, oracle, report, traces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matrixinfer.cli.simulate.summary import Summary

EXAMPLES = Path(__file__).parents[1] / "examples" / "simulate"
TRACES = {
    "Mooncake-shaped": "generate:mooncake",
    "shared prefixes": "generate:shared-prefix?groups=192&prefix=6000",
    "conversations": "generate:multi-turn",
}
LOADS = (0.5, 0.85, 1.1)  # below, near and above what the engines could serve at best
SEEDS = (1, 2, 3)  # of traces and of chance in pickers; figures are medians
PLACING = [
    *((str(EXAMPLES / f"{name}.yaml"), False) for name in ("random", "round-robin", "least-request", "prefix")),
    (str(EXAMPLES / "prefix.yaml"), True),
    *((str(EXAMPLES / f"{name}.yaml"), exact) for name in ("lmetric", "dynamo") for exact in (False, True)),
    ("default", False),
    ("default", True),
]


def run(*, requests: int = 3000) -> None:
    """Print the table, a part for each trace and load."""
    for name, spec in TRACES.items():
        runs = [_runs(spec, requests=requests, seed=seed) for seed in SEEDS]
        rows = [_median(same) for same in zip(*runs, strict=True)]
        for at in range(0, len(rows), len(PLACING)):
            _show(name, rows[at : at + len(PLACING)])


def _runs(spec: str, *, requests: int, seed: int) -> list[Summary]:
    """Run all placings at all loads."""
    engines = cluster.read(EXAMPLES / "eight-engines.yaml")
    chosen = configurations.read(PLACING)
    source = traces.Source(f"{spec}{'&' if '?' in spec else '?'}seed={seed}", engines, requests=requests)
    listed = []
    for load in LOADS:
        trace = source.at_load(load)
        found = source.found(trace)
        share = trace.rate / oracle.rate(trace, engines, found)
        listed += [jobs.Job(one.name, one.settings, share, trace, found, one.exact) for one in chosen]
    common = jobs.Common(cluster=engines, warm_up=0.1, seed=seed)
    return jobs.perform(listed, common, at_once=os.cpu_count() or 1, progress=lambda _job, _done: None)


def _median(same: Sequence[Summary]) -> Summary:
    """Sum up runs that differ in their seed."""
    first = same[0]
    figures = [one.name for one in fields(first) if one.name != "configuration"]
    return replace(first, **{name: statistics.median(getattr(one, name) for one in same) for name in figures})


def _show(name: str, summaries: Sequence[Summary]) -> None:
    first = summaries[0]
    title = f"{name}, {first.rate:.3g} requests/s: load {first.load:.0%}; the oracle finds {first.oracle_hit_rate:.1%}"
    head = ("placing", "TTFT p50", "p99", "TPOT p50", "in SLO", "hits", "of oracle", "busiest/mean")
    rows = [
        (
            one.configuration,
            report.milliseconds(one.ttft_p50),
            report.milliseconds(one.ttft_p99),
            report.milliseconds(one.tpot_p50),
            f"{one.goodput_share:.0%}",
            f"{one.hit_rate:.1%}",
            f"{one.of_oracle:.0%}",
            f"{one.balance:.2f}",
        )
        for one in summaries
    ]
    table.show(title, head, rows)


if __name__ == "__main__":
    run()
