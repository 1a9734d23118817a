"""Bad input through the whole stack: each has an answer that HTTP allows and that says, as OpenAI's errors do, what to change."""

import asyncio
import json
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.e2e.stack import CHAT, COMPLETIONS, a_body, a_pod, a_route, a_server, an_error, running, total
from tests.e2e.wire import Wire, exchanged, exchanged_h2
from tests.local.waiting import eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.asyncio(loop_scope="module")]
LIMIT = 8 * 1024 * 1024
GOOD = json.dumps(a_body()).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """Two engines that take prompts of any length at once."""
    long = ("--max-model-len", "4000000", "--kv-blocks", "300000", "--prefill-tokens-per-second", "100000000")
    documents = [a_pod("demo-0", *long), a_pod("demo-1", *long), a_server(), a_route()]
    async with running(tmp_path_factory.mktemp("bad") / "manifests", *documents, max_body_bytes=LIMIT) as it:
        yield it


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def unharmed(world):
    """Whatever came in: the same processes serve afterwards, and nothing is left open."""
    before = world.stack.pids()
    yield
    answer = await world.send()
    assert answer.status == 200
    assert world.stack.pids() == before
    await world.settled()
    await eventually_async(lambda: idle(world))


async def idle(world):
    return await world.open_requests() == 0


# ---- bodies


@dataclass(frozen=True)
class Bad:
    body: bytes
    status: int = 400
    param: str | None = None
    code: str | None = None
    path: str = COMPLETIONS


def without(key):
    return json.dumps(a_body(**{key: None})).encode()


def having(path=COMPLETIONS, **fields):
    return json.dumps(a_body(path, **fields)).encode()


