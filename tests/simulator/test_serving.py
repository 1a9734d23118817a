"""A simulator process, asked as clients, scrapers and tests ask it."""

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulator.running import Simulator, call


@pytest.fixture(scope="module")
def fast() -> Iterator[Simulator]:
    with Simulator("--speed", "0", "--lora", "helper", "--max-model-len", "2000") as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def _no_failures_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "fast" in request.fixturenames:
        request.getfixturevalue("fast").control("/sim/fail", method="DELETE")


def chat(content: str = "hello", **kwargs: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **kwargs}


def post(path: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (path.encode(), len(data)) + data


def until(holds: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not come to hold")


def metric(simulator: Simulator, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", simulator.call("/metrics").text, re.MULTILINE)
    assert found, f"no series {series}"
    return float(found[1])


def test_a_conversation_finds_all_but_its_last_block_in_the_cache(fast: Simulator):
    messages: list[dict[str, str]] = []
    total = 0
    for turn in range(5):
        messages.append({"role": "user", "content": f"Question {turn}: what would you say about all of this? " * 4})
        answer = fast.call("/v1/chat/completions", {"model": "demo", "messages": messages, "max_tokens": 40}).json()
        usage = answer["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        if turn:
            assert total - 16 <= cached + 1 <= total
        total = usage["total_tokens"]
        messages.append(answer["choices"][0]["message"])


async def test_the_openai_client_is_content(fast: Simulator):
    client = openai.AsyncOpenAI(base_url=f"{fast.url}/v1", api_key="none")
    whole = await client.chat.completions.create(**chat(max_tokens=9))
    stream = await client.chat.completions.create(**chat(max_tokens=9), stream=True)
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    completion = await client.completions.create(model="demo", prompt=["a", "b"], max_tokens=3, n=2)
    embedding = await client.embeddings.create(model="demo", input=["a", "b"], dimensions=8)
    response = await client.responses.create(model="demo", input="hello", max_output_tokens=4)
    models = [model.id async for model in client.models.list()]

    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "length"
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert completion.usage.completion_tokens == 12
    assert [len(item.embedding) for item in embedding.data] == [8, 8]
    assert len(response.output_text.split()) == 4
    assert models == ["demo", "helper"]
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "x"}])


async def test_the_openai_client_reads_a_responses_stream(fast: Simulator):
    client = openai.AsyncOpenAI(base_url=f"{fast.url}/v1", api_key="none")
    stream = await client.responses.create(model="demo", input="hello", max_output_tokens=4, stream=True)
    events = [event async for event in stream]

    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text


async def test_the_anthropic_client_is_content(fast: Simulator):
    client = anthropic.AsyncAnthropic(base_url=fast.url, api_key="none")
    asked = {"model": "demo", "messages": [{"role": "user", "content": "hello"}]}
    whole = await client.messages.create(**asked, max_tokens=5)
    async with client.messages.stream(**asked, max_tokens=5, system="Be brief.") as stream:
        words = [text async for text in stream.text_stream]
        final = await stream.get_final_message()
    count = await client.messages.count_tokens(**asked)

    assert whole.stop_reason == "max_tokens"
    assert whole.usage.output_tokens == 5
    assert "".join(words) == final.content[0].text
    assert count.input_tokens == whole.usage.input_tokens


def test_an_answer_without_a_limit_ends_by_itself(fast: Simulator):
    choice = fast.call("/v1/chat/completions", chat()).json()["choices"][0]

    assert choice["finish_reason"] == "stop"
    assert 32 <= len(choice["message"]["content"].split()) <= 96


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(fast: Simulator):
    whole = fast.call("/v1/completions", {"prompt": "x", "max_tokens": 30}).json()["choices"][0]["text"]
    word = whole.split()[7]
    body = {"prompt": "x", "max_tokens": 30, "stop": [f" {word}"]}
    choice = fast.call("/v1/completions", body).json()["choices"][0]
    events = fast.call("/v1/completions", {**body, "stream": True}).events()
    streamed = "".join(data["choices"][0]["text"] for _, data in events if data != "[DONE]")

    assert choice["text"] == streamed == whole[: whole.index(f" {word}")]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", f" {word}")


def test_tokenize_and_detokenize_are_each_others_inverse(fast: Simulator):
    tokens = fast.call("/tokenize", {"prompt": "Grüße, 日本! 42"}).json()

    assert tokens["count"] == len(tokens["tokens"])
    assert fast.call("/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": "Grüße, 日本! 42"}


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "nothing",
        '{"model": "demo", "messages": "x"}',
        '{"model": "demo", "messages": []}',
        '{"model": "demo", "messages": [{"content": "x"}]}',
        '{"model": "demo", "messages": [{"role": "user", "content": 5}]}',
        '{"model": 5, "messages": [{"role": "user", "content": "x"}]}',
        '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 0}',
        '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1e400}',
        '{"messages": [{"role": "user", "content": "x"}], "n": "many"}',
        '{"messages": [{"role": "user", "content": "x"}], "stream_options": {"include_usage": true}}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
    ],
)
def test_bad_bodies_are_400_with_an_error_object(fast: Simulator, body: str):
    answer = fast.call("/v1/chat/completions", body)

    assert answer.status == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("model", "messages", "prompt", "input", "max_tokens", "n", "stop", "stream", "stream_options", "tools",
          "stop_token_ids", "cache_salt", "system", "text_1", "query", "documents", "tokens", "dimensions")  # fmt: skip
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings", "/v1/rerank",
         "/v1/score", "/tokenize", "/detokenize", "/v1/load_lora_adapter")  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6))
