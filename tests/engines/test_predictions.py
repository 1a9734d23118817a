"""The whole stack before two real vLLM engines: the cached tokens that the picker predicts are those that engines report.

A mixed run, again after an engine started anew, and again after its events were lost. One engine is found by its own word,
the other by its pod's annotation, which leads over connections that the tests disturb.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from extproc.adapters import kv_sources
from matrixinfer.api import kinds
from matrixinfer.local.containers import Backoff
from matrixinfer.local.stack import Config, Stack
from tests.e2e.stack import CHAT, COMPLETIONS, MESSAGES, World, events, say, total
from tests.engines.live import START_S, Vllm, Wire
from tests.local.waiting import eventually_async

pytestmark = [
    pytest.mark.engines,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="needs VLLM_PYTHON and VLLM_CACHE: make test-engines"),
]

RESPONSES = "/v1/responses"
HEARD_S = 0.25  # what an engine tells of an answer's last block may come after the answer, and it does not say when it told all
TEMPLATE = (
    "{% if tools %}<|begin|>tools\n{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|begin|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
SCHEDULING = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: token-producer
  parameters:
    tokenizers:
    - {{model: tiny, source: "{source}", chatTemplate: "{template}"}}
- type: precise-prefix-cache-producer
  parameters:
    kvEventsConfig: {{discoverPods: true}}
- type: prefix-cache-scorer
  parameters: {{prefixMatchInfoProducerName: precise-prefix-cache-producer}}
- type: active-request-scorer
- type: no-hit-lru-scorer
schedulingProfiles:
- name: default
  plugins:
  - {{pluginRef: prefix-cache-scorer, weight: 3}}
  - {{pluginRef: active-request-scorer, weight: 1}}
  - {{pluginRef: no-hit-lru-scorer, weight: 2}}
"""
WORDS = ("ship", "storm", "harbour", "import", "return", "class", "raise", "yield", "value", "index", "table", "prefix")
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks something up & says so.",
        "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
    },
}
ANTHROPIC_TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object", "properties": {}}}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request and what its engine said."""

    kind: str
    request: str
    text: str
    reported: int  # cached tokens


@dataclass(slots=True)
class Scene:
    """The stack, its engines, and what was predicted and reported so far."""

    world: World
    plain: Vllm  # followed by its own word
    wired: Vllm  # followed over the wires
    events: Wire
    replay: Wire
    draw: random.Random = field(default_factory=lambda: random.Random(11))
    asked: list[Asked] = field(default_factory=list)  # not compared yet
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and result
    hits: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[int | None, int | None, str, Asked]] = field(default_factory=list)  # predicted, noted, where

    def text(self, words: int) -> str:
        """So many words that nobody has said before."""
        return " ".join(f"{self.draw.choice(WORDS)}{self.draw.randrange(1000)}" for _ in range(words))

    async def ask(self, kind: str, path: str, **body: Any) -> Asked:
        """Ask, and keep the prediction to be looked up."""
        request = self.world.new_id()
        length = "max_output_tokens" if path == RESPONSES else "max_tokens"
        given = {"model": "tiny", "temperature": 0, length: 20} | body
        answer = await self.world.raw(path, headers={"x-request-id": request}, data=json.dumps(given).encode())
        assert answer.status == 200, (kind, answer.body)
        told = _streamed(path, answer.body) if given.get("stream") else answer.json
        made = Asked(kind, request, _text(path, told), cached_tokens(told["usage"]))
        self.asked.append(made)
        await self.world.decision(request)  # has ended for the picker, too
        await asyncio.sleep(HEARD_S)
        return made

    async def look(self, asked: Asked) -> None:
        """Look up what the picker predicted, and whether it noted what the engine reported."""
        found = await self.world.decision(asked.request)
        noted = found["end"]["outcome"]["cached_tokens"]
        predicted = found["predicted_cached_tokens"]
        result = "unknown" if predicted is None else "equal" if predicted == asked.reported else "different"
        self.counts[asked.kind, result] += 1
        self.hits[asked.kind] += asked.reported > 0
        if result != "equal" or (noted or 0) != asked.reported:
            self.wrong.append((predicted, noted, found["endpoints"][0], asked))
            say(
                f"{asked.kind}: {predicted} predicted, {asked.reported} reported by {found['endpoints'][0]}, {noted} noted"
            )

    async def compare(self, what: str) -> None:
        """Compare all predictions since the last time with the reports, and say how many were right."""
        for counted in (self.counts, self.hits, self.wrong):
            counted.clear()
        for asked in self.asked:
            await self.look(asked)
        self.asked.clear()
        say(f"\n{what}: {sum(self.counts.values())} requests, {sum(self.hits.values())} found something cached")
        for kind, hits in sorted(self.hits.items()):
            results = {result: count for (one, result), count in sorted(self.counts.items()) if one == kind}
            say(f"  {kind}: " + ", ".join(f"{count} {one}" for one, count in results.items()) + f"; {hits} cached")

    async def complete(self) -> None:
        """Wait until all is known of both engines again."""

        async def known() -> bool:
            return (await self.world.metrics())["matrixinfer_kv_streams{state=complete}"] == 2

        await eventually_async(known, 60)

    async def serving(self, engines: int = 2) -> None:
        """Wait until so many engines may be chosen."""

        async def ready() -> bool:
            return total(await self.world.metrics(), "matrixinfer_endpoint_ready") == engines

        await eventually_async(ready, 60)


