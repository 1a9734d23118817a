"""ext_proc calls over both transports: the asker's answers, refusals, bugs and delays as a gateway sees them."""

import asyncio
import json

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from grpc import StatusCode

from extproc.adapters.transport import ext_proc
from extproc.errors import NoEndpoints, UnknownModel
from extproc.protocol.messages import BodyMode
from extproc.types import Decision, Reply
from tests.transport.services import a_channel, bidi

DECISION = Decision("t-1", ("10.0.0.1:8000",), "default/demo")


class Later:
    """A parked request, as a queue would hold it."""

    max_wait_s = 30.0

    def __init__(self):
        self.answered = None
        self.withdrawn = asyncio.Event()

    def then(self, answered):
        self.answered = answered

    def withdraw(self):
        self.withdrawn.set()


class Asker:
    """Answers what the test tells it to; remembers what it was asked."""

    def __init__(self):
        self.answer, self.requests, self.asked = DECISION, [], asyncio.Event()
        self.told = []

    def decide(self, request):
        self.requests.append(request)
        self.asked.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def served(self, ticket, endpoint, status):
        self.told.append((ticket, endpoint, status))

    def released(self, ticket):
        self.told.append(ticket)


@pytest.fixture
def asker():
    return Asker()


@pytest.fixture
def service(asker):
    return ext_proc.ExtProcService(asker)


@pytest.fixture
async def channel(start, service):
    server = await start({ext_proc.METHOD: service})
    channel = a_channel(server.address)
    yield channel
    await channel.close()


def head(mode=BodyMode.BUFFERED, *, end=False, path=b"/v1/chat/completions"):
    request = pb.ProcessingRequest()
    for name, value in ((":method", b"POST"), (":path", path)):
        request.request_headers.headers.headers.add(key=name, raw_value=value)
    request.request_headers.end_of_stream = end
    request.protocol_config.request_body_mode = mode
    return request


def body(data, *, end=True):
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end))


async def say(call, *requests):
    for request in requests:
        await call.write(request.SerializeToString())


async def hear(call):
    return pb.ProcessingResponse.FromString(await call.read())


async def test_a_buffered_exchange_is_decided_and_ends(channel, asker):
    call = bidi(channel, ext_proc.METHOD)

    await say(call, head())
    first = await hear(call)
    await say(call, body(b'{"model":"demo"}'))
    second = await hear(call)

    assert first.HasField("request_headers")
    assert second.request_body.response.clear_route_cache
    assert await call.code() is StatusCode.OK
    assert [(request.path, request.body) for request in asker.requests] == [
        ("/v1/chat/completions", b'{"model":"demo"}')
    ]


async def test_a_large_duplex_body_comes_back_whole(channel):
    call = bidi(channel, ext_proc.METHOD)
    pieces = [bytes([n]) * 60_000 for n in range(100)]

    await say(call, head(BodyMode.FULL_DUPLEX_STREAMED), *(body(piece, end=False) for piece in pieces), body(b""))
    first = await hear(call)
    echoed = bytearray()
    while True:
        chunk = (await hear(call)).request_body.response.body_mutation.streamed_response
        echoed += chunk.body
        if chunk.end_of_stream:
            break

    assert first.HasField("request_headers")
    assert echoed == b"".join(pieces)


async def test_a_refusal_is_an_openai_error(channel, asker):
    asker.answer = UnknownModel("no route serves 'x'")
    call = bidi(channel, ext_proc.METHOD)

    await say(call, head(end=True))
    answer = (await hear(call)).immediate_response

    assert answer.status.code == 404
    assert json.loads(answer.body)["error"]["code"] == "model_not_found"
    assert await call.code() is StatusCode.OK


async def test_a_bug_of_the_asker_is_500_for_one_request(channel, asker, service, caplog):
    asker.answer = KeyError("secret")
    broken = bidi(channel, ext_proc.METHOD)
    await say(broken, head(end=True))
    answer = (await hear(broken)).immediate_response

    asker.answer = Reply(200, b"[]")
    call = bidi(channel, ext_proc.METHOD)
    await say(call, head(end=True))

    assert answer.status.code == 500
    assert b"secret" not in answer.body
    assert service.bugs == 1
    assert "KeyError" in caplog.text
    assert (await hear(call)).immediate_response.body == b"[]"


