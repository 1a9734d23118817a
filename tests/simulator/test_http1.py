import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.simulator import http1

LENGTH = b"POST /v1/chat/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;name=value\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
)
BARE = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def read_all(parser: http1.Parser, data: bytes) -> list[http1.Request]:
    parser.feed(data)
    requests = []
    while (request := parser.next()) is not None:
        requests.append(request)
    return requests


def parse(data: bytes) -> list[http1.Request]:
    return read_all(http1.Parser(max_body_bytes=1000), data)


def outcome(data: bytes) -> int:
    try:
        parse(data)
    except http1.BadRequest as error:
        return error.status
    return 200


def test_a_request_is_read_whole():
    (request,) = parse(LENGTH)

    assert (request.method, request.path, request.query) == ("POST", "/v1/chat/completions", "a=b")
    assert request.headers == {"host": "x", "x-two": "1, 2", "content-length": "5"}
    assert request.body == b"hello"
    assert request.keep_alive


@given(st.lists(st.sampled_from([LENGTH, CHUNKED, BARE]), min_size=1, max_size=4), st.data())
def test_any_splitting_of_pipelined_requests_gives_the_same(parts: list[bytes], data: st.DataObject):
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser = http1.Parser(max_body_bytes=1000)
    requests = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        requests += read_all(parser, stream[begin:end])

    assert requests == parse(stream)
    assert [request.body for request in requests] == [
        {LENGTH: b"hello", CHUNKED: b"abc0123456789", BARE: b""}[part] for part in parts
    ]
    assert parser.idle


@given(st.binary(max_size=300))
def test_any_bytes_are_requests_or_refused(data: bytes):
    assert outcome(data) in (200, 400, 413, 431, 505)


@given(st.integers(0, len(CHUNKED) - 1), st.integers(0, 255))
def test_one_wrong_byte_never_breaks_the_parser(place: int, byte: int):
    data = CHUNKED[:place] + bytes([byte]) + CHUNKED[place + 1 :]
    assert outcome(data) in (200, 400, 413, 431, 505)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na b: c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\r\n folded\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ncontent-length: 1001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfff\r\n", 413),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000, 431),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(data: bytes, status: int):
    with pytest.raises(http1.BadRequest) as refused:
        parse(data)

    assert refused.value.status == status


@pytest.mark.parametrize(
    ("head", "keep"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_keep_alive_follows_version_and_connection(head: bytes, *, keep: bool):
    assert parse(head)[0].keep_alive is keep


def test_leave_to_send_the_body_is_asked_for_only_while_it_is_missing():
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    waiting, complete = http1.Parser(max_body_bytes=10), http1.Parser(max_body_bytes=10)

    assert read_all(waiting, head) == []
    assert waiting.expects_continue
    assert read_all(complete, head + b"ab")[0].body == b"ab"
    assert not complete.expects_continue
