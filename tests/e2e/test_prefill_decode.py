"""Prefill and decode in different pods, through Envoy: the gateway performs the prefill leg, or the decode pod's proxy."""

from __future__ import annotations

import asyncio
import json

import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, a_pod, a_route, events, running, total
from tests.local.waiting import eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]

NIXL = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute"})
MOONCAKE = json.dumps({"kv_connector": "MooncakeConnector", "kv_role": "kv_both"})
PROMPT = "The sea is wide and the wind is strong. " * 20

SERVER = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {{name: {name}}}
spec:
  model: demo
  inferenceEngine: {engine}
  workloadSelector:
    matchLabels: {{app: {name}}}
    pdGroup:
      groupKey: group
      prefillLabels: {{role: prefill}}
      decodeLabels: {{role: decode}}
  workloadPort: {{port: 8000}}
  {connector}
"""


def a_split_server(name, connector="", engine="vLLM"):
    return SERVER.format(name=name, engine=engine, connector=f"kvConnector: {{type: {connector}}}" if connector else "")


def a_half(name, *args, app, role, group="a"):
    """Manifest of an engine that prefills or decodes."""
    return a_pod(name, *args, app=app).replace(f"{{app: {app}}}", f"{{app: {app}, role: {role}, group: {group}}}", 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """NIXL in two groups, Mooncake and SGLang in one each."""
    nixl = ("--kv-transfer-config", NIXL)
    mooncake = ("--kv-transfer-config", MOONCAKE)
    documents = [
        *(a_half(f"p-{g}", *nixl, app="nixl", role="prefill", group=g) for g in "ab"),
        *(a_half(f"d-{g}", *nixl, app="nixl", role="decode", group=g) for g in "ab"),
        a_half("mp", *mooncake, app="mooncake", role="prefill"),
        a_half("md", *mooncake, app="mooncake", role="decode"),
        a_half("sp", "--disaggregation-mode", "prefill", app="sglang", role="prefill"),
        a_half("sd", "--disaggregation-mode", "decode", app="sglang", role="decode"),
        a_split_server("nixl", "nixl"),
        a_split_server("mooncake", "mooncake"),
        a_split_server("sglang", engine="SGLang"),
        *(a_route(name, server=name) for name in ("nixl", "mooncake", "sglang")),
    ]
    async with running(tmp_path_factory.mktemp("pd") / "manifests", *documents) as it:
        yield it


async def transfers(world, pod):
    address = (await world.engines())[pod]
    async with world.http.get(f"http://{address}/sim/state") as answer:
        return (await answer.json())["transfers"]


async def explained(world, **body):
    request_id = world.new_id()
    answer = await world.send(headers={"x-matrixinfer-explain": "1", "x-request-id": request_id}, **body)
    assert answer.status == 200, answer.body
    return answer, await world.decision(request_id)


async def served_by(world, decision):
    pods = {address: pod for pod, address in (await world.engines()).items()}
    return pods[decision["prefill"]["endpoint"]], pods[decision["endpoints"][0]]


async def test_the_answer_comes_from_a_decode_engine_that_took_the_blocks(world):
    before = await transfers(world, "d-a"), await transfers(world, "d-b")
    answer, decision = await explained(world, model="nixl", prompt=PROMPT, max_tokens=5)
    prefill, decode = await served_by(world, decision)

    assert answer.json["usage"]["completion_tokens"] == 5
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # what the prefill engine had
    assert (prefill[:2], decode[:2]) == ("p-", "d-")
    assert prefill[-1] == decode[-1]
    assert decision["prefill"]["leg"] == "gateway"
    assert [one["result"] for one in decision["prefill"]["tries"]] == ["ok"]
    after = await transfers(world, "d-a"), await transfers(world, "d-b")
    assert sum(one["received"] for one in after) == sum(one["received"] for one in before) + 1


async def test_text_is_the_same_as_from_one_engine(world):
    split = await world.send(model="nixl", prompt=PROMPT, max_tokens=16)
    alone = await world.send(model="nixl", prompt=[PROMPT], max_tokens=16)  # a batch is not split

    assert split.json["choices"][0]["text"] == alone.json["choices"][0]["text"]


async def test_a_stream_comes_in_chunks_with_the_usage_that_was_asked_for(world):
    answer = await world.send(CHAT, model="nixl", stream=True, max_tokens=4, stream_options={"include_usage": True})
    told = [json.loads(one) for one in events(answer.body) if one != "[DONE]"]

    assert answer.status == 200
    assert told[-1]["usage"]["completion_tokens"] == 4
    assert len([one for one in told if one["choices"]]) >= 4


async def test_the_prompt_is_counted_once(world):
    await world.settled()
    before = await world.metrics()
    answer, _decision = await explained(world, model="nixl", prompt=PROMPT, max_tokens=3)
    after = await world.settled()
    name = "matrixinfer_tokens_total"

    grown = total(after, name, "model=nixl", "type=input") - total(before, name, "model=nixl", "type=input")
    assert grown == answer.json["usage"]["prompt_tokens"]
    assert total(after, "matrixinfer_inflight_requests") == 0
    assert total(after, "matrixinfer_inflight_tokens") == 0


async def test_what_was_prefilled_before_is_known_and_reported_as_cached(world):
    prompt = "A second prompt, about mountains. " * 20
    await world.send(model="nixl", prompt=prompt, max_tokens=2)
    answer, _decision = await explained(world, model="nixl", prompt=prompt, max_tokens=2)

    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


async def test_mooncake_engines_get_transfer_id_and_bootstrap_address(world):
    _answer, decision = await explained(world, model="mooncake", prompt=PROMPT, max_tokens=3)

    assert [one["result"] for one in decision["prefill"]["tries"]] == ["ok"]
    assert (await transfers(world, "md"))["received"] == 1


async def test_sglang_engines_meet_in_a_room(world):
    answer, _decision = await explained(world, model="sglang", prompt=PROMPT, max_tokens=3)

    assert answer.json["usage"]["completion_tokens"] == 3
    assert (await transfers(world, "sd"))["received"] >= 1

    async def over():
        return (await transfers(world, "sp"))["taken"] >= 1 and not await world.open_requests()

    await eventually_async(over, 20)


async def test_a_room_whose_prefill_fails_is_left_at_once(world):
    await world.fail("sp", "500", count=1)
    try:
        answer = await world.send(model="sglang", prompt="left " + PROMPT, max_tokens=3)
    finally:
        await world.heal()
    after = await world.settled()

    assert answer.status == 500  # the decode engine's word; its blocks would never have come
    assert total(after, "matrixinfer_inflight_requests") == 0
    assert await world.open_requests() == 0


async def test_a_client_cannot_name_the_prefill_engine_or_send_transfer_fields(world):
    mine = {"do_remote_prefill": True, "remote_host": "127.0.0.1", "remote_port": 1}
    answer = await world.send(
        model="nixl",
        prompt=[PROMPT],
        headers={"x-prefiller-host-port": "127.0.0.1:1"},
        kv_transfer_params={**mine, "remote_block_ids": [[1]], "remote_engine_id": "x", "remote_request_id": "y"},
    )

    assert answer.status == 200


async def test_prefill_engines_that_fail_are_replaced_or_done_without(world):
    before = await world.metrics()
    for pod in ("p-a", "p-b"):
        await world.fail(pod, "500")
    try:
        answers = await asyncio.gather(
            *(world.send(model="nixl", prompt=f"{n} {PROMPT}", max_tokens=2) for n in range(8))
        )
    finally:
        await world.heal()
    after = await world.settled()

    assert {answer.status for answer in answers} == {200}
    name = "matrixinfer_disaggregation_total"
    assert total(after, name, "prefill-failed") + total(after, name, "no-prefill") > total(
        before, name, "prefill-failed"
    )
    assert total(after, "matrixinfer_inflight_requests") == 0


async def test_a_client_that_leaves_ends_the_prefill(world):
    await world.fail("p-a", "slow", factor=200)
    await world.fail("p-b", "slow", factor=200)
    try:
        asking = asyncio.create_task(world.send(model="nixl", prompt="leave " * 4000, max_tokens=2))

        async def under_way():
            return await world.open_requests() == 1

        await eventually_async(under_way, 30)
        asking.cancel()

        async def given_up():
            return await world.open_requests() == 0

        await eventually_async(given_up, 30)
    finally:
        await world.heal()
    after = await world.settled()

    assert total(after, "matrixinfer_inflight_requests") == 0
    assert total(after, "matrixinfer_prefill_legs_total", "result=abandoned") >= 1


async def test_a_prefill_engine_that_is_killed_midway_costs_the_client_nothing(world):
    await world.fail("p-a", "slow", factor=100)
    await world.fail("p-b", "slow", factor=100)
    asking = asyncio.create_task(world.send(COMPLETIONS, model="nixl", prompt="killed " * 3000, max_tokens=4))

    async def under_way():
        return await world.open_requests() == 1

    await eventually_async(under_way, 30)
    for pod in ("p-a", "p-b"):
        world.kill(pod)
    answer = await asking

    assert answer.status == 200
    assert answer.json["usage"]["completion_tokens"] == 4
    await world.settled()


PROXIED = """\
  - name: engine
    command: [python, -m, engine.simulator]
    args: {args}
    env:
    - name: POD_IP
      valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}