BAD = {
    "not JSON": Bad(b"hello"),
    "half JSON": Bad(GOOD[:-5]),
    "two JSON values": Bad(GOOD + GOOD),
    "nothing": Bad(b""),
    "white space": Bad(b"  \n"),
    "an array": Bad(b"[1,2]"),
    "a string": Bad(b'"demo"'),
    "null": Bad(b"null"),
    "an empty object": Bad(b"{}", param="model"),
    "no model": Bad(without("model"), param="model"),
    "a null model": Bad(b'{"model":null,"prompt":"x"}', param="model"),
    "an empty model": Bad(having(model=""), param="model"),
    "a number for a model": Bad(having(model=7), param="model"),
    "a list for a model": Bad(having(model=["demo"]), param="model"),
    "an unknown model": Bad(having(model="nobody"), 404, param="model", code="model_not_found"),
    "a model of odd characters": Bad(having(model='\u0000"\\\u2603\ud83d\ude00\n'), 404, "model", "model_not_found"),
    "a very long model": Bad(having(model="m" * 100_000), 404, param="model", code="model_not_found"),
    "no prompt": Bad(without("prompt"), param="prompt"),
    "a null prompt": Bad(b'{"model":"demo","prompt":null}', param="prompt"),
    "an empty prompt": Bad(having(prompt=""), param="prompt"),
    "an empty array of prompts": Bad(having(prompt=[]), param="prompt"),
    "an object for a prompt": Bad(having(prompt={"text": "x"}), param="prompt"),
    "no messages": Bad(without("messages"), path=CHAT, param="messages"),
    "empty messages": Bad(having(CHAT, messages=[]), path=CHAT, param="messages"),
    "a string for messages": Bad(having(CHAT, messages="hello"), path=CHAT, param="messages"),
    "a word for stream": Bad(having(stream="yes"), param="stream"),
    "a float for max_tokens": Bad(having(max_tokens=1.5), param="max_tokens"),
    "a word for max_tokens": Bad(having(max_tokens="many"), param="max_tokens"),
    "a negative max_tokens": Bad(having(max_tokens=-1)),
    "a number of 400 digits": Bad(b'{"model":"demo","prompt":"x","max_tokens":%s}' % (b"9" * 400)),
    "a number over all floats": Bad(b'{"model":"demo","prompt":"x","max_tokens":1e999}'),
    "not a number": Bad(b'{"model":"demo","prompt":"x","temperature":NaN}'),
    "not UTF-8": Bad(b'{"model":"demo","prompt":"\xff\xfe\xfd"}'),
    "a model that is not UTF-8": Bad(b'{"model":"\x80","prompt":"x"}'),
    "half a character": Bad(b'{"model":"demo","prompt":"\xe2\x98"}'),
    "UTF-16": Bad(GOOD.decode().encode("utf-16")),
    "a byte order mark": Bad(b"\xef\xbb\xbf" + GOOD),
    "nested 100,000 deep": Bad(b'{"model":"demo","prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested objects, 100,000 deep": Bad(b'{"model":"demo","x":' + b'{"x":' * 100_000 + b"1" + b"}" * 100_001),
    "nested and never closed": Bad(b'{"model":"demo","messages":' + b"[" * 100_000, path=CHAT),
    "a control character in a string": Bad(b'{"model":"demo","prompt":"\x01\x00"}'),
    "a lone surrogate": Bad(b'{"model":"demo","prompt":"\\ud800"}'),
    "a lone surrogate for a model": Bad(b'{"model":"\\ud800","prompt":"x"}'),
    "the last of two models is unknown": Bad(
        b'{"model":"demo","prompt":"x","model":"nobody"}', 404, "model", "model_not_found"
    ),
    "model in another case": Bad(b'{"Model":"demo","prompt":"x"}', param="model"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_body_is_an_error_that_says_what_to_change(world, what):
    bad = BAD[what]

    answer = await world.raw(bad.path, data=bad.body)

    assert (answer.status, answer.broken) == (bad.status, False), answer.body[:500]
    error = answer.error
    assert error["type"]
    if bad.param:
        assert error["param"] == bad.param, error
    if bad.code:
        assert error["code"] == bad.code, error
    assert len(error["message"]) < 2000
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]


WELL = {
    "a string": having(prompt="hello"),
    "an array of strings": having(prompt=["hello", "world"]),
    "an array of one string": having(prompt=["hello"]),
    "token ids": having(prompt=[1, 2, 3]),
    "arrays of token ids": having(prompt=[[1, 2, 3], [4, 5]]),
    "escaped characters": b'{"\\u006dodel":"d\\u0065mo","prompt":"\\ud83d\\ude00 \\" \\\\ \\n","max_tokens":2}',
    "white space around all": b' \n{ "model" : "demo" ,\t"prompt" : "x" , "max_tokens" : 2 } \r\n',
    "the last of two models counts": b'{"model":"nobody","prompt":"x","model":"demo","max_tokens":2}',
    "unknown keys": having(nobody_knows={"this": [1, None, True]}),
    "a null for what may be left out": b'{"model":"demo","prompt":"x","max_tokens":2,"stream":null,"stream_options":null}',
}


@pytest.mark.parametrize("what", WELL)
async def test_an_odd_body_that_is_right_is_served(world, what):
    answer = await world.raw(data=WELL[what])

    assert answer.status == 200, answer.body[:500]
    assert answer.json["choices"][0]["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize("where", ["prompt", "image", "tokens", "beside"])
async def test_a_body_of_5_mb_is_served(world, where):
    text = "word " * 1_000_000
    path, fields = {
        "prompt": (COMPLETIONS, {"prompt": text}),
        "image": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]}),
        "tokens": (COMPLETIONS, {"prompt": [12_345] * 700_000}),
        "beside": (COMPLETIONS, {"user": text}),
    }[where]
    body = having(path, **fields)
    assert len(body) > 4_800_000

    answer = await world.raw(path, data=body)

    assert answer.status == 200, answer.body[:500]


@pytest.mark.parametrize("how", ["content-length", "chunked"])
async def test_a_body_over_the_limit_is_a_413(world, how):
    body = having(prompt="x" * (LIMIT + 1))
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    if how == "chunked":
        data = f"{head}transfer-encoding: chunked\r\n\r\n".encode() + in_chunks(body, 65536)
    else:
        data = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    answer = await exchanged(world.address, data)

    assert (answer.status, answer.error["type"]) == (413, "invalid_request_error")
    assert str(LIMIT) in answer.error["message"]


async def test_a_body_just_under_the_limit_is_served(world):
    body = having(user="x" * (LIMIT - 200))

    answer = await world.raw(data=body)

    assert LIMIT - 150 < len(body) <= LIMIT
    assert answer.status == 200, answer.body[:500]


def in_chunks(body, size):
    chunks = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


# ---- heads


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "nonsense"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "APPLICATION/JSON"}, 200),
        ({"content-encoding": "identity"}, 200),
    ],
)
async def test_a_wrong_content_type_is_a_415(world, headers, status):
    answer = await world.raw(data=GOOD, headers=headers)

    assert answer.status == status, answer.body
    assert status == 200 or answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", COMPLETIONS, 405),
        ("DELETE", CHAT, 405),
        ("PUT", COMPLETIONS, 405),
        ("POST", COMPLETIONS, 400),
        ("POST", "/v1/models", 405),
        ("POST", "/", 404),
        ("GET", "/", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/metrics", 404),
        ("POST", "/v1/load_lora_adapter", 404),
        ("POST", "/sim/fail", 404),
        ("GET", "/v1/models/nobody", 404),
        ("OPTIONS", COMPLETIONS, 405),
    ],
)
async def test_a_request_of_headers_only_is_an_error_that_says_what_is_served(world, method, path, status):
    data = (
        f"{method} {path} HTTP/1.1\r\nhost: test\r\n" + ("content-length: 0\r\n" if method == "POST" else "") + "\r\n"
    )

    answer = await exchanged(world.address, data.encode())

    assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/demo", "/healthz", "/readyz"])
async def test_pages_without_a_body_are_served(world, path):
    answer = await exchanged(world.address, f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())

    assert answer.status == 200
    assert answer.json


