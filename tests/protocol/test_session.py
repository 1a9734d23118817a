"""The session in every body mode, at every point where a client or a gateway may leave, and its properties."""

from itertools import pairwise

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from extproc.protocol.effects import (
    INVALID_ARGUMENT,
    OK,
    UNIMPLEMENTED,
    Decide,
    Finish,
    Released,
    Send,
    Served,
    Withdraw,
)
from extproc.protocol.messages import (
    BodyMode,
    RequestBody,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
)
from extproc.protocol.session import Cancelled, HalfClosed, Session, State, Wait
from tests.protocol.builders import REPLY, a_decision, a_session, asked, ended, headers, metadata, sent, set_headers

DUPLEX = BodyMode.FULL_DUPLEX_STREAMED
BODY = RequestBody(b'{"model":"demo"}', end=True)


# ---- buffered


def test_buffered_headers_are_let_through_and_the_body_is_decided():
    session = a_session()

    first = session.step(headers())
    second = session.step(BODY)
    third = session.step(a_decision())

    assert [answer.WhichOneof("response") for answer in sent(first)] == ["request_headers"]
    assert [request.body for request in asked(second)] == [b'{"model":"demo"}']
    assert [answer.WhichOneof("response") for answer in sent(third)] == ["request_body"]
    assert ended(third) == [OK]


def test_a_gateway_that_buffers_learns_the_requests_name_before_the_decision():
    session = Session(1000, ticket="t-9")

    (first,) = sent(session.step(headers()))
    (request,) = asked(session.step(BODY))

    assert first.WhichOneof("response") == "request_headers"
    assert metadata(first) == {"matrixinfer": {"offered": "t-9"}}
    assert request.ticket == "t-9"


def test_the_question_carries_method_path_headers_and_subset():
    session = a_session(headers(subset=("10.0.0.1:8000",), x_request_id="r"))

    (request,) = asked(session.step(BODY))

    assert (request.method, request.path, request.subset) == ("POST", "/v1/chat/completions", ("10.0.0.1:8000",))
    assert request.headers["x-request-id"] == "r"


def test_a_subset_that_comes_with_the_body_counts():
    session = a_session(headers())

    (request,) = asked(session.step(BODY._replace(subset=())))

    assert request.subset == ()


def test_a_changed_body_has_its_exact_length():
    session = a_session(headers(), BODY)

    (answer,) = sent(session.step(a_decision(body=b"x" * 70_000)))

    assert answer.request_body.response.body_mutation.body == b"x" * 70_000
    assert set_headers(answer.request_body.response.header_mutation)["content-length"] == "70000"


def test_a_buffered_body_with_trailers_is_complete_though_it_does_not_say_so():
    session = a_session(headers())

    assert len(asked(session.step(BODY._replace(end=False)))) == 1


def test_a_body_that_the_gateway_cut_is_too_large():
    session = a_session(headers(BodyMode.BUFFERED_PARTIAL, content_length="100000"))

    effects = session.step(RequestBody(b"x" * 1000, end=False))

    assert sent(effects)[0].immediate_response.status.code == 413
    assert ended(effects) == [OK]


def test_a_partly_buffered_body_that_is_whole_is_decided():
    session = a_session(headers(BodyMode.BUFFERED_PARTIAL, content_length="4"))

    assert [request.body for request in asked(session.step(RequestBody(b"{}  ", end=False)))] == [b"{}  "]


@pytest.mark.parametrize("mode", [BodyMode.BUFFERED, DUPLEX, BodyMode.STREAMED])
def test_a_body_over_the_limit_is_413_in_every_mode(mode):
    session = a_session(headers(mode), limit=10)

    effects = session.step(RequestBody(b"x" * 11, end=False))

    assert sent(effects)[0].immediate_response.status.code == 413
    assert session.state is State.DONE


# ---- along with the headers


def test_a_body_that_comes_along_with_the_headers_is_decided_at_once_and_the_gateway_sends_nothing_more():
    session = Session(1000, ticket="t-9")

    (request,) = asked(session.step(headers()._replace(body=b'{"model":"demo"}', ticket="module-1")))
    done = session.step(a_decision(ticket="module-1"))

    (answer,) = sent(done)
    common = answer.request_headers.response
    assert (request.body, request.ticket) == (b'{"model":"demo"}', "module-1")
    assert common.status == common.CONTINUE_AND_REPLACE
    assert not common.HasField("body_mutation")
    assert ended(done) == [OK]
    assert session.held_bytes == 0