"""


def a_proxied(name, connector, *args, app):
    """Manifest of a decode pod with the proxy before its engine."""
    engine = ["--model", "demo", "--host", "$(POD_IP)", "--port", "8200", *args]
    pod = (
        a_half(name, app=app, role="decode")
        .replace("engine.simulator", "engine.proxy")
        .replace("name: engine", "name: proxy")
    )
    flags = ["--host", "$(POD_IP)", "--port", "8000", "--engine", "http://$(POD_IP):8200", "--connector", connector]
    lines = [f"    args: {json.dumps(flags)}" if "    args:" in line else line for line in pod.splitlines()]
    return "\n".join(lines) + "\n" + PROXIED.format(args=json.dumps(engine))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxied(tmp_path_factory):
    """NIXL and SGLang with a proxy in the decode pods, configured as llm-d's files are."""
    nixl = ("--kv-transfer-config", NIXL)
    documents = [
        *(a_half(f"p{n}", *nixl, app="nixl", role="prefill") for n in range(2)),
        a_proxied("d0", "nixl", *nixl, app="nixl"),
        a_half("sp", "--disaggregation-mode", "prefill", app="sglang", role="prefill"),
        a_proxied("sd", "sglang", "--disaggregation-mode", "decode", app="sglang"),
        a_split_server("nixl", "nixl"),
        a_split_server("sglang", engine="SGLang"),
        *(a_route(name, server=name) for name in ("nixl", "sglang")),
    ]
    folder = tmp_path_factory.mktemp("proxied")
    (folder / "epp.yaml").write_text(EPP)
    async with running(folder / "manifests", *documents, scheduling=folder / "epp.yaml") as it:
        yield it


