"""KV transfer between simulated engines, held to the recording of a real pair."""

import asyncio
import json
import threading
import time

import pytest

from engine.simulator import kvcache, transfer
from tests.simulator.running import Simulator

NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
MOONCAKE = {"kv_connector": "MooncakeConnector", "kv_role": "kv_both"}
PROMPT = "The quick brown fox jumps over the lazy dog. " * 40
ASKS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
# What vLLM 0.32 answers to a prefill leg, by key: its type.
RECORDED = {
    "do_remote_prefill": bool,
    "do_remote_decode": bool,
    "remote_block_ids": list,
    "remote_engine_id": str,
    "remote_request_id": str,
    "remote_host": str,
    "remote_port": int,
    "tp_size": int,
    "dcp_size": int,
    "pp_size": int,
    "remote_num_tokens": int,
    "remote_blocks_expiry_time": type(None),
    "transfer_mode": str,
    "remote_prefill_cached_tokens": int,
}


def an_engine(config=NIXL, *flags, **more):
    return Simulator("--kv-transfer-config", json.dumps({**config, **more}), "--side-channel-port", "0", *flags)


def ask(engine, **body):
    return engine.call("/v1/completions", {"model": "demo", "prompt": PROMPT, "max_tokens": 8, **body})


def state(engine):
    return engine.control("/sim/state")


@pytest.fixture(scope="module")
def pair():
    with an_engine() as prefill, an_engine() as decode:
        yield prefill, decode


def prefilled(engine, **body):
    return ask(engine, max_tokens=1, kv_transfer_params=ASKS, **body).json()


def test_a_prefill_leg_says_where_its_blocks_are_as_vllm_does(pair):
    answer = prefilled(pair[0])
    said = answer["kv_transfer_params"]

    assert {key: type(value) for key, value in said.items()} == RECORDED
    assert (said["do_remote_prefill"], said["do_remote_decode"], said["transfer_mode"]) == (True, False, "pull")
    assert said["remote_num_tokens"] == answer["usage"]["prompt_tokens"]
    assert len(said["remote_block_ids"][0]) == -(-said["remote_num_tokens"] // 16)


def test_a_decode_leg_takes_the_blocks_and_reports_what_the_prefill_had_cached(pair):
    prefill, decode = pair
    prompt = "Another. " + PROMPT
    first = prefilled(prefill, prompt=prompt)
    steps = state(decode)["transfers"]["received"]
    answer = ask(decode, prompt=prompt, kv_transfer_params=first["kv_transfer_params"]).json()
    again = prefilled(prefill, prompt=prompt)

    assert state(decode)["transfers"]["received"] == steps + 1
    assert answer["kv_transfer_params"] is None
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["kv_transfer_params"]["remote_prefill_cached_tokens"] > 0
    assert answer["choices"][0]["text"] == ask(prefill, prompt=prompt).json()["choices"][0]["text"]


def test_blocks_are_kept_until_they_are_taken(pair):
    prefill, decode = pair
    free = state(prefill)["free_blocks"]
    first = prefilled(prefill, prompt="Kept. " + PROMPT)
    kept = state(prefill)["free_blocks"]
    ask(decode, prompt="Kept. " + PROMPT, kv_transfer_params=first["kv_transfer_params"])

    assert kept < free
    assert state(prefill)["free_blocks"] == free


def test_blocks_whose_lease_is_over_fail_the_request():
    brief = {"kv_connector_extra_config": {"kv_lease_duration": 0}}
    with an_engine(**brief) as prefill, an_engine() as decode, an_engine(kv_load_failure_policy="recompute") as other:
        params = prefilled(prefill)["kv_transfer_params"]
        while state(prefill)["transfers"]["expired"] == 0:
            time.sleep(0.01)

        assert ask(decode, kv_transfer_params=params).status == 500
        assert ask(other, kv_transfer_params=params).json()["usage"]["completion_tokens"] == 8
        assert state(prefill)["free_blocks"] == state(prefill)["blocks"]


def test_an_engine_that_is_gone_fails_the_request_at_once(pair):
    gone = {"remote_block_ids": [[1]], "remote_engine_id": "x", "remote_request_id": "y", "remote_host": "127.0.0.1"}
    answer = ask(pair[1], kv_transfer_params={"do_remote_prefill": True, "remote_port": 9, **gone})

    assert answer.status == 500


def test_params_that_lack_something_mean_no_transfer(pair):
    answer = ask(
        pair[1], prompt="Lack. " + PROMPT, kv_transfer_params={"do_remote_prefill": True, "remote_block_ids": [[1]]}
    )

    assert answer.json()["usage"]["completion_tokens"] == 8


def test_params_of_the_wrong_type_are_refused(pair):
    assert ask(pair[0], kv_transfer_params="yes").status == 400


def test_an_engine_without_a_connector_says_nothing_of_transfers():
    with Simulator() as engine:
        assert prefilled(engine)["kv_transfer_params"] is None


def test_mooncake_waits_for_a_prefill_that_is_yet_to_come():
    with an_engine(MOONCAKE) as prefill, an_engine(MOONCAKE) as decode:
        port = state(prefill)["transfers"]["port"]
        from tests.simulator.running import call

        (entry,) = call(f"http://127.0.0.1:{port}/query").json().values()
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "transfer_id": "t1",
            "remote_bootstrap_addr": f"http://127.0.0.1:{port}",
            "remote_engine_id": entry["engine_id"],
        }
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(ask(decode, kv_transfer_params=params)))
        waiting.start()
        ask(prefill, max_tokens=1, kv_transfer_params={"do_remote_decode": True, "transfer_id": "t1"})
        waiting.join(20)
        other = ask(decode, kv_transfer_params={**params, "remote_engine_id": "another"})

        assert answers[0].status == 200
        assert state(decode)["transfers"]["received"] == 1
        assert other.status == 500


def test_sglangs_decode_wants_a_room_and_can_be_told_to_give_up():
    with (
        Simulator("--disaggregation-mode", "prefill", "--side-channel-port", "0") as prefill,
        Simulator("--disaggregation-mode", "decode") as decode,
    ):
        port = state(prefill)["transfers"]["port"]
        room = {"bootstrap_host": "127.0.0.1", "bootstrap_port": port, "bootstrap_room": 7, "rid": "r7"}
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(ask(decode, **room)))
        waiting.start()
        while waiting.is_alive():
            decode.call("/abort_request", {"rid": "r7"})
            waiting.join(0.05)

        assert ask(decode).status == 400
        assert answers[0].status == 500


async def test_a_request_that_is_aborted_before_it_has_begun_to_wait_ends():
    transfers = transfer.Transfers(
        transfer.for_sglang("decode", port=0, tokens_per_s=1), kvcache.Blocks(8, 4), "127.0.0.1"
    )
    ended = []
    transfers.receive(transfer.Want(source="http://127.0.0.1:1/blocks", rid="r7"), ended.append)

    assert transfers.abort("r7")
    assert not transfers.abort("r8")
    await asyncio.sleep(0)

    assert ended == [None]
    assert not transfers.abort("r7")


@pytest.mark.parametrize(
    "config", ["{", '{"kv_connector":"X","kv_role":"kv_both"}', '{"kv_connector":"NixlConnector"}']
)
def test_a_configuration_that_vllm_would_refuse_ends_the_start(config):
    import subprocess
    import sys

    ran = subprocess.run(
        [sys.executable, "-m", "engine.simulator", "--model", "m", "--port", "0", "--kv-transfer-config", config],
        capture_output=True,
        timeout=30,
        check=False,
    )

    assert ran.returncode == 1
    assert b"kv-transfer-config" in ran.stderr