def test_a_body_that_replaces_one_that_came_along_tells_its_length_beside_as_the_gateway_drops_content_length():
    session = a_session(headers()._replace(body=b"{}"))

    (answer,) = sent(session.step(a_decision(body=b'{"model":"other"}')))

    common = answer.request_headers.response
    assert common.body_mutation.body == b'{"model":"other"}'
    assert set_headers(common.header_mutation)["x-matrixinfer-length"] == "17"


def test_a_body_that_came_along_and_is_over_the_limit_is_refused():
    (answer,) = sent(Session(10).step(headers()._replace(body=b"x" * 11)))

    assert answer.immediate_response.status.code == 413


def test_a_client_that_leaves_takes_back_what_came_along():
    session = a_session(headers()._replace(body=b"{}"))

    assert [type(effect) for effect in session.step(Cancelled())] == [Withdraw]


# ---- headers only


@pytest.mark.parametrize("mode", [BodyMode.NONE, BodyMode.BUFFERED, DUPLEX, BodyMode.STREAMED])
def test_a_request_without_a_body_is_decided_at_its_headers(mode):
    session = a_session()

    (request,) = asked(session.step(headers(mode, end=True)))
    effects = session.step(a_decision())

    assert request.body == b""
    assert set_headers(sent(effects)[0].request_headers.response.header_mutation) == {
        "x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000",
        "x-matrixinfer-target": "default/demo",
    }
    assert ended(effects) == [OK]


def test_a_reply_of_ours_is_immediate_and_ends_the_stream():
    session = a_session(headers(end=True))

    effects = session.step(REPLY)

    assert sent(effects)[0].immediate_response.body == REPLY.body
    assert ended(effects) == [OK]


# ---- full duplex


@pytest.mark.parametrize("mode", [DUPLEX, None])
def test_duplex_answers_headers_then_the_body_in_pieces(mode):
    session = a_session()

    early = session.step(headers(mode)) + session.step(RequestBody(b"a" * 100_000, end=False))
    question = session.step(RequestBody(b"b" * 50_000, end=True))
    answers = sent(session.step(a_decision()))

    assert early == ()
    assert len(asked(question)) == 1
    assert [answer.WhichOneof("response") for answer in answers] == ["request_headers"] + ["request_body"] * 3
    assert set_headers(answers[0].request_headers.response.header_mutation)["content-length"] == "150000"
    assert metadata(answers[0])["matrixinfer"] == {"ticket": "t-1"}
    chunks = [answer.request_body.response.body_mutation.streamed_response for answer in answers[1:]]
    assert b"".join(chunk.body for chunk in chunks) == b"a" * 100_000 + b"b" * 50_000
    assert [chunk.end_of_stream for chunk in chunks] == [False, False, True]


def test_duplex_sends_the_changed_body():
    session = a_session(headers(DUPLEX), BODY)

    answers = sent(session.step(a_decision(body=b"{}")))

    assert set_headers(answers[0].request_headers.response.header_mutation)["content-length"] == "2"
    assert answers[1].request_body.response.body_mutation.streamed_response.body == b"{}"


def test_duplex_trailers_end_the_body_and_are_answered_after_it():
    session = a_session(headers(DUPLEX), RequestBody(b"{}", end=False))

    question = session.step(RequestTrailers())
    answers = sent(session.step(a_decision()))

    assert [request.body for request in asked(question)] == [b"{}"]
    assert [a.WhichOneof("response") for a in answers] == ["request_headers", "request_body", "request_trailers"]
    assert not answers[1].request_body.response.body_mutation.streamed_response.end_of_stream


def test_an_empty_body_is_still_one_piece_that_ends():
    session = a_session(headers(DUPLEX), RequestBody(b"", end=True))

    answers = sent(session.step(a_decision()))

    assert answers[1].request_body.response.body_mutation.streamed_response.end_of_stream


# ---- streamed


def test_streamed_with_early_body_answers_headers_and_every_chunk_at_the_end():
    session = a_session(headers(BodyMode.STREAMED, early=True), RequestBody(b'{"model"', end=False))

    (request,) = asked(session.step(RequestBody(b':"demo"}', end=True)))
    answers = sent(session.step(a_decision(body=b"new")))

    assert request.body == b'{"model":"demo"}'
    assert [a.WhichOneof("response") for a in answers] == ["request_headers", "request_body", "request_body"]
    assert answers[1].request_body.response.body_mutation.body == b"new"
    assert answers[2].request_body.response.body_mutation.clear_body