def cached_tokens(usage: dict[str, Any]) -> int:
    """What an engine says it found in its cache."""
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"] or 0)
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(details.get("cached_tokens") or 0)


def _streamed(path: str, body: bytes) -> dict[str, Any]:
    """What a stream says in all: its text, and its last usage."""
    parts = [json.loads(one) for one in events(body) if one != "[DONE]"]
    if path == RESPONSES:
        return next(part["response"] for part in parts if part["type"] == "response.completed")
    usage: dict[str, Any] = {}
    for part in parts:
        usage |= (part.get("message") or part).get("usage") or {}
    pieces = [choice for part in parts for choice in part.get("choices", ())]
    text = "".join((one.get("delta") or {}).get("content") or one.get("text") or "" for one in pieces)
    text += "".join(part["delta"].get("text", "") for part in parts if part.get("type") == "content_block_delta")
    if path == MESSAGES:
        return {"usage": usage, "content": [{"text": text}]}
    return {"usage": usage, "choices": [{"text": text, "message": {"content": text}}]}


def _text(path: str, told: dict[str, Any]) -> str:
    if path == RESPONSES:
        return "".join(part.get("text", "") for item in told["output"] for part in item.get("content") or ())
    if path == MESSAGES:
        return "".join(part.get("text", "") for part in told["content"])
    (choice,) = told["choices"]
    return str((choice["message"]["content"] if path == CHAT else choice["text"]) or "")


