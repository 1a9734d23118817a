"""What the simulation says of `bench.flow`: the same two tenants before the same engines, in virtual time.

    python -m bench flow-predicted

A flood of clients of which each waits for its answer is no trace, as its requests come when others have ended. It is played until
each comes when the one before it ends: what is right then is a run of the closed loop.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import yaml

from bench import flow, table
from extproc import plugins
from extproc.scheduling import config
from matrixinfer.cli.simulate import cluster, simulation
from matrixinfer.cli.simulate.trace import Ask, Trace, build

if TYPE_CHECKING:
    from collections.abc import Sequence

ENGINES: Final = Path(__file__).parents[1] / "examples" / "simulate" / "flooded-engines.yaml"
_BEFORE_S: Final = 2.0  # that the flood is there before the other tenant
_ROUNDS: Final = 60
_OUTPUT: Final = 2  # tokens


def predicted(
    policy: str, *, seconds: float, flooded: bool, sent: flow.Load | None = None, engines: cluster.Cluster | None = None
) -> flow.Seen:
    """Return what the calm tenant sees, and what the flood is served meanwhile."""
    sent = sent or flow.Load()
    engines = engines or cluster.read(ENGINES)
    settings = config.load(yaml.safe_load(flow.RULES.format(policy=policy, places=1)), plugins.BUILTIN)
    calm = _calm(sent, seconds)
    comes: list[list[float]] = [[0.0] for _ in range(sent.flood_clients if flooded else 0)]
    for _ in range(_ROUNDS):
        trace, numbers = _trace(calm, comes, sent.flood_tokens)
        record = simulation.run(trace, engines, settings)
        ends = trace.at + record.ttft_s + record.tpot_s * (trace.output - 1)
        follow = [[0.0, *(ends[own][ends[own] < calm[-1].at].tolist())] for own in numbers]
        if follow == comes:
            break
        comes = follow
    is_calm = trace.tenant == trace.tenants.index("calm")
    ended = ends[~is_calm]
    served = int(((ended > calm[0].at) & (ended <= calm[-1].at)).sum()) * sent.flood_tokens
    return flow.Seen(tuple(record.ttft_s[is_calm].tolist()), served)


def _calm(sent: flow.Load, seconds: float) -> list[Ask]:
    return [
        Ask(
            _BEFORE_S + number / sent.rate,
            sent.document_tokens if number % 10 == 5 else sent.tokens,
            _OUTPUT,
            (),
            tenant="calm",
        )
        for number in range(int(seconds * sent.rate))
    ]


def _trace(calm: Sequence[Ask], comes: Sequence[Sequence[float]], tokens: int) -> tuple[Trace, list[np.ndarray]]:
    """Return all requests in order, and the numbers of each client's."""
    listed = [(one.at, -1, one) for one in calm]
    for client, times in enumerate(comes):
        listed += [(at, client, Ask(at, tokens, _OUTPUT, (), tenant="flood")) for at in times]
    listed.sort(key=lambda one: one[:2])
    clients = np.array([client for _at, client, _ask in listed])
    trace = build("flood", (ask for _at, _client, ask in listed), block_tokens=16)
    return trace, [np.flatnonzero(clients == client) for client in range(len(comes))]


def run() -> None:
    """Print the figures."""
    seen = {
        "alone": predicted(flow.FAIR, seconds=40.0, flooded=False),
        "flooded": predicted(flow.FAIR, seconds=40.0, flooded=True),
        "by arrival": predicted(flow.BY_ARRIVAL, seconds=40.0, flooded=True),
    }
    alone = seen["alone"].at(0.99)
    rows = [
        (name, f"{one.at(0.5):.3f}", f"{one.at(0.99):.3f}", f"{one.at(0.99) / alone:.2f}", f"{one.flood_served}")
        for name, one in seen.items()
    ]
    head = ("", "p50 s", "p99 s", "p99, of alone", "tokens of the flood")
    table.show("Time to the first token of one tenant beside another that floods, as simulated", head, rows)