def test_streamed_without_early_body_decides_with_the_first_chunks_answer():
    session = a_session()

    first = session.step(headers(BodyMode.STREAMED))
    session.step(RequestBody(b"{", end=False))
    session.step(RequestBody(b"}", end=True))
    answers = sent(session.step(a_decision()))

    assert [a.WhichOneof("response") for a in sent(first)] == ["request_headers"]
    assert [a.WhichOneof("response") for a in answers] == ["request_body", "request_body"]
    assert metadata(answers[0])["envoy.lb"] == {"x-gateway-destination-endpoint": "10.0.0.1:8000,10.0.0.2:8000"}
    assert not answers[1].request_body.response.HasField("body_mutation")


def test_streamed_trailers_end_the_body():
    session = a_session(headers(BodyMode.STREAMED), RequestBody(b"{}", end=False))

    assert len(asked(session.step(RequestTrailers()))) == 1
    assert [a.WhichOneof("response") for a in sent(session.step(a_decision()))] == ["request_body", "request_trailers"]


@pytest.mark.parametrize("mode", [BodyMode.GRPC, 17])
def test_a_body_mode_that_we_do_not_know_says_which_to_use(mode):
    (effect,) = a_session().step(headers(mode))

    assert effect.status == UNIMPLEMENTED
    assert "BUFFERED" in effect.message


# ---- waiting and leaving


def test_a_parked_request_asks_for_patience_and_is_answered_later():
    session = a_session(headers(), BODY)

    patience = sent(session.step(Wait(30)))
    effects = session.step(a_decision())

    assert patience[0].override_message_timeout.seconds == 30
    assert ended(effects) == [OK]


def test_a_half_close_does_not_lose_the_answer():
    session = a_session(headers(), BODY, Wait(1))

    assert session.step(HalfClosed()) == ()
    assert ended(session.step(a_decision())) == [OK]


def test_a_client_that_leaves_withdraws_its_parked_request():
    session = a_session(headers(), BODY, Wait(1))

    assert session.step(Cancelled()) == (Withdraw(),)
    assert session.step(a_decision()) == ()


@pytest.mark.parametrize("before", [[], [headers()], [headers(), BODY, a_decision()]])
def test_a_client_that_leaves_at_another_point_leaves_quietly(before):
    assert a_session(*before).step(Cancelled()) == ()


def test_a_reply_of_the_gateways_own_voids_the_question_and_passes():
    session = a_session(headers(response=DUPLEX), BODY, Wait(1))

    effects = session.step(ResponseHeaders(413, end=False))

    assert effects[0] == Withdraw()
    assert sent(effects)[0].WhichOneof("response") == "response_headers"
    assert session.step(a_decision()) == ()


# ---- the response


@pytest.mark.parametrize("head", [headers(DUPLEX, response=DUPLEX), headers(None), headers(response=DUPLEX)])
def test_a_duplex_response_is_echoed_because_an_early_end_could_lose_it(head):
    session = a_session(head, BODY)

    decided = session.step(a_decision())
    passed = session.step(ResponseHeaders(200, end=False)) + session.step(ResponseBody(b"x", end=False))
    last = session.step(ResponseBody(b"y", end=True))

    assert ended(decided) == []
    assert [answer.WhichOneof("response") for answer in sent(passed)] == ["response_headers", "response_body"]
    assert sent(last)[0].response_body.response.body_mutation.streamed_response.end_of_stream
    assert ended(last) == [OK]


@pytest.mark.parametrize("response", [BodyMode.NONE, BodyMode.STREAMED, BodyMode.BUFFERED])
def test_other_responses_flow_without_us(response):
    session = a_session(headers(DUPLEX, response=response), BODY)

    assert ended(session.step(a_decision())) == [OK]


def test_a_client_that_leaves_during_its_response_is_no_news():
    assert a_session(headers(None), BODY, a_decision()).step(Cancelled()) == ()


