"""The cluster that is simulated: a YAML file of engines, how fast they are and what they can hold.

Numbers mean what the flags of `engine.simulator` mean, and have the same defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import yaml

from extproc.scheduling import parameters
from extproc.scheduling.framework import parameter
from matrixinfer.cli.simulate import places
from matrixinfer.cli.simulate.problems import BadInput

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BATCH: Final = 65_536


@dataclass(frozen=True, slots=True)
class StepAt:
    """A step's duration for one size of the batch; between two sizes it is on the line between them."""

    batch: int = parameter(minimum=1, maximum=_MAX_BATCH)
    ms: float = parameter(minimum=0)


@dataclass(frozen=True, slots=True)
class Group:
    """Engines that are alike."""

    name: str = "engine"
    count: int = parameter(1, minimum=1, maximum=4096)
    kv_blocks: int = parameter(16_384, minimum=2)  # block 0 is reserved, as in vLLM
    block_size: int = parameter(16, minimum=1)  # tokens
    max_num_seqs: int = parameter(256, minimum=1, maximum=_MAX_BATCH)
    max_num_batched_tokens: int = parameter(8192, minimum=1)
    prefill_tokens_per_second: float = parameter(20_000.0, minimum=1e-3)
    prefill_ns_per_token_pair: float = parameter(0.0, minimum=0)  # attention: a token costs this for each before it
    itl_ms_base: float = parameter(8.0, minimum=0)
    itl_ms_per_sequence: float = parameter(0.2, minimum=0)
    itl_ms: tuple[StepAt, ...] = ()  # measured steps; they take the place of the two above
    speed: float = parameter(1.0, minimum=1e-6)
    loras: tuple[str, ...] = ()  # adapters that are loaded
    max_loras: int = parameter(4, minimum=1)  # adapters in one batch

    def __post_init__(self) -> None:
        if any(a.batch >= b.batch for a, b in zip(self.itl_ms, self.itl_ms[1:], strict=False)):
            raise ValueError("itlMs must name batches in ascending order")

    @property
    def capacity(self) -> int:
        """Tokens that the KV cache holds."""
        return (self.kv_blocks - 1) * self.block_size

    def decode_s(self, sequences: int) -> float:
        """Duration of a step in which `sequences` get a token and nothing is prefilled."""
        return self._decode_ms(sequences) / 1000 / self.speed

    def prefill_s(self, begin: int, end: int) -> float:
        """Duration of computing the tokens of a prompt from `begin` to `end`."""
        pairs = (end * end - begin * begin) / 2
        linear = (end - begin) / self.prefill_tokens_per_second
        return (linear + pairs * self.prefill_ns_per_token_pair * 1e-9) / self.speed

    def _decode_ms(self, sequences: int) -> float:
        if not self.itl_ms:
            return self.itl_ms_base + self.itl_ms_per_sequence * sequences
        below = self.itl_ms[0]
        for above in self.itl_ms:
            if sequences <= above.batch:
                if above is below:
                    return above.ms
                share = (sequences - below.batch) / (above.batch - below.batch)
                return below.ms + share * (above.ms - below.ms)
            below = above
        return below.ms * sequences / below.batch  # beyond the last: as many tokens a second, and no more


@dataclass(frozen=True, slots=True)
class Slo:
    """What an answer has to keep to be good."""

    ttft_ms: float = parameter(2000.0, minimum=0)
    tpot_ms: float = parameter(100.0, minimum=0)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything behind the picker."""

    engines: tuple[Group, ...] = field(default_factory=lambda: (Group(count=4),))
    scrape_interval_s: float = parameter(0.8, minimum=1e-3)  # of one engine, as the picker asks busy ones
    event_lag_ms: float = parameter(10.0, minimum=0)  # until the picker hears of a block
    settle_lag_ms: float = parameter(1.0, minimum=0)  # until it hears that an answer is complete
    pickers: int = parameter(1, minimum=1, maximum=64)  # that share the requests, each with a state of its own
    pickers_join_at: tuple[float, ...] = ()  # one more for each, when this share of the requests has arrived
    slo: Slo = field(default_factory=Slo)

    def __post_init__(self) -> None:
        if any(not 0 <= share < 1 for share in self.pickers_join_at):
            raise ValueError("pickersJoinAt must be shares of the requests, from 0 to below 1")

    @property
    def each(self) -> tuple[Group, ...]:
        """Every engine."""
        return tuple(group for group in self.engines for _ in range(group.count))


def read(file: Path) -> Cluster:
    """Read a cluster file. Raises BadInput with the line of each mistake."""
    try:
        text = file.read_text()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{file}:{line}", f"not YAML: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(file, f"cannot be read: {error}") from error
    problems: list[tuple[str, str]] = []
    cluster = parameters.read(
        Cluster, document, "cluster", lambda path, what: problems.append((path, what)), owner="a cluster"
    )
    if cluster is not None and not problems and not cluster.engines:
        problems.append(("cluster.engines", "must have an entry"))
    if problems:
        shown = [
            f"{file}:{places.line(root, path.removeprefix('cluster.'))}: {path.removeprefix('cluster.')}: {what}"
            for path, what in problems
        ]
        head, _, rest = "\n".join(shown).partition(": ")
        raise BadInput(head, rest)
    known: Cluster = cluster
    return known
