"""2,000 random bodies through Envoy: each has an answer that the protocol allows, nothing crashes, nothing hangs."""

import asyncio
import json
from collections import Counter

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.stack import (
    CHAT,
    COMPLETIONS,
    MESSAGES,
    a_body,
    a_pod,
    a_route,
    a_server,
    an_error,
    events,
    running,
    say,
)
from tests.e2e.wire import Wire

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
BATCH, BATCHES, CONNECTIONS = 20, 100, 4
PATHS = (COMPLETIONS, CHAT, MESSAGES, "/v1/embeddings", "/v1/responses", "/tokenize")
KEYS = (
    *("model", "prompt", "messages", "input", "stream", "stream_options", "max_tokens", "max_completion_tokens"),
    *("temperature", "tools", "system", "instructions", "cache_salt", "n", "stop", "user", "logprobs", "ignore_eos"),
    *("role", "content", "type", "text", "include_usage", "continuous_usage_stats", "function", "name"),
)
GOOD = (
    (COMPLETIONS, a_body()),
    (COMPLETIONS, a_body(stream=True)),
    (COMPLETIONS, a_body(stream=True, stream_options={"include_usage": True})),
    (COMPLETIONS, a_body(prompt=[1, 2, 3])),
    (COMPLETIONS, a_body(prompt=["one", "two"], n=2)),
    (CHAT, a_body(CHAT)),
    (CHAT, a_body(CHAT, stream=True, tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}])),
    (CHAT, a_body(CHAT, messages=[{"role": "user", "content": [{"type": "text", "text": "Hi \u2603"}]}])),
    (MESSAGES, a_body(MESSAGES, system="Be brief.")),
    (MESSAGES, a_body(MESSAGES, stream=True)),
    ("/v1/embeddings", {"model": "demo", "input": "hello"}),
    ("/v1/responses", {"model": "demo", "input": "hello", "max_output_tokens": 2}),
    ("/tokenize", {"model": "demo", "prompt": "hello"}),
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=12),
    st.sampled_from(("demo", "nobody", "user", "assistant", "text", "auto", "")),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(KEYS), values, max_size=6)


@st.composite
def mutated(draw):
    """A good body with some of its bytes changed, cut out, doubled, or exchanged for somebody else's."""
    path, good = draw(st.sampled_from(GOOD))
    body = bytearray(dumped(good))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        until = min(at + draw(st.integers(0, 8)), len(body))
        body[at:until] = draw(
            st.one_of(
                st.binary(max_size=4),
                st.sampled_from(
                    (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"1e999", b"-", b"null", b"\x00")
                ),
                st.just(bytes(body[at:until]) * 2),
            )
        )
    return path, bytes(body)


def dumped(value):
    return json.dumps(value).encode()


@st.composite
def varied(draw):
    """A good body with a key or two of ours that hold anything: most of what engines have to refuse looks like this."""
    path, good = draw(st.sampled_from(GOOD))
    odd = draw(st.dictionaries(st.sampled_from(KEYS[9:]) | st.text(max_size=4), values, max_size=2))
    return path, dumped(good | odd | draw(st.dictionaries(st.sampled_from(KEYS[:9]), values, max_size=1)))


anything = st.one_of(st.binary(max_size=100), values.map(dumped), objects.map(dumped))
request = st.one_of(st.tuples(st.sampled_from(PATHS), anything), mutated(), varied())
requests = st.lists(request, min_size=BATCH, max_size=BATCH)
found: Counter[int] = Counter()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """Two engines whose answers are short and take no time."""
    quick = ("--speed", "0", "--max-model-len", "256")
    documents = [a_pod("demo-0", *quick), a_pod("demo-1", *quick), a_server(), a_route()]
    async with running(tmp_path_factory.mktemp("random") / "manifests", *documents) as it:
        yield it


@settings(
    max_examples=BATCHES,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(requests)
async def test_any_body_gets_an_answer_that_the_protocol_allows(world, requests):
    shares = [requests[number::CONNECTIONS] for number in range(CONNECTIONS)]

    answered = await asyncio.gather(*(one_after_another(world, share) for share in shares))

    for path, body, answer in (one for share in answered for one in share):
        found[answer.status] += 1
        assert_allowed(path, body, answer)


async def one_after_another(world, share):
    """Send these requests over one connection, which stays open unless the gateway says otherwise."""
    answered = []
    waiting = list(reversed(share))
    while waiting:
        async with Wire(world.address) as wire:
            while waiting:
                path, body = waiting.pop()
                head = f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                answer = await wire.exchange(head.encode() + body)
                answered.append((path, body, answer))
                if answer.headers.get("connection") == "close":
                    break
    return answered


def assert_allowed(path, body, answer):
    told = f"{path} {body!r}: {answer.status} {dict(answer.headers)} {answer.body[:1000]!r}"
    assert not answer.broken, told
    assert answer.headers.get("x-request-id"), told
    if answer.status == 200:
        if answer.headers["content-type"].startswith("text/event-stream"):
            assert events(answer.body), told
            assert all(data == "[DONE]" or json.loads(data) for data in events(answer.body)), told
        else:
            assert "error" not in json.loads(answer.body), told
        return
    assert 400 <= answer.status < 500, told
    if path == MESSAGES and json.loads(answer.body).get("type") == "error":
        assert json.loads(answer.body)["error"]["message"], told  # the engine speaks Anthropic's form there
    else:
        an_error(answer.body)


async def test_all_of_them_left_the_same_processes_behind_and_nothing_open(world):
    metrics = await world.settled()

    say(f"answers to random bodies: {dict(sorted(found.items()))}")
    assert sum(found.values()) >= BATCH * BATCHES
    assert found[200] > 100
    assert found[400] > 100
    assert world.stack.pids() == world.pids
    assert await world.open_requests() == 0
    assert metrics["matrixinfer_ledger_total{event=expired}"] == 0
    assert (await world.send()).status == 200
