"""What the scheduler needs out of an engine's metrics page, found without reading the rest of it.

A page of a real engine has 60 KB and 600 lines, of which a handful matters: each is looked for by its name. Where an engine
runs several ranks or models, it writes a line for each: requests add up over them; of KV usage the fullest counts, for
that is where the next request may have to wait. Ranks of one tensor- or pipeline-parallel group repeat each other. Adapters
stand in labels, of vLLM's `lora_requests_info`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from extproc.plugins.core_metrics_extractor import SPEC
from extproc.scheduling.endpoints import Lora

_LABEL: Final = re.compile(rb'(\w+)="((?:[^"\\]|\\.)*)"')
_SIZES: Final = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="(\d{1,15})"')
_DIGITS: Final = 9  # more are no count of adapters
_ESCAPED: Final = re.compile(rb"\\(.)")
_REPEATED: Final = re.compile(rb'(?:tp_rank|pp_rank|moe_ep_rank)="[^"]*",?')


@dataclass(frozen=True, slots=True)
class Names:
    """How one engine calls its metrics; the first name that is on the page counts."""

    waiting: tuple[bytes, ...]
    running: tuple[bytes, ...]
    kv_usage: tuple[bytes, ...]
    kv_tokens: tuple[bytes, ...] = ()  # as a value, or in labels of an info metric
    lora: tuple[bytes, ...] = ()


NAMES: Final = {
    "vLLM": Names(
        waiting=(b"vllm:num_requests_waiting",),
        running=(b"vllm:num_requests_running",),
        kv_usage=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
        kv_tokens=(b"vllm:cache_config_info",),
        lora=(b"vllm:lora_requests_info",),
    ),
    "SGLang": Names(
        waiting=(b"sglang:num_queue_reqs",),
        running=(b"sglang:num_running_reqs",),
        kv_usage=(b"sglang:token_usage",),
        kv_tokens=(b"sglang:max_total_num_tokens",),
    ),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one's own: its name, and labels that its lines must have."""

    name: bytes
    labels: frozenset[tuple[bytes, bytes]] = frozenset()


def metric(spec: str) -> Metric:
    """Read `name` or `name{label=value,...}`. Raises ValueError."""
    found = SPEC.fullmatch(spec.strip())
    if found is None:
        raise ValueError(f"a metric is name or name{{label=value,...}}, not {spec!r}")
    pairs = [pair.partition("=") for pair in (found[2] or "").split(",") if pair.strip()]
    return Metric(
        found[1].encode(),
        frozenset((name.strip().encode(), value.strip().strip('"').encode()) for name, _equals, value in pairs),
    )


def attribute(page: bytes, wanted: Metric) -> float:
    """Return the value of a metric, the sum over its lines with the labels; NaN if there is none."""
    values = [
        value
        for labels, value in _samples(b"\n" + page, (wanted.name,)).items()
        if wanted.labels <= set(_LABEL.findall(labels))
    ]
    return sum(values) if values else math.nan


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine reports."""

    waiting: float
    running: float
    kv_usage: float  # 0..1
    kv_tokens: float = 0.0  # that fit into the KV cache; 0: not told
    lora: Lora | None = None  # None: nothing is said of adapters


def load(page: bytes, names: Names) -> Load | None:
    """Return the engine's load; None if the page says nothing of its requests."""
    page = b"\n" + page  # so that every line is found alike
    waiting = _samples(page, names.waiting).values()
    running = _samples(page, names.running).values()
    if not waiting and not running:
        return None
    usage = _samples(page, names.kv_usage).values()
    return Load(
        waiting=sum(waiting),
        running=sum(running),
        kv_usage=min(max(usage, default=0.0), 1.0),
        kv_tokens=sum(_tokens(*sample) for sample in _samples(page, names.kv_tokens).items()),
        lora=_lora(_samples(page, names.lora)),
    )


def _tokens(labels: bytes, value: float) -> float:
    """Return how many tokens one rank's KV cache holds: the value, or what an info metric (of value 1) has in its labels."""
    if value > 1:
        return value
    found = {name: int(count) for name, count in _SIZES.findall(labels)}
    blocks = found.get(b"num_gpu_blocks", 0) * found.get(b"block_size", 0)  # older engines tell no more
    return float(found.get(b"kv_cache_size_tokens", blocks))


def _lora(series: dict[bytes, float]) -> Lora | None:
    """Read the adapters out of the labels of the newest series: every combination has its own, and its time as value."""
    if not series:
        return None
    labels = {name: _ESCAPED.sub(rb"\1", value) for name, value in _LABEL.findall(max(series, key=series.__getitem__))}
    slots = labels.get(b"max_lora", b"")
    if not slots.isdigit() or len(slots) > _DIGITS:
        return None
    running, waiting = (_names(labels.get(one, b"")) for one in (b"running_lora_adapters", b"waiting_lora_adapters"))
    return Lora(running, waiting, int(slots))


def _names(value: bytes) -> frozenset[str]:
    return frozenset(name.strip() for name in value.decode(errors="replace").split(",") if name.strip())


def _samples(page: bytes, names: tuple[bytes, ...]) -> dict[bytes, float]:
    """Return values by label set, of the first of `names` that is there; sets that repeat each other are one."""
    for name in names:
        found: dict[bytes, float] = {}
        at = page.find(b"\n" + name)
        while at >= 0:
            end = page.find(b"\n", at + 1)
            line = page[at + 1 : end if end >= 0 else len(page)]
            sample = _sample(line, len(name))
            if sample is not None:
                labels, value = sample
                found[labels] = max(found.get(labels, value), value)
            at = page.find(b"\n" + name, at + 1)
        if found:
            return found
    return {}


def _sample(line: bytes, name_length: int) -> tuple[bytes, float] | None:
    """Return the labels that tell samples apart, and the value; None for a longer name or a value that is no number."""
    rest = line[name_length:]
    labels = b""
    if rest[:1] == b"{":
        labels, brace, rest = rest.rpartition(b"}")
        if not brace:
            return None
        labels = _REPEATED.sub(b"", labels)
    elif rest[:1] not in (b" ", b"\t"):
        return None
    fields = rest.split()
    try:
        value = float(fields[0])
    except (IndexError, ValueError):
        return None
    return (labels, value) if 0 <= value < float("inf") else None
