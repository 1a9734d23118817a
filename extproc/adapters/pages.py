"""What the scheduler needs out of an engine's metrics page, found without reading the rest of it.

A page of a real engine has 60 KB and 600 lines, of which three matter: each is looked for by its name. Where an engine
runs several ranks or models, it writes a line for each: requests add up over them; of KV usage the fullest counts, for
that is where the next request may have to wait. Ranks of one tensor- or pipeline-parallel group repeat each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_REPEATED: Final = re.compile(rb'(?:tp_rank|pp_rank|moe_ep_rank)="[^"]*",?')


@dataclass(frozen=True, slots=True)
class Names:
    """How one engine calls its metrics; the first name that is on the page counts."""

    waiting: tuple[bytes, ...]
    running: tuple[bytes, ...]
    kv_usage: tuple[bytes, ...]


NAMES: Final = {
    "vLLM": Names(
        waiting=(b"vllm:num_requests_waiting",),
        running=(b"vllm:num_requests_running",),
        kv_usage=(b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    ),
    "SGLang": Names(
        waiting=(b"sglang:num_queue_reqs",),
        running=(b"sglang:num_running_reqs",),
        kv_usage=(b"sglang:token_usage",),
    ),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine reports."""

    waiting: float
    running: float
    kv_usage: float  # 0..1


def load(page: bytes, names: Names) -> Load | None:
    """Return the engine's load; None if the page says nothing of its requests."""
    page = b"\n" + page  # so that every line is found alike
    waiting = _samples(page, names.waiting)
    running = _samples(page, names.running)
    if not waiting and not running:
        return None
    usage = _samples(page, names.kv_usage)
    return Load(sum(waiting), sum(running), min(max(usage, default=0.0), 1.0))


def _samples(page: bytes, names: tuple[bytes, ...]) -> list[float]:
    """Return the values of the first of `names` that is there, one for each label set that counts by itself."""
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
            return list(found.values())
    return []


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