def test_a_response_that_comes_first_passes_in_pieces():
    session = a_session()

    head = sent(session.step(ResponseHeaders(200, end=False)))
    body = sent(session.step(ResponseBody(b"x" * 62_001, end=False)))
    effects = session.step(ResponseTrailers())

    assert head[0].WhichOneof("response") == "response_headers"
    assert [len(a.response_body.response.body_mutation.streamed_response.body) for a in body] == [62_000, 1]
    assert sent(effects)[0].WhichOneof("response") == "response_trailers"
    assert ended(effects) == [OK]


def test_a_followed_response_tells_who_served_and_when_it_is_over():
    session = a_session(headers(DUPLEX, response=DUPLEX), BODY, follow=True)

    decided = session.step(a_decision())
    served = session.step(ResponseHeaders(200, end=False, served="10.0.0.2:8000"))
    chunk = session.step(ResponseBody(b"x", end=False))
    last = session.step(ResponseBody(b"", end=True))

    assert ended(decided) == []
    assert served[0] == Served("t-1", "10.0.0.2:8000", 200)
    assert len(sent(chunk)) == 1
    assert last[-2:] == (Released("t-1"), Finish(OK))


@pytest.mark.parametrize("before", [[], [ResponseHeaders(200, end=False)]])
def test_a_followed_response_is_released_when_the_stream_goes(before):
    session = a_session(headers(DUPLEX), BODY, a_decision(), *before, follow=True)

    assert session.step(Cancelled()) == (Released("t-1"),)


# ---- out of turn


@pytest.mark.parametrize(
    "events",
    [
        [BODY],
        [RequestTrailers()],
        [headers(), headers()],
        [headers(), BODY, BODY],
        [headers(), BODY, headers()],
        [a_decision()],
        [headers(), REPLY],
    ],
)
def test_messages_out_of_turn_end_the_stream_with_invalid_argument(events):
    session = a_session(*events[:-1])

    effects = session.step(events[-1])

    assert ended(effects) == [INVALID_ARGUMENT]


# ---- properties

MODES = st.sampled_from([*BodyMode, None])
EVENTS = st.one_of(
    st.builds(headers, MODES, end=st.booleans(), response=MODES.filter(lambda m: m is not None), early=st.booleans()),
    st.builds(RequestBody, st.binary(max_size=30), st.booleans()),
    st.builds(RequestTrailers),
    st.builds(ResponseHeaders, st.integers(0, 599), st.booleans()),
    st.builds(ResponseBody, st.binary(max_size=30), st.booleans()),
    st.builds(ResponseTrailers),
    st.builds(a_decision, body=st.none() | st.binary(max_size=5)),
    st.just(REPLY),
    st.just(Wait(1.0)),
    st.just(HalfClosed()),
    st.just(Cancelled()),
)


@given(st.lists(EVENTS, max_size=12), st.booleans(), st.integers(0, 60))
def test_any_order_never_raises_and_nothing_follows_the_end(events, follow, limit):
    session = Session(limit, follow=follow)
    over = False
    questions = 0

    for event in events:
        effects = session.step(event)
        assert not (over and effects)
        assert all(type(effect) is not Send or pb.ProcessingResponse.FromString(effect.message) for effect in effects)
        questions += sum(type(effect) is Decide for effect in effects)
        over = over or isinstance(event, Cancelled) or any(type(effect) is Finish for effect in effects)
        assert sum(type(effect) is Finish for effect in effects) <= 1
        assert not effects or not any(type(effect) is Finish for effect in effects[:-1])
        assert session.held_bytes <= limit

    assert questions <= 1


@given(
    st.binary(max_size=200),
    st.lists(st.integers(0, 200), max_size=8),
    st.sampled_from([DUPLEX, BodyMode.STREAMED, None]),
)
def test_any_chunking_of_the_body_gives_the_same_question(body, cuts, mode):
    session = a_session(headers(mode))
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    effects = ()

    for start, end in pairwise(edges):
        effects = session.step(RequestBody(body[start:end], end=False))
    effects = session.step(RequestBody(b"", end=True))

    assert [request.body for request in asked(effects)] == [body]


@given(st.lists(EVENTS, max_size=8))
def test_whoever_was_asked_is_answered_or_told_that_it_is_void(events):
    session = Session(1000)
    open_question = False

    for event in [*events, Cancelled()]:
        effects = session.step(event)
        answered = type(event).__name__ in ("Decision", "Reply")
        if any(type(effect) is Decide for effect in effects):
            open_question = True
        elif any(type(effect) is Withdraw for effect in effects) or answered:
            open_question = False

    assert not open_question