async def test_a_body_without_a_content_type_is_an_error(world):
    answer = await exchanged(
        world.address,
        b"POST %s HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%s" % (COMPLETIONS.encode(), len(GOOD), GOOD),
    )

    assert answer.status in (400, 415)  # the engine's to say: vLLM minds, others may not
    assert answer.error["message"]


async def test_a_head_request_has_no_body(world):
    async with Wire(world.address) as wire:
        await wire.send(b"HEAD /v1/models HTTP/1.1\r\nhost: test\r\n\r\n")
        head = await wire.receive(bodiless=True)
        again = await wire.exchange(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n")

    assert (head.status, again.status) == (405, 200)  # as engines answer it, and the connection goes on


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_chunked_body_is_served(world, size):
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"

    answer = await exchanged(world.address, head.encode() + in_chunks(GOOD, size))

    assert answer.status == 200


async def test_a_client_that_expects_100_continue_gets_it_and_then_its_answer(world):
    async with Wire(world.address) as wire:
        await wire.send(
            f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
            f"expect: 100-continue\r\ncontent-length: {len(GOOD)}\r\n\r\n".encode()
        )
        assert await wire.some(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        answer = await wire.exchange(GOOD)

    assert answer.status == 200


@pytest.mark.parametrize("host", ["", "host: test\r\n"])
async def test_http_1_0_is_served_and_the_connection_closed(world, host):
    for body, status in ((GOOD, 200), (b"nonsense", 400)):
        head = f"POST {COMPLETIONS} HTTP/1.0\r\n{host}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

        answer = await exchanged(world.address, head.encode() + body)

        assert answer.status == status
        assert "transfer-encoding" not in answer.headers


async def test_http_1_0_can_stream(world):
    body = having(stream=True)
    head = f"POST {COMPLETIONS} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"

    answer = await exchanged(world.address, head.encode() + body)

    assert (answer.status, answer.body.endswith(b"data: [DONE]\n\n")) == (200, True)


async def test_http_2_with_prior_knowledge_is_served(world):
    bodies = (GOOD, having(stream=True), b"nonsense", having(model="nobody"), b"", having(prompt="x " * 50_000))

    answers = await exchanged_h2(world.address, *bodies, path=COMPLETIONS)

    assert [answer.status for answer in answers] == [200, 200, 400, 404, 400, 200]
    assert answers[1].body.endswith(b"data: [DONE]\n\n")
    for answer in (answers[2], answers[3], answers[4]):
        assert answer.error["type"] == "invalid_request_error"


BROKEN = {
    "no HTTP": b"\x00\x01\x02 nonsense \xff\r\n\r\n",
    "a TLS hello": bytes.fromhex("160301007a0100007603036f") + b"\x00" * 80 + b"\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    "a negative length": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    "a length and chunks": b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a bad chunk": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a header without a name": b"GET /healthz HTTP/1.1\r\nhost: a\r\n: x\r\n\r\n",
    "a null in a header": b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n",
    "a method of odd characters": b"G{T /healthz HTTP/1.1\r\nhost: a\r\n\r\n",
    "too many headers": b"GET /healthz HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 500 + b"\r\n",
    "headers too long": b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_is_no_http_is_refused(world, what):
    try:
        answer = await exchanged(world.address, BROKEN[what])
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # closed without a word: there is nobody who would understand one

    assert 400 <= answer.status < 500
    if answer.body:
        assert an_error(answer.body)["type"] == "invalid_request_error"


# ---- clients that leave


async def test_a_client_that_leaves_in_the_middle_of_its_request_costs_nothing(world):
    before = await world.settled()
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    )
    for data in (head[:20], head, head + '{"model":"demo",'):
        async with Wire(world.address) as wire:
            await wire.send(data.encode())
            wire.leave()

    after = await world.settled()
    for event in ("opened", "settled", "expired", "stranger"):
        key = f"matrixinfer_ledger_total{{event={event}}}"
        assert after[key] == before[key]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_in_the_middle_of_its_answer_is_settled_once_and_frees_the_engine(world, stream):
    before = await world.settled()
    request_id = world.new_id()
    body = having(stream=stream, max_tokens=2000, prompt=request_id)
    async with Wire(world.address) as wire:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\nx-request-id: {request_id}\r\n"
        await wire.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            await wire.some(1000)
        else:
            await eventually_async(lambda: at_work(world))
        wire.leave()

    end = (await world.decision(request_id))["end"]
    assert end["end"] == "client-gone"
    await eventually_async(lambda: idle(world))
    after = await world.settled()
    assert total(after, "matrixinfer_requests_total") - total(before, "matrixinfer_requests_total") == 1
    assert end["failed"] == []
    if stream:
        assert end["outcome"]["completion_tokens"] > 0
        assert end["outcome"]["prompt_tokens"] > 0


async def at_work(world):
    return await world.open_requests() > 0