@asynccontextmanager
async def before(urls, scheduling, annotation):
    """What `matrixinfer up --engine URL --engine URL --config FILE` runs; the second one's pod is annotated."""
    settings = Config(
        engines=urls,
        port=0,
        admin_port=0,
        metrics_port=0,
        scheduling=scheduling,
        log_level="warning",
        backoff=Backoff(0.1, 1),
    )
    stack = Stack(settings)
    metadata = {"namespace": "default", "name": "engine-1", "annotations": {kv_sources.ANNOTATION: annotation}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    await stack.cluster.apply(kinds.POD, pod, manager="test")
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http, stack:
        await stack.ready(START_S)
        yield World(stack, scheduling.parent, http, stack.pids())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictions")
    template, scheduling = folder / "template.jinja", folder / "scheduling.yaml"
    template.write_text(TEMPLATE)
    scheduling.write_text(SCHEDULING.format(source=f"{os.environ['VLLM_CACHE']}/tiny", template=template))
    flags = ("--chat-template", str(template))
    plain, wired = Vllm("plain", folder, 32, flags), Vllm("wired", folder, 64, flags)
    async with AsyncExitStack() as cleanup:
        wires = Wire(wired.events), Wire(wired.replay)
        for wire in wires:
            await wire.open()
            cleanup.push_async_callback(wire.close)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for engine in (plain, wired):
                cleanup.callback(engine.kill)
                engine.start()
            await asyncio.gather(plain.ready(http), wired.ready(http))
        annotation = f"port={wires[0].port},replay={wires[1].port}"
        world = await cleanup.enter_async_context(before((plain.url, wired.url), scheduling, annotation))
        it = Scene(world, plain, wired, *wires)
        await it.serving()
        await it.complete()
        yield it


# ---- what a mixed run asks


async def chat_of_many_turns(it, kind, *, turns=4, stream=False, **more):
    messages = [{"role": "system", "content": it.text(40)}] if it.draw.random() < 0.5 else []
    usage = {"stream_options": {"include_usage": True}} if stream else {}
    for _turn in range(turns):
        messages.append({"role": "user", "content": it.text(it.draw.randrange(5, 60))})
        answer = await it.ask(kind, CHAT, messages=messages, stream=stream, **usage, **more)
        messages.append({"role": "assistant", "content": answer.text})


async def chat_with_tools(it, kind, **more):
    messages = [{"role": "user", "content": it.text(50)}]
    more = {"tools": [TOOL], "tool_choice": "none"} | more
    await it.ask(kind, CHAT, messages=messages, **more)
    call = {"name": "look", "arguments": '{"what": "é", "n": 1.0}'}
    messages.append(
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": call}]}
    )
    messages.append({"role": "tool", "tool_call_id": "c1", "content": it.text(40)})
    answer = await it.ask(kind, CHAT, messages=messages, **more)
    messages.append({"role": "assistant", "content": answer.text})
    messages.append({"role": "user", "content": [{"type": "text", "text": it.text(20)}]})
    await it.ask(kind, CHAT, messages=messages, **more)


async def completion_of_text(it, kind, **more):
    prompt = it.text(60)
    for _turn in range(3):
        answer = await it.ask(kind, COMPLETIONS, prompt=prompt, **more)
        prompt += answer.text + " " + it.text(it.draw.randrange(3, 30))


async def completion_of_ids(it, kind, *, tokens=None, **more):
    tokens = list(tokens or (it.draw.randrange(10, 4000) for _ in range(130)))
    for _turn in range(3):
        await it.ask(kind, COMPLETIONS, prompt=tokens, **more)
        tokens += [it.draw.randrange(10, 4000) for _ in range(it.draw.randrange(1, 90))]


async def messages_of_many_turns(it, kind, **more):
    messages = []
    for _turn in range(3):
        messages.append({"role": "user", "content": [{"type": "text", "text": it.text(40)}]})
        answer = await it.ask(kind, MESSAGES, system="Be " + WORDS[0], messages=messages, **more)
        messages.append({"role": "assistant", "content": answer.text or "nothing"})


async def responses_of_many_turns(it, kind, **more):
    items = []
    for _turn in range(3):
        items.append({"role": "user", "content": it.text(40)})
        answer = await it.ask(kind, RESPONSES, input=items, instructions="Be brief.", **more)
        items.append({"role": "assistant", "content": answer.text or "nothing"})


async def long_and_cold(it, kind):
    """More unknown text than is encoded on the loop."""
    prompt = it.text(900)
    for _turn in range(2):
        await it.ask(kind, COMPLETIONS, prompt=prompt, max_tokens=2)
        prompt += it.text(20)


async def mixed(it):
    """Conversations of all kinds, three at a time; a turn comes when the one before has been heard of."""
    same = [it.draw.randrange(10, 4000) for _ in range(200)]
    talks = [
        chat_of_many_turns(it, "chat"),
        chat_of_many_turns(it, "chat, streamed", stream=True),
        chat_of_many_turns(it, "chat of an adapter", model="lora-a"),
        chat_of_many_turns(it, "chat with a salt", cache_salt="tenant-1"),
        chat_with_tools(it, "chat with tools"),
        chat_with_tools(it, "chat with tools of an adapter", model="lora-a"),
        completion_of_text(it, "completion"),
        completion_of_text(it, "completion of an adapter", model="lora-a", cache_salt="tenant-1"),
        completion_of_ids(it, "completion of ids", tokens=same),
        completion_of_ids(it, "completion of ids with a salt", tokens=same, cache_salt="tenant-1"),
        completion_of_ids(it, "completion of ids with a salt", tokens=same, cache_salt="tenant-2"),
        completion_of_ids(it, "completion of ids of an adapter", tokens=same, model="lora-a"),
        completion_of_text(it, "completion, streamed", stream=True, stream_options={"include_usage": True}),
        messages_of_many_turns(it, "messages"),
        messages_of_many_turns(it, "messages with tools", tools=[ANTHROPIC_TOOL], tool_choice={"type": "none"}),
        messages_of_many_turns(it, "messages, streamed", stream=True),
        responses_of_many_turns(it, "responses"),
        responses_of_many_turns(it, "responses, streamed", stream=True),
        long_and_cold(it, "long and cold"),
    ]
    it.draw.shuffle(talks)
    places = asyncio.Semaphore(3)

    async def in_its_place(talk):
        async with places:
            await talk

    await asyncio.gather(*map(in_its_place, talks))


async def test_a_mixed_run_is_predicted_to_the_token(scene):
    await mixed(scene)
    await scene.compare("mixed run")

    assert scene.wrong == []
    assert sum(scene.counts.values()) == 60
    assert [kind for kind, hits in scene.hits.items() if not hits] == []


async def test_after_an_engine_started_anew(scene):
    prompts = [[scene.draw.randrange(10, 4000) for _ in range(200)] for _ in range(8)]
    for prompt in prompts:
        await scene.ask("before", COMPLETIONS, prompt=prompt)
    scene.plain.kill()
    await scene.serving(1)
    scene.plain.start()
    await mixed(scene)
    await scene.compare("while an engine is down")
    assert scene.wrong == []

    await scene.plain.ready(scene.world.http)
    await scene.serving()
    await scene.complete()
    for prompt in prompts:
        await scene.ask("again", COMPLETIONS, prompt=prompt)
    await mixed(scene)
    await scene.compare("after an engine started anew")

    assert scene.wrong == []
    assert 0 < scene.hits["again"] < len(prompts)  # one engine has lost its part


async def past_the_gateway(scene, prompt):
    """Have the engine behind the wires hold a prompt that no picker placed."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2}
    async with scene.world.http.post(f"{scene.wired.url}{COMPLETIONS}", json=body) as answer:
        assert answer.status == 200, await answer.text()


async def lost_events(scene):
    """Let the picker miss what the engine behind the wires tells, and hear what comes then. Returns the prompt that it missed."""
    prompt, later = ([scene.draw.randrange(10, 4000) for _ in range(300)] for _ in range(2))
    before = scene.events.lost
    scene.events.losing = True
    await past_the_gateway(scene, prompt)
    await eventually_async(lambda: _more(scene, before), 30)
    scene.events.losing = False
    await past_the_gateway(scene, later)
    return prompt


async def _more(scene, before):
    return scene.events.lost > before


async def happened(scene, event, before):
    """Wait until one more of these has happened to a stream."""
    name = f"matrixinfer_kv_stream_events_total{{event={event}}}"

    async def one_more():
        return (await scene.world.metrics())[name] > before[name]

    await eventually_async(one_more, 60)


async def test_after_lost_events_were_asked_for_again(scene):
    before = await scene.world.metrics()
    prompt = await lost_events(scene)
    await happened(scene, "gap", before)
    await scene.complete()
    answer = await scene.ask("missed", COMPLETIONS, prompt=prompt)
    await mixed(scene)
    await scene.compare("after a gap, with replay")

    assert answer.reported == 256
    assert scene.wrong == []


async def test_after_the_connection_broke(scene):
    prompt = [scene.draw.randrange(10, 4000) for _ in range(300)]
    scene.events.cut()
    await past_the_gateway(scene, prompt)
    scene.events.mend()
    await scene.complete()
    answer = await scene.ask("missed", COMPLETIONS, prompt=prompt)
    await scene.compare("after the connection broke")

    assert answer.reported == 256
    assert scene.wrong == []


async def test_where_lost_events_cannot_be_had_nothing_is_predicted_until_all_is_known(scene):
    before = await scene.world.metrics()
    scene.replay.cut()
    await lost_events(scene)
    await happened(scene, "reset", before)
    await mixed(scene)
    await scene.compare("after a gap, without replay")
    assert {(predicted, endpoint) for predicted, _noted, endpoint, _asked in scene.wrong} == {
        (None, scene.wired.address)
    }

    scene.replay.mend()
    async with scene.world.http.post(f"{scene.wired.url}/reset_prefix_cache") as answer:
        assert answer.status == 200
    await past_the_gateway(scene, [scene.draw.randrange(10, 4000) for _ in range(100)])
    await scene.complete()
    await mixed(scene)
    await scene.compare("after the engine has cleared its cache")
    assert scene.wrong == []
