"""Prefill and decode on real vLLM engines with NIXL, through Envoy; `make test-engines` runs it.

The local node runs the engines as pods; VLLM_PYTHON is the Python that has vLLM and nixl, VLLM_CACHE the folder that holds
the tiny model.
"""

from __future__ import annotations

import asyncio
import json
import os

import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, a_route, events, running, samples, total
from tests.local.waiting import eventually_async

pytestmark = [
    pytest.mark.engines,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="needs VLLM_PYTHON and VLLM_CACHE: make test-engines"),
]

START_S = 400
NIXL = {
    "kv_connector": "NixlConnector",
    "kv_role": "kv_both",
    "kv_buffer_device": "cpu",
    "kv_load_failure_policy": "recompute",
}
ENGINE = """\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  labels: {{app: tiny, role: {name}, group: a}}
spec:
  terminationGracePeriodSeconds: 10
  containers:
  - name: engine
    command: [{python}, -m, vllm.entrypoints.openai.api_server]
    args: {args}
    env:
    - name: POD_IP
      valueFrom: {{fieldRef: {{fieldPath: status.podIP}}}}
    - {{name: VLLM_NIXL_SIDE_CHANNEL_HOST, value: $(POD_IP)}}
    - {{name: VLLM_NIXL_SIDE_CHANNEL_PORT, value: "5600"}}
    - {{name: UCX_TLS, value: "tcp,self,sm"}}
    - {{name: VLLM_CPU_KVCACHE_SPACE, value: "1"}}
    - {{name: VLLM_CPU_OMP_THREADS_BIND, value: nobind}}
    - {{name: OMP_NUM_THREADS, value: "1"}}
    - {{name: HF_HUB_OFFLINE, value: "1"}}
    ports:
    - {{name: http, containerPort: 8000}}
    readinessProbe:
      httpGet: {{path: /health, port: http}}
      periodSeconds: 1
"""
SERVER = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: ModelServer
metadata: {name: tiny}
spec:
  model: tiny
  inferenceEngine: vLLM
  workloadSelector:
    matchLabels: {app: tiny}
    pdGroup:
      groupKey: group
      prefillLabels: {role: prefill}
      decodeLabels: {role: decode}
  workloadPort: {port: 8000}
  kvConnector: {type: nixl}
