"""The examples: all are valid, and those that need no real engine do what their comments say."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pytest

from extproc import plugins
from extproc.scheduling import config
from matrixinfer.api import core, kinds
from matrixinfer.cluster import directory
from matrixinfer.local import ports
from matrixinfer.local.stack import Config, Stack
from tests.docs.pages import ROOT
from tests.e2e.stack import CHAT, World, running
from tests.local.waiting import eventually_async

EXAMPLES = ROOT / "examples"
SCHEDULING = EXAMPLES / "scheduling"
SIMULATE = EXAMPLES / "simulate"  # what `matrixinfer simulate` is given
MANIFESTS = sorted(folder for folder in EXAMPLES.iterdir() if folder not in (SCHEDULING, SIMULATE))
LATER = {"real-vllm"}  # needs vLLM
HERE = {
    "quickstart",
    "access",
    "fairness",
    "prefill-decode",
    "canary",
    "header-routing",
    "traffic-policies",
    "lora",
    "two-models",
    "model-infer",
    "model-infer-roles",
    "kv-events",
    "external-provider",
}


@pytest.mark.parametrize("folder", MANIFESTS, ids=lambda folder: folder.name)
def test_every_example_is_valid(folder):
    reading = directory.read(folder)

    assert reading.entries
    assert reading.findings == []


@pytest.mark.parametrize("file", sorted(SCHEDULING.iterdir()), ids=lambda file: file.name)
def test_every_scheduler_configuration_loads(file):
    config.build(config.load(config.parse(file.read_text()), plugins.BUILTIN))


def test_no_example_is_forgotten():
    assert {folder.name for folder in MANIFESTS} == HERE | LATER


@asynccontextmanager
async def up(name, scheduling=None):
    """The example, as soon as the picker knows all of its engines."""
    settings = Config(
        directory=EXAMPLES / name, port=0, admin_port=0, metrics_port=0, log_level="warning", scheduling=scheduling
    )
    async with aiohttp.ClientSession() as http, Stack(settings) as stack:
        await stack.ready()
        world = World(stack, EXAMPLES / name, http)

        async def known():
            pods = [core.Pod.model_validate(item) for item in (await stack.cluster.list(kinds.POD)).items]
            try:
                async with http.get(f"{stack.admin_url}/endpoints") as answer:
                    listed = (await answer.json())["endpoints"]
            except aiohttp.ClientConnectionError:  # Envoy serves already, the picker does not yet
                return False
            scraped = [each for each in listed if each["ready"] and each["models"]]
            return len(scraped) == len(pods) == sum(pod.ready for pod in pods)

        await eventually_async(known)
        yield world


async def served_by(world, path=CHAT, headers=None, **body):
    answer = await world.send(path, headers=headers, **body)
    assert answer.status == 200, answer.body
    return answer.json["model"]


@pytest.mark.envoy
async def test_canary_gives_the_next_version_its_share():
    async with up("canary") as world:
        models = Counter(await asyncio.gather(*(served_by(world, max_tokens=1) for _ in range(150))))

    assert set(models) == {"demo", "demo-next"}
    assert models["demo"] > models["demo-next"]


@pytest.mark.envoy
async def test_header_routing_tells_clients_apart():
    async with up("header-routing") as world:
        assert await served_by(world) == "demo-small"
        assert await served_by(world, headers={"X-Plan": "paid"}) == "demo-large"
        assert await served_by(world, headers={"x-experiment": "b2"}) == "demo-large"
        assert await served_by(world, headers={"x-experiment": "a"}) == "demo-small"
        assert await served_by(world, "/v1/completions", headers={"x-experiment": "b2"}) == "demo-small"


@pytest.mark.envoy
async def test_traffic_policies_keep_users_have_a_spare_and_a_mirror():
    async with up("traffic-policies") as world:
        users = [f"user-{number}" for number in range(60)]
        first, again = [
            [await served_by(world, model="assistant", headers={"x-user": user}, max_tokens=1) for user in users]
            for _ in range(2)
        ]
        for name in ("small-0", "small-1"):
            await world.fail(name, "503")
        spare = await served_by(world, model="chat", max_tokens=1)
        await world.heal()
        copied = await world.served("large-0")
        small = await served_by(world, model="rehearsal", max_tokens=1)

        async def has_its_copy():
            return await world.served("large-0") == copied + 1

        await eventually_async(has_its_copy)

    assert first == again
    assert set(first) == {"demo-small", "demo-large"}
    assert (spare, small) == ("demo-large", "demo-small")


@pytest.mark.envoy
async def test_lora_adapters_are_served_where_they_are_loaded():
    async with up("lora") as world:
        addresses = await world.engines()
        explain = {"x-matrixinfer-explain": "1"}
        answers = [await world.send(CHAT, model="summary", headers=explain, max_tokens=1) for _ in range(10)]
        listed = (await world.send("/v1/models", method="GET")).json["data"]
        sql = await served_by(world, model="sql")

    chosen = {json.loads(answer.headers["x-matrixinfer-decision"])["endpoints"][0] for answer in answers}
    assert chosen == {addresses["base-0"]}
    assert sql == "sql"
    assert {model["id"]: model["parent"] for model in listed} == {"demo": None, "sql": "demo", "summary": "demo"}


@pytest.mark.envoy
async def test_engines_with_kv_events_are_known_to_the_token():
    async with up("kv-events", SCHEDULING / "exact-prefix.yaml") as world:

        async def all_are_followed():
            return (await world.metrics())["matrixinfer_kv_streams{state=complete}"] == len(await world.engines())

        await eventually_async(all_are_followed)
        for cached in (0, 96):
            request = world.new_id()
            answer = await world.send(prompt=list(range(1000, 1100)), headers={"x-request-id": request})
            found = await world.decision(request)

            assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
            assert found["predicted_cached_tokens"] == cached


@pytest.mark.envoy
async def test_two_models_stand_behind_one_gateway():
    async with up("two-models") as world:
        answered = await served_by(world, model="assistant")
        embedded = await served_by(
            world, "/v1/embeddings", model="embeddings", input="hello", prompt=None, max_tokens=None
        )

    assert (answered, embedded) == ("chat-8b", "embed-small")


@pytest.mark.envoy
async def test_prefill_pods_compute_and_decode_pods_answer():
    async with up("prefill-decode", SCHEDULING / "prefill-decode.yaml") as world:
        pods = {address: pod for pod, address in (await world.engines()).items()}
        explain = {"x-matrixinfer-explain": "1"}
        answers = [await world.send(prompt=text, headers=explain) for text in ("a long story " * 200, "hello")]

    long, short = (json.loads(answer.headers["x-matrixinfer-decision"]) for answer in answers)
    assert pods[long["prefill"]["endpoint"]].startswith("prefill")
    assert pods[long["endpoints"][0]].startswith("decode")
    assert (long["prefill"]["reason"], short["prefill"]["reason"]) == ("uncached", "cached")


@pytest.mark.envoy
async def test_quickstart_serves_with_another_scheduler_configuration():
    async with up("quickstart", SCHEDULING / "load-first.yaml") as world:
        assert await served_by(world) == "demo"

        async with world.http.get(f"{world.stack.admin_url}/config") as answer:
            assert "weighted-random-picker" in await answer.text()


@pytest.mark.envoy
async def test_a_provider_takes_what_the_engine_cannot(tmp_path):
    port = ports.choose(0, option="--port")
    for file in (EXAMPLES / "external-provider").iterdir():
        (tmp_path / file.name).write_text(file.read_text().replace("8101", str(port)))
    async with running(tmp_path) as world:

        async def answers(model, name):
            answer = await world.send(CHAT, model=model, max_tokens=1)
            return answer.status == 200 and answer.json["model"] == name

        await eventually_async(lambda: answers("claude", "their-model"))
        await eventually_async(lambda: answers("demo", "demo"))
        (tmp_path / "engine.yaml").unlink()
        await eventually_async(lambda: answers("demo", "their-model"))