async def test_a_parked_request_is_answered_when_its_time_comes(channel, asker):
    asker.answer = parked = Later()
    call = bidi(channel, ext_proc.METHOD)

    await say(call, head(), body(b"{}"))
    await hear(call)
    patience = await hear(call)
    parked.answered(DECISION)

    assert patience.override_message_timeout.seconds == 30
    assert (await hear(call)).HasField("request_body")
    assert await call.code() is StatusCode.OK


async def test_envoy_is_not_asked_to_wait_for_what_is_answered_soon(channel, asker):
    class Soon(Later):
        def then(self, answered):
            asyncio.get_running_loop().call_soon(answered, DECISION)

    asker.answer = Soon()
    call = bidi(channel, ext_proc.METHOD)

    await say(call, head(BodyMode.FULL_DUPLEX_STREAMED), body(b"{}"))
    first = await hear(call)

    assert not first.HasField("override_message_timeout")


async def test_a_parked_request_may_be_refused(channel, asker):
    asker.answer = parked = Later()
    call = bidi(channel, ext_proc.METHOD)

    await say(call, head(end=True))
    await hear(call)
    parked.answered(NoEndpoints("none came in time", retry_after_s=5))

    answer = (await hear(call)).immediate_response
    assert answer.status.code == 503
    assert {option.header.key for option in answer.headers.set_headers} >= {"retry-after", "x-matrixinfer-reason"}


async def test_a_client_that_leaves_withdraws_its_parked_request(channel, asker):
    asker.answer = parked = Later()
    call = bidi(channel, ext_proc.METHOD)
    await say(call, head(), body(b"{}"))
    await asyncio.wait_for(asker.asked.wait(), 10)

    call.cancel()

    await asyncio.wait_for(parked.withdrawn.wait(), 10)
    parked.answered(DECISION)  # too late, and harmless


async def test_bytes_that_are_no_message_end_their_call(channel, service):
    call = bidi(channel, ext_proc.METHOD)

    await call.write(b"\xff\xff\xff")

    assert await call.code() is StatusCode.INVALID_ARGUMENT
    assert service.protocol_errors == 1


async def test_bytes_that_are_no_message_withdraw_what_was_parked(channel, asker):
    asker.answer = parked = Later()
    call = bidi(channel, ext_proc.METHOD)
    await say(call, head(), body(b"{}"))

    await call.write(b"\xff\xff\xff")

    await asyncio.wait_for(parked.withdrawn.wait(), 10)


async def test_bodies_that_wait_share_one_bound_and_give_it_back(start, asker):
    asker.answer = parked = Later()
    service = ext_proc.ExtProcService(asker, max_held_bytes=10_000)
    server = await start({ext_proc.METHOD: service})
    async with a_channel(server.address) as channel:
        first, second = bidi(channel, ext_proc.METHOD), bidi(channel, ext_proc.METHOD)
        await say(first, head(), body(b"x" * 9_000))
        await asyncio.wait_for(asker.asked.wait(), 10)
        await say(second, head(BodyMode.FULL_DUPLEX_STREAMED), body(b"x" * 2_000, end=False))
        refused = (await hear(second)).immediate_response
        parked.answered(DECISION)
        answers = [await hear(first)]
        while not answers[-1].HasField("request_body"):  # Envoy is asked for patience if that took long
            answers.append(await hear(first))

    assert refused.status.code == 503
    assert service.held == 0


async def test_messages_out_of_turn_end_their_call(channel, service):
    call = bidi(channel, ext_proc.METHOD)

    await say(call, body(b"{}"))

    assert await call.code() is StatusCode.INVALID_ARGUMENT
    assert "request_header_mode" in await call.details()
    assert service.protocol_errors == 1


async def test_a_follower_hears_who_served_and_when_it_was_over(start, asker):
    server = await start({ext_proc.METHOD: ext_proc.ExtProcService(asker, follower=asker)})
    response = pb.ProcessingRequest()
    response.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    response.metadata_context.filter_metadata["envoy.lb"].update(
        {"x-gateway-destination-endpoint-served": "10.0.0.1:8000"}
    )
    async with a_channel(server.address) as channel:
        call = bidi(channel, ext_proc.METHOD)
        await say(call, head(BodyMode.FULL_DUPLEX_STREAMED), body(b"{}"))
        await hear(call)
        await hear(call)

        await say(call, response, pb.ProcessingRequest(response_body=pb.HttpBody(body=b"", end_of_stream=True)))
        passed = [(await hear(call)).WhichOneof("response") for _ in range(2)]

        assert await call.code() is StatusCode.OK
    assert passed == ["response_headers", "response_body"]
    assert asker.told == [("t-1", "10.0.0.1:8000", 200), "t-1"]
