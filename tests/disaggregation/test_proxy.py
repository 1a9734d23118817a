"""The decode pod's proxy, between real processes: simulated engines on both sides."""

import concurrent.futures
import json
import re
import socket
import subprocess
import sys
import time

import pytest

from tests.simulator.running import Simulator, call

NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
PROMPT = "The sea is wide and the wind is strong. " * 20
CLOSED = "127.0.0.1:9"  # nobody listens there


class Proxy:
    """A proxy process on a free port."""

    def __init__(self, engine, *flags, connector="nixl"):
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "engine.proxy", "--host", "127.0.0.1", "--port", "0", "--engine", engine.url),
                *("--connector", connector, *flags),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, f"the proxy did not start: {line!r}"
        self.url = found.group()

    def ask(self, *prefillers, path="/v1/completions", headers=None, **body):
        given = {"model": "demo", "prompt": PROMPT, "max_tokens": 4, **body}
        named = {"x-prefiller-host-port": ",".join(prefillers)} if prefillers else {}
        return call(self.url + path, given, headers={**named, **(headers or {})})

    def counts(self):
        return call(self.url + "/proxy/state").json()["prefill_legs"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def an_engine(config=NIXL, *flags, **more):
    return Simulator("--kv-transfer-config", json.dumps(config | more), "--side-channel-port", "0", *flags)


def address(engine):
    return engine.url.removeprefix("http://")


def transfers(engine):
    return engine.control("/sim/state")["transfers"]


def requests(engine):
    return engine.control("/sim/requests")


@pytest.fixture(scope="module")
def pair():
    with an_engine() as prefill, an_engine(kv_load_failure_policy="fail") as decode, Proxy(decode) as proxy:
        yield prefill, decode, proxy


def eventually(holds, within_s=20):
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_prefill_engine_computes_and_the_decode_engine_answers(pair):
    prefill, decode, proxy = pair
    before = transfers(decode)["received"]
    answer = proxy.ask(address(prefill))

    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert transfers(decode)["received"] == before + 1
    assert requests(prefill)["requests"][-1]["generated_tokens"] == 1


def test_without_the_header_the_engine_answers_alone(pair):
    prefill, _decode, proxy = pair
    before = requests(prefill)["totals"]["requests"]

    assert proxy.ask().status == 200
    assert proxy.ask(" , ").status == 200
    assert requests(prefill)["totals"]["requests"] == before


def test_a_stream_comes_through_byte_by_byte_with_its_end(pair):
    prefill, _decode, proxy = pair
    answer = proxy.ask(address(prefill), stream=True, stream_options={"include_usage": True}, max_tokens=6)
    told = answer.events()

    assert told[-1][1] == "[DONE]"
    assert told[-2][1]["usage"]["completion_tokens"] == 6
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_text_is_that_of_one_engine(pair):
    prefill, _decode, proxy = pair
    given = {"model": "demo", "prompt": PROMPT + "again", "max_tokens": 12}

    split = proxy.ask(address(prefill), **given).json()
    assert split["choices"][0]["text"] == prefill.call("/v1/completions", given).json()["choices"][0]["text"]


def test_the_next_prefill_engine_is_asked_when_one_is_gone(pair):
    prefill, _decode, proxy = pair
    before = requests(prefill)["totals"]["requests"]

    assert proxy.ask(CLOSED, address(prefill)).status == 200
    assert requests(prefill)["totals"]["requests"] == before + 1


@pytest.mark.parametrize("mode", ["500", "503", "garbage", "reset"])
def test_a_prefill_engine_that_fails_is_done_without(pair, mode):
    prefill, _decode, proxy = pair
    prefill.control("/sim/fail", {"mode": mode, "count": 3})
    try:
        answer = proxy.ask(address(prefill))
    finally:
        prefill.control("/sim/fail", method="DELETE")

    assert answer.status == 200
    assert answer.json()["usage"]["completion_tokens"] == 4


def test_a_prefill_that_takes_too_long_is_given_up():
    with an_engine() as prefill, an_engine() as decode, Proxy(decode, "--prefill-timeout", "0.5") as proxy:
        prefill.control("/sim/fail", {"mode": "hang"})

        assert proxy.ask(address(prefill)).status == 200
        assert proxy.counts() == {"timeout": 1}


def test_blocks_that_are_gone_when_they_are_asked_for_are_computed_anew():
    """The prefill engine's lease is over at once; its decode engine fails such requests."""
    brief = {"kv_connector_extra_config": {"kv_lease_duration": 0}}
    with (
        an_engine(**brief) as prefill,
        an_engine(NIXL, "--transfer-tokens-per-second", "1000", kv_load_failure_policy="fail") as decode,
        Proxy(decode) as proxy,
    ):
        answers = [proxy.ask(address(prefill), prompt=f"{n} {PROMPT}") for n in range(5)]

        assert {answer.status for answer in answers} == {200}


def test_what_is_wrong_with_a_request_is_said_by_the_engine(pair):
    prefill, _decode, proxy = pair
    answer = proxy.ask(address(prefill), temperature=-1)

    assert answer.status == 400
    assert "temperature" in answer.json()["error"]["message"]


def test_other_paths_go_to_the_engine(pair):
    _prefill, _decode, proxy = pair

    assert call(proxy.url + "/health").status == 200
    assert call(proxy.url + "/v1/models").json()["data"][0]["id"] == "demo"
    assert "vllm:num_requests_running" in call(proxy.url + "/metrics").text
    assert proxy.ask(path="/tokenize").json()["count"] > 0
    assert call(proxy.url + "/nowhere").status == 404


def test_a_prefill_engine_outside_the_networks_is_not_asked(pair):
    prefill, decode, _proxy = pair
    with Proxy(decode, "--prefillers", "10.0.0.0/8") as proxy:
        assert proxy.ask(address(prefill)).status == 403


def test_a_client_that_leaves_ends_both(pair):
    prefill, decode, proxy = pair
    prefill.control("/sim/fail", {"mode": "slow", "factor": 10})
    try:
        host, port = proxy.url.removeprefix("http://").split(":")
        body = json.dumps({"model": "demo", "prompt": "leave " * 5000, "max_tokens": 4}).encode()
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"x-prefiller-host-port: %b\r\ncontent-length: %d\r\n\r\n%b"
                % (address(prefill).encode(), len(body), body)
            )
            eventually(lambda: prefill.control("/sim/state")["running"] == 1)
        eventually(lambda: prefill.control("/sim/state")["running"] == 0)
    finally:
        prefill.control("/sim/fail", method="DELETE")

    assert decode.control("/sim/state")["running"] == 0