def test_any_json_gets_an_answer_below_500(fast: Simulator, path: str, body: dict[str, Any]):
    assert fast.call(path, json.dumps(body)).status < 500


@pytest.mark.parametrize(
    "odd", [[None], [-2], ["text"], 5, {"text": "x"}, [{"type": "tool_result", "content": [None]}]]
)
@pytest.mark.parametrize("place", ["system", "content"])
def test_anthropic_content_that_is_no_block_is_refused(fast: Simulator, place: str, odd: Any):
    body = {"model": "demo", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]}
    given = body | ({"system": odd} if place == "system" else {"messages": [{"role": "user", "content": odd}]})

    assert fast.call("/v1/messages", json.dumps(given)).status == 400


def test_expect_continue_and_chunked_bodies_are_served(fast: Simulator):
    with socket.create_connection(("127.0.0.1", fast.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b'f\r\n{"prompt": "x"}\r\n0\r\n\r\n')
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


def test_pipelined_requests_are_answered_in_order(fast: Simulator):
    with socket.create_connection(("127.0.0.1", fast.port)) as connection:
        connection.sendall(
            post("/v1/completions", {"prompt": "x", "max_tokens": 2})
            + b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.index(b"text_completion") < answer.index(b'{"version":"0.32.0"}')


def test_idle_connections_are_closed_and_busy_ones_are_not():
    with (
        Simulator("--keep-alive", "0.2", "--itl-ms-base", "100") as simulator,
        socket.create_connection(("127.0.0.1", simulator.port)) as idle,
        socket.create_connection(("127.0.0.1", simulator.port)) as busy,
    ):
        busy.sendall(post("/v1/completions", {"prompt": "x", "max_tokens": 20, "stream": True}))

        assert idle.recv(1) == b""
        raw = b""
        while not raw.endswith(b"\r\n0\r\n\r\n"):
            raw += busy.recv(65536)
        assert raw.count(b"data: ") == 21


def test_what_is_no_http_is_refused_and_closed(fast: Simulator):
    with socket.create_connection(("127.0.0.1", fast.port)) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("status", [500, 503])
def test_failing_with_a_status_happens_as_often_as_asked(fast: Simulator, status: int):
    fast.control("/sim/fail", {"mode": str(status), "count": 2})

    assert [fast.call("/v1/completions", {"prompt": "x"}).status for _ in range(3)] == [status, status, 200]


def test_dying_mid_stream_resets_after_the_chunks(fast: Simulator):
    fast.control("/sim/fail", {"mode": "die-mid-stream", "chunks": 3, "count": 1})
    raw = b""
    with socket.create_connection(("127.0.0.1", fast.port)) as connection:
        connection.sendall(post("/v1/completions", {"prompt": "x", "stream": True}))
        try:
            while piece := connection.recv(65536):
                raw += piece
        except ConnectionResetError:
            raw += b"<reset>"

    assert raw.endswith(b"<reset>")
    assert raw.count(b"data: ") <= 3
    assert until(lambda: fast.control("/sim/requests")["requests"][-1]["end"]) == "failed:die-mid-stream"
    assert fast.control("/sim/state")["running"] == 0


def test_refusing_closes_the_port_until_it_is_cleared(fast: Simulator):
    fast.control("/sim/fail", {"mode": "refuse"})

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", fast.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    until(refused)
    fast.control("/sim/fail", method="DELETE")
    until(lambda: not refused())
    assert fast.call("/health").status == 200


def test_unhealthy_is_said_while_requests_are_served(fast: Simulator):
    fast.control("/sim/fail", {"mode": "unhealthy"})

    assert fast.call("/health").status == 503
    assert fast.call("/v1/completions", {"prompt": "x"}).status == 200


def test_a_wrong_failure_is_refused_with_the_reason(fast: Simulator):
    answer = call(f"{fast.admin}/sim/fail", {"mode": "melt"})

    assert answer.status == 400
    assert "is not one of" in answer.json()["error"]


def test_a_client_that_leaves_frees_its_place_at_once():
    with Simulator("--itl-ms-base", "50") as simulator:
        with socket.create_connection(("127.0.0.1", simulator.port)) as connection:
            connection.sendall(post("/v1/chat/completions", chat(max_tokens=100_000, stream=True)))
            raw = b""
            while b"chat.completion.chunk" not in raw:
                raw += connection.recv(65536)
            assert simulator.control("/sim/state")["running"] == 1

        state = until(lambda: (s := simulator.control("/sim/state"))["running"] == 0 and s)
        entry = simulator.control("/sim/requests")["requests"][-1]

        success = 'vllm:request_success_total{engine="0",finished_reason="abort",model_name="demo"}'
        requests = 'http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}'
        assert (metric(simulator, success), metric(simulator, requests)) == (0, 1)
        assert state["free_blocks"] == state["blocks"]
        assert entry["end"] == "abort"
        assert entry["generated_tokens"] >= 1
        assert (
            metric(simulator, 'vllm:generation_tokens_total{engine="0",model_name="demo"}') == entry["generated_tokens"]
        )


async def test_the_account_equals_the_engines_counters_and_the_clients_usage(fast: Simulator):
    def totals() -> tuple[float, float, float]:
        names = ("prompt_tokens", "prompt_tokens_cached", "generation_tokens")
        return tuple(metric(fast, f'vllm:{name}_total{{engine="0",model_name="demo"}}') for name in names)

    before, number = totals(), fast.control("/sim/requests")["totals"]["requests"]
    client = openai.AsyncOpenAI(base_url=f"{fast.url}/v1", api_key="none")
    asked = [client.chat.completions.create(**chat("hello " * (i % 40 + 1), max_tokens=i % 7 + 1)) for i in range(120)]
    usages = [answer.usage for answer in await asyncio.gather(*asked)]
    entries = fast.control(f"/sim/requests?since={number + 1}")["requests"]

    grown = tuple(after - earlier for after, earlier in zip(totals(), before, strict=True))
    assert len(entries) == 120
    assert grown == tuple(
        sum(entry[name] for entry in entries) for name in ("prompt_tokens", "cached_tokens", "generated_tokens")
    )
    assert grown == (
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.prompt_tokens_details.cached_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
    )


def test_sigterm_lets_answers_finish_and_exits_0():
    with Simulator("--itl-ms-base", "20") as simulator:
        with socket.create_connection(("127.0.0.1", simulator.port)) as connection:
            connection.sendall(
                post("/v1/completions", {"prompt": "x", "max_tokens": 30}).replace(b"host: x", b"connection: close")
            )
            until(lambda: simulator.control("/sim/state")["running"])
            simulator.process.terminate()
            answer = b"".join(iter(lambda: connection.recv(65536), b""))

        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"}")
        assert simulator.process.wait(10) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "m", "--kv-blocks", "1"], "--kv-blocks must be at least 2"),
        (
            ["--model", "m", "--kv-blocks", "10", "--max-model-len", "9999"],
            "--max-model-len 9999 is over the 144 tokens",
        ),
        (["--model", "m", "--replay-endpoint", "tcp://*:1"], "--replay-endpoint needs --kv-events-endpoint"),
        (["--model", "m", "--fail", "melt"], "mode 'melt' is not one of"),
        (["--model", "m", "--host", "203.0.113.1"], "cannot start"),
    ],
)
def test_a_start_that_cannot_be_says_why(flags: list[str], message: str):
    ended = subprocess.run(
        [sys.executable, "-m", "engine.simulator", "--port", "0", *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert ended.returncode != 0
    assert message in ended.stderr


def test_what_became_of_requests_is_in_a_file_that_outlives_a_killed_engine(tmp_path: Path) -> None:
    file = tmp_path / "account.jsonl"
    with Simulator("--speed", "0", "--account", str(file)) as simulator:
        answered = simulator.call("/v1/chat/completions", chat(max_tokens=3), headers={"x-request-id": "one"}).json()
        until(file.read_text)
        simulator.process.kill()

    entry = json.loads(file.read_text())
    assert (entry["client_request_id"], entry["end"]) == ("one", "length")
    assert entry["generated_tokens"] == answered["usage"]["completion_tokens"] == 3
