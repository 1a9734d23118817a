"""What the tests of scheduling and plugins are made of: endpoints, requests and cycles that show what matters."""

from __future__ import annotations

import random

import numpy as np

from extproc import plugins
from extproc.plugins.by_label import ByLabel
from extproc.plugins.endpoint_attribute_filter import Algorithm as FilterAlgorithm
from extproc.plugins.endpoint_attribute_filter import EndpointAttributeFilter
from extproc.plugins.endpoint_attribute_scorer import Algorithm as ScorerAlgorithm
from extproc.plugins.endpoint_attribute_scorer import EndpointAttributeScorer
from extproc.plugins.header_label_affinity_scorer import HeaderLabelAffinityScorer
from extproc.plugins.session_affinity_filter import SessionAffinityFilter
from extproc.plugins.session_affinity_scorer import SessionAffinityScorer
from extproc.plugins.utilization_filter import Condition, UtilizationFilter
from extproc.scheduling import config
from extproc.scheduling.endpoints import Endpoint, EndpointTable
from extproc.scheduling.framework import Cycle
from extproc.types import Api, InferenceRequest

HEAD = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}


def a_request(prefix=b"", *, prompt_tokens=10_000, model="demo", headers=None):
    return InferenceRequest(
        id="1",
        api=Api.CHAT,
        path="/v1/chat/completions",
        headers=headers or {},
        model=model,
        stream=False,
        prefix=prefix,
        prompt_tokens=prompt_tokens,
        max_tokens=None,
        wants_usage=False,
        cache_salt="",
        body=b"",
    )


def an_endpoint(**facts):
    """Facts of one row of the table: queue, running, kv, inflight, tokens, avoid_until, matched, labels, models, adapters, lora, node, ..."""
    return facts


def a_table(*endpoints):
    table = EndpointTable(capacity=4)
    columns = {
        "queue": "waiting",
        "running": "running",
        "kv": "kv_usage",
        "inflight": "inflight",
        "tokens": "inflight_tokens",
        "avoid_until": "avoid_until",
        "scraped_at": "scraped_at",
        "kv_tokens": "kv_tokens",
        "scraped_inflight": "inflight_scraped",
        "scraped_tokens": "inflight_tokens_scraped",
        "ttft_samples": "ttft_samples",
        "ttft": "ttft_s",
        "ttft_tokens": "ttft_tokens",
        "ttft_variance": "ttft_variance",
        "ttft_covariance": "ttft_covariance",
        "tpot_samples": "tpot_samples",
        "tpot": "tpot_s",
        "load": "latency_load",
        "measured_at": "latency_at",
    }
    for at, facts in enumerate(endpoints):
        row = table.upsert(
            Endpoint(
                address=f"10.0.{at // 250}.{at % 250}:8000",
                pod=f"default/pod-{at}",
                engine="vLLM",
                labels=facts.get("labels", {}),
                node=facts.get("node", ""),
            )
        )
        table.adapters[row] = frozenset(facts.get("adapters", ()))
        table.models[row] = frozenset(facts.get("models", ())) | table.adapters[row]
        table.lora[row] = facts.get("lora")
        for name, value in facts.get("attributes", {}).items():
            table.watch({*table.attributes, name})
            table.attributes[name][row] = value
        for fact, value in facts.items():
            if fact in columns:
                getattr(table, columns[fact])[row] = value
            elif fact not in ("matched", "labels", "models", "adapters", "lora", "node", "attributes"):
                raise ValueError(f"endpoints have no {fact}")
    return table


def a_cycle(*endpoints, blocks=0, trunk=0, now=100.0, seed=0, request=None, engine_model="", home=None):
    """A cycle over endpoints given by their facts, in table order."""
    table = a_table(*endpoints)
    return Cycle(
        request=request or a_request(),
        table=table,
        rows=np.array(table.rows(), dtype=np.intp),
        matched=np.array([facts.get("matched", 0) for facts in endpoints], dtype=np.int64),
        blocks=blocks,
        now=now,
        draw=random.Random(seed),
        trunk=trunk,
        engine_model=engine_model,
        home=None if home is None else np.array(home, dtype=np.int64),
    )


def a_plugin(plugin, **parameters):
    return plugin(plugin.Params(**parameters))


# What has to be said of plugins that do not work without.
NEEDED = {
    EndpointAttributeScorer: {"attribute_key": "depth", "algorithm": ScorerAlgorithm("linear_lower_is_better")},
    EndpointAttributeFilter: {"attribute": "depth", "algorithm": FilterAlgorithm("topK")},
    SessionAffinityScorer: {"strategy": "session_id"},
    SessionAffinityFilter: {"strategy": "session_id"},
    ByLabel: {"label": "role", "valid_values": ("decode",)},
    HeaderLabelAffinityScorer: {"header_name": "x-role", "label_key": "role"},
    UtilizationFilter: {"conditions": (Condition("waiting-queue", 10),)},
}


def any_plugin(plugin):
    """A plugin with its defaults, and what it needs beside them."""
    return a_plugin(plugin, **NEEDED.get(plugin, {}))


def a_scheduler(*types, weights=None):
    """A scheduler with plugins of these types in one profile."""
    weights = weights or {}
    document = {
        **HEAD,
        "plugins": [{"type": one} for one in types],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    {"pluginRef": one, **({"weight": weights[one]} if one in weights else {})} for one in types
                ],
            }
        ],
    }
    return config.build(config.load(document, plugins.BUILTIN))


def the_default_scheduler():
    return config.build(config.load(HEAD, plugins.BUILTIN))