def test_an_answer_that_breaks_off_breaks_off_here(pair):
    prefill, decode, proxy = pair
    decode.control("/sim/fail", {"mode": "die-mid-stream", "chunks": 2, "count": 1})

    with pytest.raises(Exception, match=r"(?i)incomplete|reset|aborted|ended"):
        proxy.ask(address(prefill), stream=True, max_tokens=20)


def test_mooncakes_contract_holds():
    config = {"kv_connector": "MooncakeConnector", "kv_role": "kv_both"}
    with an_engine(config) as prefill, an_engine(config) as decode:
        port = transfers(prefill)["port"]
        with Proxy(decode, "--bootstrap-port", str(port), connector="mooncake") as proxy:
            assert proxy.ask(address(prefill)).status == 200
            assert transfers(decode)["received"] == 1
            assert proxy.counts() == {"ok": 1}


@pytest.fixture(scope="module")
def rooms():
    with (
        Simulator("--disaggregation-mode", "prefill", "--side-channel-port", "0") as prefill,
        Simulator("--disaggregation-mode", "decode") as decode,
    ):
        port = str(transfers(prefill)["port"])
        with Proxy(decode, "--bootstrap-port", port, "--prefill-timeout", "5", connector="sglang") as proxy:
            yield prefill, decode, proxy


def test_sglangs_engines_meet_in_a_room(rooms):
    prefill, _decode, proxy = rooms
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: proxy.ask(address(prefill), prompt=f"{n} {PROMPT}"), range(8)))

    assert {answer.status for answer in answers} == {200}
    assert transfers(prefill)["taken"] == 8


def test_a_failed_prefill_leaves_no_decode_waiting(rooms):
    prefill, decode, proxy = rooms
    prefill.control("/sim/fail", {"mode": "500", "count": 2})
    answer = proxy.ask(address(prefill), CLOSED)
    eventually(lambda: requests(decode)["totals"]["open"] == 0)

    assert answer.status == 503
    assert answer.json()["error"]["type"] == "service_unavailable"
