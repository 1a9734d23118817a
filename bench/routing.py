"""What placing is worth: prefix-aware against random and round robin, on one shared-prefix workload, three loads.

Four simulated engines whose caches hold the prefixes of a quarter of the groups each, and not those of all: placing
decides whether a prompt is computed or found. The same requests in the same order for every arm.
"""

from __future__ import annotations

import random
import re
import statistics
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import yaml

from bench import load, table
from matrixinfer.local.stack import Config, Stack

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ENGINES = 4
GROUPS = 32
PREFIX_WORDS, QUESTION_WORDS, ANSWER_TOKENS = 1000, 60, 32
ENGINE = ["--block-size", "16", "--kv-blocks", "2600", "--prefill-tokens-per-second", "12000", "--max-num-seqs", "64"]
RATES = (6.0, 12.0, 18.0)  # requests a second over all engines
WARM_S = 8.0  # until every group has been seen once or twice; not counted
USAGE = re.compile(rb'"usage":\{"prompt_tokens":(\d+).*?"cached_tokens":(\d+)', re.DOTALL)

ARMS: dict[str, list[dict[str, Any]] | None] = {
    "prefix-aware (default)": None,
    "round robin": [{"type": "round-robin-picker"}],
    "random": [{"type": "random-picker"}],
}


@dataclass(frozen=True, slots=True)
class Point:
    """One arm at one load."""

    hit_rate: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    balance: float  # busiest engine's requests over the mean
    failed: int


def manifests() -> str:
    """Return engines, ModelServer and ModelRoute as YAML."""
    pods: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"engine-{number}", "labels": {"app": "demo"}},
            "spec": {
                "containers": [
                    {
                        "name": "engine",
                        "image": "matrixinfer/simulator",
                        "command": ["python", "-m", "engine.simulator"],
                        "args": ["--model", "demo", "--host", "$(POD_IP)", "--port", "8000", *ENGINE],
                        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
                    }
                ]
            },
        }
        for number in range(ENGINES)
    ]
    group = "networking.matrixinfer.ai/v1alpha1"
    server = {
        "apiVersion": group,
        "kind": "ModelServer",
        "metadata": {"name": "demo"},
        "spec": {
            "inferenceEngine": "vLLM",
            "workloadSelector": {"matchLabels": {"app": "demo"}},
            "workloadPort": {"port": 8000},
        },
    }
    route = {
        "apiVersion": group,
        "kind": "ModelRoute",
        "metadata": {"name": "demo"},
        "spec": {"modelName": "demo", "rules": [{"targetModels": [{"modelServerName": "demo"}]}]},
    }
    return yaml.safe_dump_all([*pods, server, route])


def requests(count: int) -> list[bytes]:
    """Return the workload: groups in random order, each with its own long prefix and a fresh question."""
    chance = random.Random(7)
    words = [f"w{number}" for number in range(5000)]
    prefixes = [" ".join(chance.choices(words, k=PREFIX_WORDS)) for _ in range(GROUPS)]
    made = []
    for _ in range(count):
        question = " ".join(chance.choices(words, k=QUESTION_WORDS))
        messages = (
            f'[{{"role":"system","content":"{chance.choice(prefixes)}"}},{{"role":"user","content":"{question}"}}]'
        )
        body = (
            f'{{"model":"demo","stream":true,"stream_options":{{"include_usage":true}},'
            f'"max_tokens":{ANSWER_TOKENS},"messages":{messages}}}'
        )
        made.append(load.post("gateway", "/v1/chat/completions", body.encode()))
    return made


def judge(samples: Sequence[load.Sample], per_engine: Sequence[int]) -> Point:
    """Sum up one load point."""
    counted = [found for sample in samples if (found := USAGE.search(sample.body)) is not None]
    prompt = sum(int(found[1]) for found in counted)
    cached = sum(int(found[2]) for found in counted)
    first = [sample.first_s * 1e3 for sample in samples]
    return Point(
        hit_rate=cached / prompt if prompt else 0.0,
        ttft_p50_ms=load.percentile(first, 0.5),
        ttft_p99_ms=load.percentile(first, 0.99),
        balance=max(per_engine) / statistics.mean(per_engine) if any(per_engine) else 0.0,
        failed=sum(sample.status != 200 for sample in samples),
    )


async def _arm(folder: Path, plugins: list[dict[str, Any]] | None, seconds: float) -> list[Point]:
    scheduling = None
    if plugins is not None:
        scheduling = folder / "scheduling.yaml"
        document = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", "plugins": plugins}
        scheduling.write_text(yaml.safe_dump(document))
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "demo.yaml").write_text(manifests())
    config = Config(directory=site, port=0, admin_port=0, metrics_port=0, scheduling=scheduling, log_level="warning")
    points = []
    async with Stack(config) as stack:
        await stack.ready()
        workload = requests(int(2 * (RATES[0] * WARM_S + sum(RATES) * seconds)))
        await load.open_loop(stack.url, lambda number: workload[number], rate=RATES[0], seconds=WARM_S)
        at = int(2 * RATES[0] * WARM_S)
        for rate in RATES:
            before = await _per_engine(stack)
            start = at
            samples = await load.open_loop(
                stack.url,
                partial(_numbered, workload, start),
                rate=rate,
                seconds=seconds,
                keep_body=True,
            )
            at += len(samples)
            after = await _per_engine(stack)
            points.append(judge(samples, [b - a for a, b in zip(before, after, strict=True)]))
    return points


def _numbered(workload: list[bytes], start: int, number: int) -> bytes:
    return workload[start + number]


async def _per_engine(stack: Stack) -> list[int]:
    """Requests that each engine has had, as it counts them."""
    counts = []
    for endpoint in await _get(f"{stack.admin_url}/endpoints", "endpoints"):
        totals = await _get(f"http://{endpoint['address']}/sim/requests?since=1000000000", "totals")
        counts.append(int(totals["requests"]))
    return counts


async def _get(url: str, key: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return (await response.json())[key]


async def run(folder: Path, *, seconds: float) -> None:
    """Print the table."""
    rows = []
    for name, plugins in ARMS.items():
        own = folder / name.split(" ", 1)[0]
        own.mkdir()
        for rate, point in zip(RATES, await _arm(own, plugins, seconds), strict=True):
            rows.append(
                (
                    name,
                    f"{rate:.0f}/s",
                    f"{point.hit_rate:.0%}",
                    f"{point.ttft_p50_ms:.0f}",
                    f"{point.ttft_p99_ms:.0f}",
                    f"{point.balance:.2f}",
                    str(point.failed),
                )
            )
    head = ("placing", "load", "cached tokens", "TTFT p50 ms", "p99 ms", "busiest/mean", "failed")
    title = f"Shared prefixes: {GROUPS} groups of {PREFIX_WORDS} words over {ENGINES} simulated engines"
    table.show(title, head, rows)
