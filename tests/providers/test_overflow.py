"""Overflow on a whole stack: an engine that is busy, a provider that takes the rest, and flow control that would have them wait."""

import asyncio
from collections import Counter

import pytest

from tests.e2e.stack import CHAT, a_pod, a_server, running
from tests.providers import fakes
from tests.providers.town import a_provider, a_route, a_secret, inside, outside

CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 2}}
- {type: prefix-cache-scorer}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
"""


@pytest.mark.envoy
async def test_what_the_engine_has_no_place_for_goes_to_the_provider_at_once(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    async with (
        fakes.provider(tmp_path) as provider,
        running(
            tmp_path / "manifests",
            a_secret(provider),
            a_provider(provider, type="Anthropic"),
            a_pod("demo-0", "--itl-ms-base", "100"),
            a_server(),
            a_route("demo", inside(), outside(overflow=True)),
            scheduling=tmp_path / "config.yaml",
        ) as world,
    ):
        alone = await world.send(CHAT, max_tokens=1)
        await world.settled()
        answers = await asyncio.gather(*(world.send(CHAT, max_tokens=40) for _ in range(10)))
        metrics = await world.settled()
        again = await world.send(CHAT, max_tokens=1)

    models = Counter(answer.json["model"] for answer in answers)
    assert models == {"demo": 2, "their-model": 8}
    assert (alone.json["model"], again.json["model"]) == ("demo", "demo")
    assert metrics["matrixinfer_provider_tries_total{provider=default/outside,status=200}"] == 8
