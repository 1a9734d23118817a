"""Every recorded exchange with a real vLLM 0.32 has the same shape here.

The same tests ask a live vLLM when VLLM_URL names one (`make test-engines`): VLLM_KV_EVENTS and VLLM_KV_REPLAY are its ZMQ
endpoints, VLLM_LORA_PATH an adapter it can load.
"""

import base64
import itertools
import json
import os
import re
import socket
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from engine.simulator import events, kvcache
from matrixinfer.local import ports
from tests.simulator.running import Answered, Simulator, call

RECORDINGS = Path(__file__).parent / "recordings"
EXCHANGES = {exchange["name"]: exchange for exchange in json.loads((RECORDINGS / "http.json").read_text())}
EVENTS = json.loads((RECORDINGS / "kv-events.json").read_text())
REPLAY = json.loads((RECORDINGS / "kv-replay.json").read_text())
VARIABLE_HEADERS = {"date", "connection", "content-length"}


@dataclass
class Engine:
    url: str
    subscription: zmq.Socket
    replay: str
    lora_path: str
    answers: dict[str, Answered] = field(default_factory=dict)
    metrics: str = ""
    events: list[list[bytes]] = field(default_factory=list)


@pytest.fixture(
    scope="module",
    params=[
        "simulator",
        pytest.param(
            "vllm",
            marks=[
                pytest.mark.engines,
                pytest.mark.skipif("VLLM_URL" not in os.environ, reason="VLLM_URL names no live vLLM"),
            ],
        ),
    ],
)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that has been through all recorded exchanges, in their order."""
    context = zmq.Context()
    subscription = context.socket(zmq.SUB)
    subscription.subscribe(b"")
    if request.param == "vllm":
        subscription.connect(os.environ["VLLM_KV_EVENTS"])
        live = Engine(os.environ["VLLM_URL"], subscription, os.environ["VLLM_KV_REPLAY"], os.environ["VLLM_LORA_PATH"])
        _go_through(live)
        yield live
    else:
        free = [ports.choose(0, option="port") for _ in range(2)]
        flags = (
            *("--served-model-name", "tiny", "--block-size", "32", "--kv-blocks", "65536", "--max-model-len", "4096"),
            *("--max-loras", "2", "--itl-ms-base", "1", "--topic", "kv@127.0.0.1:8101@tiny"),
            *("--kv-events-endpoint", f"tcp://127.0.0.1:{free[0]}"),
            *("--replay-endpoint", f"tcp://127.0.0.1:{free[1]}"),
        )
        with Simulator(*flags, model="./tiny") as simulator:
            subscription.connect(f"tcp://127.0.0.1:{free[0]}")
            live = Engine(simulator.url, subscription, f"tcp://127.0.0.1:{free[1]}", "/adapters/lora-a")
            _go_through(live)
            yield live
    context.destroy(linger=0)


def _go_through(engine: Engine) -> None:
    _await_subscription(engine)
    for name, exchange in EXCHANGES.items():
        request = exchange["request"]
        body = request["body"]
        if isinstance(body, dict) and "lora_path" in body:
            body = {**body, "lora_path": engine.lora_path}
        engine.answers[name] = call(engine.url + request["path"], body, method=request["method"])
    engine.metrics = call(engine.url + "/metrics").text
    while engine.subscription.poll(500):
        engine.events.append(engine.subscription.recv_multipart())


def _await_subscription(engine: Engine) -> None:
    """A subscriber hears nothing until its connection stands: ask with prompts of their own until an event comes."""
    for attempt in range(50):
        prompt = list(range(100 + attempt, 140 + attempt))
        call(engine.url + "/v1/completions", {"model": "tiny", "prompt": prompt, "max_tokens": 1})
        if engine.subscription.poll(200):
            break
    while engine.subscription.poll(200):
        engine.subscription.recv_multipart()


def shape(value: Any) -> Any:
    """What must be equal of two bodies: keys in their order, and types."""
    if isinstance(value, dict):
        return [(key, shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [key for key, _ in itertools.groupby(map(shape, value))]
    return type(value).__name__


def recorded(name: str) -> Answered:
    exchange = EXCHANGES[name]
    text = exchange.get("response_text", json.dumps(exchange.get("response")))
    return Answered(exchange["status"], exchange["headers"], text)


@pytest.mark.parametrize("name", EXCHANGES)
def test_status_and_headers_are_vllms(engine: Engine, name: str):
    ours, theirs = engine.answers[name], recorded(name)

    assert ours.status == theirs.status
    assert {k: v for k, v in ours.headers.items() if k not in VARIABLE_HEADERS} == {
        k: v for k, v in theirs.headers.items() if k not in VARIABLE_HEADERS
    }
    assert ("content-length" in ours.headers) == ("content-length" in theirs.headers)


@pytest.mark.parametrize("name", [name for name, e in EXCHANGES.items() if e["status"] == 200])
def test_body_has_vllms_keys_order_and_types(engine: Engine, name: str):
    ours, theirs = engine.answers[name], recorded(name)

    if theirs.headers.get("content-type", "").startswith("text/event-stream"):
        assert _sequence(ours) == _sequence(theirs)
    elif theirs.headers.get("content-type") == "application/json":
        assert shape(ours.json()) == shape(theirs.json())
    else:
        assert ours.text == theirs.text


@pytest.mark.parametrize("name", [name for name, e in EXCHANGES.items() if e["status"] != 200])
def test_errors_are_worded_as_vllm_words_them(engine: Engine, name: str):
    assert engine.answers[name].json() == recorded(name).json()


def _sequence(answer: Answered) -> list[Any]:
    return [key for key, _ in itertools.groupby((name, shape(data)) for name, data in answer.events())]


def test_a_stream_is_framed_one_event_a_chunk(engine: Engine):
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 3, "stream": True}
    host, port = engine.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        payload = json.dumps(body).encode()
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(payload), payload)
        )
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    chunks = _chunks(raw.partition(b"\r\n\r\n")[2])

    assert chunks[-1] == b""
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks[:-1])
    assert chunks[-2] == b"data: [DONE]\n\n"


def _chunks(body: bytes) -> list[bytes]:
    chunks = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return chunks


def test_the_callers_request_id_is_in_the_answers_id(engine: Engine):
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}
    named = {"x-request-id": "caller-7"}

    assert call(engine.url + "/v1/chat/completions", chat, headers=named).json()["id"] == "chatcmpl-caller-7"
    assert call(engine.url + "/v1/messages", chat, headers=named).json()["id"] == "chatcmpl-caller-7"
    completion = call(engine.url + "/v1/completions", {"model": "tiny", "prompt": "x", "max_tokens": 1}, headers=named)
    assert completion.json()["id"] == "cmpl-caller-7"


def test_cached_tokens_follow_the_blocks(engine: Engine):
    def details(name: str) -> dict[str, Any]:
        return engine.answers[name].json()["usage"]["prompt_tokens_details"]

    cold, warm = details("chat-cold"), details("chat-warm")
    assert cold["cached_tokens"] == 0
    assert cold["created_cache_tokens"] == warm["cached_tokens"] > 0
    assert cold["created_cache_tokens"] % 32 == 0
    assert warm["created_cache_tokens"] == 0
    assert 0 < details("chat-shared-prefix")["cached_tokens"] <= warm["cached_tokens"]
    assert details("chat-lora")["cached_tokens"] == 0
    assert details("chat-cache-salt")["cached_tokens"] == 0
    assert details("completion")["created_cache_tokens"] is None


def test_running_usage_stands_in_every_chunk(engine: Engine):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    answer = call(engine.url + "/v1/chat/completions", {**body, "stream": True, "stream_options": options})
    usages = [data["usage"] for _, data in answer.events() if data != "[DONE]"]

    assert [usage["completion_tokens"] for usage in usages] == [0, 1, 2, 3, 3]
    counts = ["prompt_tokens", "total_tokens", "completion_tokens"]
    assert [list(usage) for usage in usages[:-1]] == [[*counts, "completion_tokens_details"]] * 4
    assert usages[-1]["prompt_tokens_details"] == {"cached_tokens": 0, "created_cache_tokens": 0}


def test_running_usage_of_completions_is_shorter_and_starts_with_the_first_token(engine: Engine):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "stream": True, "stream_options": options}
    usages = [data["usage"] for _, data in call(engine.url + "/v1/completions", body).events() if data != "[DONE]"]

    assert [usage["completion_tokens"] for usage in usages] == [1, 2, 2]
    assert [list(usage) for usage in usages[:-1]] == [["prompt_tokens", "total_tokens", "completion_tokens"]] * 2
    assert usages[-1]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_running_usage_is_of_one_choice_and_its_prompt(engine: Engine):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"model": "tiny", "prompt": ["hello", "good bye you"], "n": 2, "max_tokens": 2, "ignore_eos": True}
    answer = call(engine.url + "/v1/completions", {**body, "stream": True, "stream_options": options})
    *chunks, last = [data for _, data in answer.events() if data != "[DONE]"]
    prompts = {chunk["choices"][0]["index"]: chunk["usage"]["prompt_tokens"] for chunk in chunks}

    assert sorted(chunk["usage"]["completion_tokens"] for chunk in chunks) == [1] * 4 + [2] * 4
    assert prompts[0] == prompts[1] < prompts[2] == prompts[3]
    assert last["usage"]["completion_tokens"] == 8
    assert last["usage"]["prompt_tokens"] == prompts[0] + prompts[2]


def test_running_usage_alone_is_no_usage(engine: Engine):
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 2, "stream": True}
    answer = call(engine.url + "/v1/completions", {**body, "stream_options": {"continuous_usage_stats": True}})

    assert all("usage" not in data for _, data in answer.events() if data != "[DONE]")
    assert answer.events()[-2][1]["system_fingerprint"].startswith("vllm-0.32.0-")


def test_anthropic_usage_counts_cached_tokens_apart(engine: Engine):
    text = "An example of a prompt that nobody has sent before, Anthropic style. " * 30
    body = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": text}]}
    count = call(engine.url + "/v1/messages/count_tokens", body).json()
    cold, warm = (call(engine.url + "/v1/messages", body).json()["usage"] for _ in range(2))
    events = call(engine.url + "/v1/messages", {**body, "stream": True}).events()

    total = count["input_tokens"]
    blocks = cold["cache_creation_input_tokens"]
    assert count == {"input_tokens": total, "context_management": {"original_input_tokens": total}}
    assert blocks > 0
    assert (cold["input_tokens"], cold["cache_read_input_tokens"]) == (total - blocks, 0)
    assert (warm["input_tokens"], warm["cache_read_input_tokens"]) == (total - blocks, blocks)
    assert warm["cache_creation_input_tokens"] == 0
    assert events[0][1]["message"]["usage"] == {"input_tokens": total, "output_tokens": 0}
    assert events[-2][1]["usage"] == warm


def test_an_answer_is_cut_to_what_the_context_leaves(engine: Engine):
    body = {"model": "tiny", "prompt": [5] * 4090, "max_tokens": 50}
    usage = call(engine.url + "/v1/completions", body).json()["usage"]

    assert (usage["prompt_tokens"], usage["total_tokens"]) == (4090, 4096)


CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]
STREAM_OPTIONS = {"include_usage": True}


def refused(kind: str, field: str, message: str, given: str) -> str:
    return f"1 validation error:\n  {{'type': '{kind}', 'loc': 'body.{field}', 'msg': '{message}', 'input': '{given}'}}"


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        (CHAT, {"messages": []}, None, "Cannot apply chat template to an empty conversation. Provide at least one message."),
        (CHAT, {"messages": "x"}, "body.messages", refused("list_type", "messages", "Input should be a valid list", "x")),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens",
         "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
        (CHAT, {"messages": HELLO, "max_tokens": 5000}, "max_tokens",
         ("max_tokens=5000 cannot be greater than max_model_len=4096. Please request fewer output tokens. "
         "(parameter=max_tokens, value=5000)")),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 5000}, "max_completion_tokens",
         ("max_completion_tokens=5000 cannot be greater than max_model_len=4096. Please request fewer output tokens. "
         "(parameter=max_completion_tokens, value=5000)")),
        (CHAT, {"messages": HELLO, "max_tokens": 1.5}, "body.max_tokens",
         refused("int_from_float", "max_tokens", "Input should be a valid integer, got a number with a fractional part", "1.5")),
        (CHAT, {"messages": HELLO, "max_tokens": [1]}, "body.max_tokens",
         refused("int_type", "max_tokens", "Input should be a valid integer", "<list of 1 items>")),
        (CHAT, {"messages": HELLO, "stream": "maybe"}, "body.stream",
         refused("bool_parsing", "stream", "Input should be a valid boolean, unable to interpret input", "maybe")),
        (CHAT, {"messages": HELLO, "n": 0}, None, "n must be at least 1, got 0."),
        (CHAT, {"messages": HELLO, "n": 20000}, None,
         "n must be at most 16384, got 20000. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable."),
        (CHAT, {"messages": HELLO, "temperature": -1}, "temperature",
         "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)"),
        (CHAT, {"messages": HELLO, "stream_options": STREAM_OPTIONS}, "stream_options",
         "Stream options can only be defined when `stream=True`. (parameter=stream_options)"),
        (CHAT, {"messages": HELLO, "cache_salt": ""}, "cache_salt",
         "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)"),
        (CHAT, {"model": 5, "messages": HELLO}, "body.model",
         refused("string_type", "model", "Input should be a valid string", "5")),
        (CHAT, "", "body", "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}"),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 5000}]}, "input_tokens",
         ("This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens, which "
         "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
         "(parameter=input_tokens, value=4097)")),
        (COMPLETION, {"prompt": [5] * 5000}, "input_tokens",
         ("This model's maximum context length is 4096 tokens. However, your prompt contains 5000 input tokens, which "
         "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
         "(parameter=input_tokens, value=5000)")),
        (COMPLETION, {"prompt": [5] * 4096}, "max_tokens",
         "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"),
        (COMPLETION, {"prompt": ""}, "prompt",
         "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
        (COMPLETION, {}, "prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"),
        (COMPLETION, {"prompt": []}, None, "You must pass at least one prompt"),
        (COMPLETION, {"prompt": [2**31]}, None, "Token id 2147483648 is out of vocabulary"),
        (COMPLETION, {"prompt": "x", "stop": ""}, None, "stop cannot contain an empty string."),
        (COMPLETION, {"prompt": "x", "temperature": "hot"}, "body.temperature",
         refused("float_parsing", "temperature", "Input should be a valid number, unable to parse string as a number", "hot")),
        ("/v1/responses", {}, "body.input", refused("missing", "input", "Field required", "<dict of 2 items>")),
        ("/v1/load_lora_adapter", {"lora_path": "x"}, "body.lora_name",
         refused("missing", "lora_name", "Field required", "<dict of 2 items>")),
    ],
)  # fmt: skip
def test_refusals_are_worded_as_a_live_vllm_words_them(
    engine: Engine, path: str, body: Any, param: str | None, message: str
):
    answer = call(engine.url + path, {"model": "tiny", **body} if isinstance(body, dict) else body)

    error = answer.json()["error"]
    assert (answer.status, error["message"], error["param"]) == (400, message, param)


def _families(page: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))


def _helps(page: str) -> dict[str, str]:
    return dict(re.findall(r"^# HELP (\S+) (.*)$", page, re.MULTILINE))


def _series(page: str, prefix: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Names and labels; values of labels that tell of the run rather than of the engine are dropped."""
    found = set()
    for name, labels in re.findall(r"^([a-z_:]+)(?:\{(.*)\})? \S+$", page, re.MULTILINE):
        if name.startswith(prefix):
            pairs = re.findall(r'(\w+)="([^"]*)"', labels)
            kept = {"le", "engine", "source", "reason", "finished_reason", "sleep_state", "generation", "model_name"}
            found.add((name, tuple((key, value if key in kept else "") for key, value in pairs)))
    return found