EPP = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: disagg-headers-handler
- type: always-disagg-pd-decider
- type: disagg-profile-handler
  parameters:
    deciderPluginName: always-disagg-pd-decider
- type: prefill-filter
- type: decode-filter
- type: prefix-cache-scorer
- type: queue-scorer
- type: active-request-scorer
- type: max-score-picker
schedulingProfiles:
- name: prefill
  plugins:
  - pluginRef: prefill-filter
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - {pluginRef: queue-scorer, weight: 2}
  - pluginRef: max-score-picker
- name: decode
  plugins:
  - pluginRef: decode-filter
  - {pluginRef: active-request-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
  - pluginRef: max-score-picker
"""


@pytest.mark.parametrize("model", ["nixl", "sglang"])
async def test_the_decode_pods_proxy_performs_the_leg(proxied, model):
    answer, decision = await explained(proxied, model=model, prompt=PROMPT, max_tokens=5)
    stream = await proxied.send(model=model, stream=True, max_tokens=5, prompt=PROMPT + "more")
    prefill, decode = await served_by(proxied, decision)

    assert decision["prefill"]["leg"] == "proxy"
    assert (prefill[:1], decode[-2:][:1]) == ("p" if model == "nixl" else "s", "d" if model == "nixl" else "s")
    assert answer.json["usage"]["completion_tokens"] == 5
    assert events(stream.body)[-1] == "[DONE]"
    address = (await proxied.engines())[decode]
    async with proxied.http.get(f"http://{address}/proxy/state") as state:
        assert (await state.json())["prefill_legs"] == {"ok": 2}
    settled = await proxied.settled()
    assert total(settled, "matrixinfer_inflight_requests") == 0


async def test_the_proxy_goes_on_when_a_prefill_engine_dies(proxied):
    await proxied.fail("p0", "reset")
    await proxied.fail("p1", "500")
    try:
        answers = [await proxied.send(model="nixl", prompt=f"{n} {PROMPT}", max_tokens=3) for n in range(4)]
    finally:
        for pod in ("p0", "p1"):
            address = (await proxied.engines())[pod]
            async with proxied.http.delete(f"http://{address}/sim/fail"):
                pass

    assert {answer.status for answer in answers} == {200}
