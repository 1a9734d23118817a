"""Bursts between two scrapes: what engines report does not change, and yet requests spread."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from extproc import plugins
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.framework import Cycle
from tests.scheduling.builders import a_request, a_scheduler, the_default_scheduler

ENDPOINTS, REQUESTS = 8, 64
MOST = int(1.25 * REQUESTS / ENDPOINTS) + 1
# Those that rate load; on equal endpoints each of them alone promises balance.
LOAD = [
    "queue-scorer",
    "kv-cache-utilization-scorer",
    "running-requests-size-scorer",
    "active-request-scorer",
    "token-load-scorer",
    "least-request-scorer",
    "load-aware-scorer",
    "least-latency-scorer",
    "latency-scorer",
    "lmetric-scorer",
    "dynamo-cost-scorer",
]
# Those that promise something else: prefixes, sessions, adapters, labels, lengths, nearness.
AFFINITY = [
    "prefix-cache-scorer",
    "precise-prefix-cache-scorer",
    "no-hit-lru-scorer",
    "session-affinity-scorer",
    "lora-affinity-scorer",
    "header-label-affinity-scorer",
    "topology-affinity-scorer",
    "context-length-aware",
    "endpoint-attribute-scorer",  # of its metric nobody knows how it grows
]
PROFILES = {
    **{one: (one,) for one in LOAD},
    "llm-d's chart default": ("queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer"),
    "optimized baseline": ("queue-scorer", "kv-cache-utilization-scorer", "prefix-cache-scorer", "no-hit-lru-scorer"),
    "Kthena's": (
        "least-request-filter",
        "least-request-scorer",
        "kv-cache-utilization-scorer",
        "least-latency-scorer",
        "prefix-cache-scorer",
    ),
    "sticky until saturated": ("prefix-cache-affinity-filter", "token-load-scorer"),
    "round robin": ("round-robin-picker",),
}


def a_busy_table(seed, **columns):
    """Equal endpoints in the middle of their work, scraped a moment ago."""
    table = EndpointTable(capacity=4)
    for at in range(ENDPOINTS):
        row = table.upsert(Endpoint(address=f"10.0.0.{at}:8000", pod=f"default/pod-{at}", engine="vLLM"))
        for name, value in columns.items():
            getattr(table, name)[row] = value
    return table


def burst(scheduler, table, *, seed=0, tokens=400):
    """Send 64 cold requests of about the same length; how many each endpoint gets."""
    draw = random.Random(seed)
    rows = np.array(table.rows(), dtype=np.intp)
    counts = Counter()
    for _ in range(REQUESTS):
        request = a_request(prompt_tokens=int(tokens * (0.9 + 0.2 * draw.random())))
        matched = np.zeros(ENDPOINTS, dtype=np.int64)
        cycle = Cycle(request=request, table=table, rows=rows, matched=matched, blocks=25, now=100.0, draw=draw)
        row = scheduler.schedule(cycle).rows[0]
        counts[row] += 1
        table.inflight[row] += 1
        table.inflight_tokens[row] += request.prompt_tokens
    return counts


IDLE = {"scraped_at": 99.9}
BUSY = {
    "scraped_at": 99.9,
    "waiting": 2,
    "running": 30,
    "kv_usage": 0.6,
    "inflight": 32,
    "inflight_tokens": 12_800,
    "inflight_scraped": 32,
    "inflight_tokens_scraped": 12_800,
}
MEASURED = BUSY | {
    "ttft_samples": 20,
    "ttft_s": 0.2,
    "ttft_tokens": 400,
    "tpot_samples": 20,
    "tpot_s": 0.02,
    "latency_load": 32,
    "latency_at": 99.0,
}
STATES = {"never scraped": {}, "idle": IDLE, "busy": BUSY, "measured": MEASURED}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_burst_between_two_scrapes_does_not_herd(profile, state):
    for seed in range(3):
        counts = burst(a_scheduler(*profile), a_busy_table(seed, **state), seed=seed)

        assert max(counts.values()) <= MOST


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_the_default_profile_does_not_herd(state):
    counts = burst(the_default_scheduler(), a_busy_table(0, **state))

    assert max(counts.values()) <= MOST


@pytest.mark.parametrize("profile", ["queue-scorer", "load-aware-scorer", "running-requests-size-scorer"])
def test_an_endpoint_that_looked_idle_gets_no_more_than_what_it_was_ahead(profile):
    table = a_busy_table(0, **BUSY)
    table.waiting[0] = table.running[0] = 0

    counts = burst(a_scheduler(profile), table)

    ahead = 30 if profile == "running-requests-size-scorer" else 2
    assert counts[0] <= ahead + (REQUESTS - ahead) / ENDPOINTS + 1


def test_what_ended_since_the_scrape_counts_too():
    table = a_busy_table(0, **BUSY)
    table.inflight[3] = 12  # twenty of its requests ended

    counts = burst(a_scheduler("running-requests-size-scorer"), table)

    assert counts[3] >= 20


def test_a_slow_endpoint_gets_less_of_a_burst():
    table = a_busy_table(0, **MEASURED)
    table.ttft_s[0], table.tpot_s[0] = 0.4, 0.04

    counts = burst(a_scheduler("least-latency-scorer"), table)

    assert counts[0] == 0
    assert max(counts.values()) <= REQUESTS / (ENDPOINTS - 1) + 1


def test_every_scorer_is_on_one_of_the_two_lists():
    assert sorted(LOAD + AFFINITY) == sorted(one.TYPE for one in plugins.BUILTIN.types if hasattr(one, "score"))