def test_metrics_have_vllms_names_types_and_help(engine: Engine):
    theirs = (RECORDINGS / "metrics.txt").read_text()

    assert _families(engine.metrics) == _families(theirs)
    assert _helps(engine.metrics) == _helps(theirs)


@pytest.mark.parametrize("prefix", ["vllm:", "process_", "python_", "http_request_duration_highr"])
def test_metrics_have_vllms_series(engine: Engine, prefix: str):
    assert _series(engine.metrics, prefix) == _series((RECORDINGS / "metrics.txt").read_text(), prefix)


def test_http_metrics_count_the_handlers_vllm_counts(engine: Engine):
    def handlers(page: str) -> set[str]:
        return set(
            re.findall(r'^http_requests_total\{(handler="[^"]*",method="[^"]*",status="[^"]*")', page, re.MULTILINE)
        )

    theirs = handlers((RECORDINGS / "metrics.txt").read_text())
    assert handlers(engine.metrics) == {line for line in theirs if "openapi" not in line}


def test_event_messages_have_vllms_frames_and_fields(engine: Engine):
    batches = [msgspec.msgpack.decode(payload) for _, _, payload in engine.events]
    numbers = [int.from_bytes(number, "big") for _, number, _ in engine.events]
    told = [event for batch in batches for event in batch[1]]
    known = {str(shape(event)) for message in EVENTS for event in message["payload"][1]}

    assert {topic for topic, _, _ in engine.events} == {b"kv@127.0.0.1:8101@tiny"}
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert all(isinstance(ts, float) and rank == 0 for ts, _, rank in batches)
    assert {str(shape(event)) for event in told} <= known
    assert len(told) >= 3
    for event in told:
        assert len(event["token_ids"]) == event["block_size"] * len(event["block_hashes"])
        assert len(event["extra_keys"]) == len(event["block_hashes"])


