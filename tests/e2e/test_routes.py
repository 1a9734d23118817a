"""ModelRoutes over a real stack: which ModelServer a request reaches, under which model's name, and with what chance."""

import asyncio
import json
from collections import Counter

import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, MESSAGES, a_body, a_pod, running

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

SERVER = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {{name: {name}}}
spec:
  model: {model}
  inferenceEngine: vLLM
  workloadSelector: {{matchLabels: {{app: {name}}}}}
  workloadPort: {{port: 8000}}
"""
ROUTE = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelRoute
metadata: {{name: {name}}}
spec: {spec}
"""


def a_server(name, model):
    return SERVER.format(name=name, model=model)


def a_route(name, *rules, **spec):
    return ROUTE.format(name=name, spec=json.dumps({"modelName": name, "rules": rules} | spec))


def a_rule(name, *targets, **match):
    """Each target is a ModelServer's name, or a pair of it and its weight."""
    pairs = [target if isinstance(target, tuple) else (target, 100) for target in targets]
    chosen = [{"modelServerName": server, "weight": weight} for server, weight in pairs]
    return {"name": name, "targetModels": chosen} | ({"modelMatch": match} if match else {})


DOCUMENTS = (
    a_pod("large-0", "--served-model-name", "engine-large", "--lora", "sql", "--speed", "0", app="large"),
    a_pod("small-0", "--served-model-name", "engine-small", "--lora", "tuned", "--speed", "0", app="small"),
    a_server("large", "engine-large"),
    a_server("small", "engine-small"),
    a_server("nobody", "engine-none"),
    a_route("public", a_rule("", "large")),
    a_route("adapters", a_rule("", "large"), modelName="", loraAdapters=["sql"]),
    a_route(
        "ruled",
        a_rule("gold", "large", headers={"X-Tier": {"exact": "gold"}}),
        a_rule("both", "large", headers={"x-team": {"prefix": "blue-"}, "x-stage": {"regex": "^(test|dev)$"}}),
        a_rule("embeddings", "large", uri={"prefix": "/v1/embed"}),
        a_rule("tuned", "small", body={"model": "tuned"}),
        a_rule("rest", "small"),
        loraAdapters=["tuned"],
    ),
    a_route("strict", a_rule("", "large", headers={"x-tier": {"exact": "gold"}})),
    a_route("split", a_rule("", ("large", 80), ("small", 20))),
    a_route("spare", a_rule("", ("nobody", 99), ("small", 1))),
    a_route("drained", a_rule("", ("large", 0), ("small", 5))),
    a_route("empty", a_rule("", "nobody")),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    async with running(tmp_path_factory.mktemp("routes") / "manifests", *DOCUMENTS) as it:
        yield it


async def placed(world, model, path=COMPLETIONS, **headers):
    """Rule, ModelServer and the engine's name for the model, as the picker, and the model as the engine tells it."""
    given = {"input": "hello", "prompt": None, "max_tokens": None} if path == "/v1/embeddings" else {}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await world.send(path, model=model, headers=named | {"x-matrixinfer-explain": "1"}, **given)
    assert answer.status == 200, answer.body
    told = json.loads(answer.headers["x-matrixinfer-decision"])
    assert told["engine_model"] == answer.json["model"]
    return told["rule"], told["target"].removeprefix("default/"), told["engine_model"]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, MESSAGES, "/v1/embeddings"])
async def test_the_engine_is_asked_for_the_model_that_the_model_server_names(world, path):
    assert await placed(world, "public", path) == ("", "large", "engine-large")


async def test_only_the_models_name_is_rewritten(world):
    body = a_body(CHAT, model="public", messages=[{"role": "user", "content": 'say "model": "public"'}], stream=True)
    request_id = world.new_id()
    address = (await world.engines())["large-0"]
    changed = body | {"model": "engine-large"}

    answer = await world.raw(CHAT, data=json.dumps(body), headers={"x-request-id": request_id})
    async with world.http.post(f"http://{address}{CHAT}", json=changed) as direct:
        expected = await direct.read()

    assert words(answer.body) == words(expected)


def words(body):
    """The text of a stream: the simulator's answer depends on every token of the prompt."""
    decoded = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    return [choice["delta"]["content"] for event in decoded for choice in event["choices"]]


async def test_an_adapter_keeps_its_name_on_the_way_to_the_engine(world):
    assert await placed(world, "sql") == ("", "large", "sql")


async def test_all_routes_models_and_adapters_are_listed(world):
    answer = await world.send("/v1/models", method="GET")

    listed = {model["id"]: model.get("parent") for model in answer.json["data"]}
    names = ["public", "ruled", "strict", "split", "spare", "drained", "empty"]
    assert listed == dict.fromkeys(names) | {"sql": None, "tuned": "ruled"}


async def test_rules_match_headers_uri_and_the_bodys_model_in_order(world):
    assert await placed(world, "ruled", x_tier="gold") == ("gold", "large", "engine-large")
    assert await placed(world, "ruled", x_team="blue-7", x_stage="dev") == ("both", "large", "engine-large")
    assert await placed(world, "ruled", x_team="blue-7") == ("rest", "small", "engine-small")
    assert await placed(world, "ruled", x_tier="golden") == ("rest", "small", "engine-small")
    assert await placed(world, "ruled", "/v1/embeddings") == ("embeddings", "large", "engine-large")
    assert await placed(world, "tuned") == ("tuned", "small", "tuned")
    assert await placed(world, "ruled") == ("rest", "small", "engine-small")


async def test_a_request_that_fits_no_rule_is_404(world):
    answer = await world.send(model="strict")

    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "no rule" in answer.error["message"]
    assert await placed(world, "strict", x_tier="gold") == ("", "large", "engine-large")


async def served(world, model, count):
    """How many of `count` requests each engine served, by their own account."""
    names = ("large-0", "small-0")
    before = {name: await world.served(name) for name in names}
    gate = asyncio.Semaphore(16)

    async def one():
        async with gate:
            return (await world.send(model=model, max_tokens=1)).status

    assert Counter(await asyncio.gather(*(one() for _ in range(count)))) == {200: count}
    return {name.removesuffix("-0"): await world.served(name) - before[name] for name in names}


async def test_weights_80_to_20_are_kept(world):
    counts = await served(world, "split", 1000)

    # 1,000 draws with p = 0.8 have a standard deviation of 12.6; five of them are passed once in two million runs.
    assert sum(counts.values()) == 1000
    assert abs(counts["large"] - 800) <= 63


async def test_the_second_target_serves_when_the_first_has_no_endpoint(world):
    assert await served(world, "spare", 50) == {"large": 0, "small": 50}


async def test_a_target_of_weight_0_gets_nothing(world):
    assert await served(world, "drained", 50) == {"large": 0, "small": 50}


async def test_a_route_whose_targets_all_have_no_endpoint_is_503_with_retry_after(world):
    answer = await world.send(model="empty")

    assert (answer.status, answer.error["code"]) == (503, "no_endpoints")
    assert answer.headers["x-matrixinfer-reason"] == "no-endpoints"
    assert int(answer.headers["retry-after"]) >= 1