"""
PROMPT = "The quick brown fox jumps over the lazy dog. " * 40


def an_engine(name):
    flags = [
        *("--model", f"{os.environ['VLLM_CACHE']}/tiny", "--served-model-name", "tiny"),
        *("--host", "$(POD_IP)", "--port", "8000", "--max-model-len", "4096", "--block-size", "32"),
        *("--enforce-eager", "--enable-prompt-tokens-details", "--kv-transfer-config", json.dumps(NIXL)),
    ]
    return ENGINE.format(name=name, python=os.environ["VLLM_PYTHON"], args=json.dumps(flags))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """One engine that prefills, one that decodes."""
    documents = [an_engine("prefill"), an_engine("decode"), SERVER, a_route("tiny", server="tiny")]
    async with running(tmp_path_factory.mktemp("pd") / "manifests", *documents, ready_s=START_S) as it:
        await healthy(it, "prefill", "decode")
        yield it


async def healthy(world, *pods):
    async def all_are():
        page = await world.metrics()
        return total(page, "matrixinfer_endpoint_ready") == len(pods)

    await eventually_async(all_are, START_S)


async def taken(world):
    """Tokens that the decode engine got from another one."""
    address = (await world.engines())["decode"]
    async with world.http.get(f"http://{address}/metrics") as answer:
        return total(samples(await answer.text()), "vllm:external_prefix_cache_hits_total")


async def asked(world, path=COMPLETIONS, **body):
    request_id = world.new_id()
    answer = await world.send(path, headers={"x-request-id": request_id}, model="tiny", temperature=0, **body)
    assert answer.status == 200, answer.body
    return answer, (await world.decision(request_id))["prefill"]


async def directly(world, pod, **body):
    """The same from one engine, past the gateway."""
    address = (await world.engines())[pod]
    async with world.http.post(
        f"http://{address}{COMPLETIONS}", json={"model": "tiny", "temperature": 0, **body}
    ) as answer:
        return await answer.json()


async def test_two_engines_give_the_text_of_one(world):
    before = await taken(world)
    split, leg = await asked(world, prompt=PROMPT, max_tokens=16)
    moved = await taken(world) - before
    alone = await directly(world, "prefill", prompt=PROMPT, max_tokens=16)

    assert leg["leg"] == "gateway"
    assert [one["result"] for one in leg["tries"]] == ["ok"]
    assert moved >= 800
    assert split.json["choices"][0]["text"] == alone["choices"][0]["text"]
    assert split.json["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    assert split.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_what_the_prefill_engine_had_cached_is_reported(world):
    prompt = "A text about other things. " * 30
    await asked(world, prompt=prompt, max_tokens=4)
    again, _leg = await asked(world, prompt=prompt, max_tokens=4)

    assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] >= 96


async def test_a_chat_is_streamed_from_the_decode_engine(world):
    messages = [{"role": "user", "content": "Tell a story of ships and storms. " * 20}]
    answer, leg = await asked(
        world, CHAT, messages=messages, prompt=None, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    told = [json.loads(one) for one in events(answer.body) if one != "[DONE]"]

    assert leg["leg"] == "gateway"
    assert told[-1]["usage"]["completion_tokens"] == 8


async def test_many_at_once_give_the_texts_of_one_engine(world):
    prompts = [f"Number {number}. " + PROMPT[: 200 + 150 * number] for number in range(6)]
    split = await asyncio.gather(*(asked(world, prompt=prompt, max_tokens=8) for prompt in prompts))
    alone = [await directly(world, "prefill", prompt=prompt, max_tokens=8) for prompt in prompts]

    for (answer, _leg), other in zip(split, alone, strict=True):
        assert answer.json["choices"][0]["text"] == other["choices"][0]["text"]
    settled = await world.settled()
    assert total(settled, "matrixinfer_inflight_requests") == 0


async def test_a_prefill_engine_that_is_killed_midway_costs_the_client_nothing(world):
    prompts = [f"Killed {number}. " + "many words to compute here " * 500 for number in range(4)]
    asking = [asyncio.create_task(asked(world, prompt=prompt, max_tokens=8)) for prompt in prompts]

    async def under_way():
        return total(await world.metrics(), "matrixinfer_calls_open") >= 1

    await eventually_async(under_way, 30)
    world.kill("prefill")
    answers = await asyncio.gather(*asking)

    assert {answer.status for answer, _leg in answers} == {200}
    assert all(answer.json["usage"]["completion_tokens"] == 8 for answer, _leg in answers)
    assert any(leg["reason"] == "prefill-failed" for _answer, leg in answers)
    for (answer, _leg), prompt in zip(answers, prompts, strict=True):
        alone = await directly(world, "decode", prompt=prompt, max_tokens=8)
        assert answer.json["choices"][0]["text"] == alone["choices"][0]["text"]


async def test_blocks_of_an_engine_that_died_are_computed_anew(world):
    """The prefill engine answers and is killed before the decode engine has asked for the blocks."""
    await healthy(world, "prefill", "decode")
    address = (await world.engines())["prefill"]
    asks = {"do_remote_decode": True, "do_remote_prefill": False}
    prompt = "Died. " + PROMPT
    one = await directly(world, "prefill", prompt=prompt, max_tokens=1, kv_transfer_params=asks)
    world.kill("prefill")

    async def gone():
        try:
            async with world.http.get(f"http://{address}/health"):
                return False
        except OSError:
            return True

    await eventually_async(gone, 30)
    answer = await directly(world, "decode", prompt=prompt, max_tokens=8, kv_transfer_params=one["kv_transfer_params"])

    assert answer["usage"]["completion_tokens"] == 8