def test_events_tell_the_adapter_and_the_salt(engine: Engine):
    told = [event for _, _, payload in engine.events for event in msgspec.msgpack.decode(payload)[1]]
    first = [event for event in told if event["parent_block_hash"] is None]
    lora = next(event for event in first if event["lora_name"] == "lora-a")
    salted = next(event for event in first if event["extra_keys"][0] == ["tenant-1"])

    assert lora["extra_keys"] == [["lora-a"]] * len(lora["block_hashes"])
    assert lora["lora_id"] == 1
    assert salted["extra_keys"][1:] == [None] * (len(salted["block_hashes"]) - 1)
    assert len({event["block_hashes"][0] for event in first}) == len(first)


def test_replay_sends_what_was_published_and_an_end_mark(engine: Engine):
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket_:
        socket_.linger = 0
        socket_.connect(engine.replay)
        number = engine.events[0][1]
        socket_.send_multipart([b"", number])
        answers = []
        while socket_.poll(5000):
            answers.append(socket_.recv_multipart())
            if answers[-1][2] == b"\xff" * 8:
                break

    assert [len(answer) for answer in answers] == [len(REPLAY["first"][0])] * len(answers)
    assert [answer[1:] for answer in answers[: len(engine.events)]] == engine.events
    assert answers[-1] == [base64.b64decode(frame) for frame in REPLAY["last"][-1]]


@pytest.mark.parametrize("message", EVENTS, ids=lambda message: str(message["sequence"]))
def test_the_encoder_writes_vllms_bytes(message: dict[str, Any]):
    time, (event,), rank = message["payload"]
    salt = event["extra_keys"][0][-1] if event["extra_keys"][0] and not event["lora_name"] else None
    stored = kvcache.Stored(
        hashes=tuple(event["block_hashes"]),
        parent=event["parent_block_hash"],
        tokens=array("I", event["token_ids"]),
        origin=kvcache.Origin(event["lora_name"], event["lora_id"], salt),
        starts_sequence=event["parent_block_hash"] is None,
    )

    encoded = msgspec.msgpack.encode([time, [events.as_map(stored, event["block_size"])], rank])

    assert encoded == base64.b64decode(message["payload_b64"])
