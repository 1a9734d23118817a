"""HTTP/1.1 requests out of bytes: a pure, incremental parser.

It takes what a careful server must (any splitting, pipelining, chunked bodies with extensions and trailers, `Expect`) and
refuses what could be read in two ways (both lengths, differing lengths, folded or malformed headers). Sockets and answers
are `server`'s.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

MAX_HEAD_BYTES = 64 * 1024
_MAX_CHUNK_LINE = 1024
_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


class BadRequest(Exception):
    """The bytes are no request we may act on; `status` is what to answer before closing."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Request:
    """One request. `path` is without the query; header names are lower case, values latin-1 text."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    keep_alive: bool
    http_1_0: bool
    body: bytes = b""


class _State(Enum):
    HEAD = auto()
    LENGTH = auto()
    CHUNK_LINE = auto()
    CHUNK_DATA = auto()
    CHUNK_END = auto()
    TRAILER = auto()


@dataclass(slots=True)
class Parser:
    """Bytes in by `feed`, requests out by `next`; what follows a request stays until `next` is called again."""

    max_body_bytes: int
    expects_continue: bool = False
    _buffer: bytearray = field(default_factory=bytearray)
    _state: _State = _State.HEAD
    _request: Request | None = None
    _missing: int = 0
    _body: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> None:
        """Take bytes from the wire."""
        self._buffer += data

    @property
    def idle(self) -> bool:
        """Nothing of a request has been read."""
        return self._state is _State.HEAD and not self._buffer

    def next(self) -> Request | None:
        """Give the next whole request, or None until more bytes come.

        Raises BadRequest. `expects_continue` turns true when the client waits for leave to send its body.
        """
        while True:
            match self._state:
                case _State.HEAD:
                    if not self._read_head():
                        return None
                case _State.LENGTH:
                    if len(self._buffer) < self._missing:
                        return None
                    body = bytes(self._buffer[: self._missing])
                    del self._buffer[: self._missing]
                    return self._finish(body)
                case _State.TRAILER:
                    line = self._line()
                    if line is None:
                        return None
                    if not line:
                        body = bytes(self._body)
                        self._body = bytearray()
                        return self._finish(body)
                case _:
                    if not self._read_chunk():
                        return None

    def _finish(self, body: bytes) -> Request:
        request = self._request
        assert request is not None  # noqa: S101 (every state but HEAD has one)
        request.body = body
        self._request = None
        self._state = _State.HEAD
        self.expects_continue = False
        return request

    def _read_head(self) -> bool:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # empty lines before a request are allowed
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(buffer) >= MAX_HEAD_BYTES:
                raise BadRequest("request head too large", 431)
            return False
        request = parse_head(bytes(buffer[:end]))
        del buffer[: end + 4]
        self._request = request
        headers = request.headers
        encoding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if encoding is not None:
            if length is not None:
                raise BadRequest("both transfer-encoding and content-length")
            if encoding.lower() != "chunked" or request.http_1_0:
                raise BadRequest("transfer-encoding must be chunked")
            self._state = _State.CHUNK_LINE
        else:
            self._missing = _content_length(length)
            if self._missing > self.max_body_bytes:
                raise BadRequest("request body too large", 413)
            self._state = _State.LENGTH
        if headers.get("expect", "").lower() == "100-continue" and not request.http_1_0:
            self.expects_continue = encoding is not None or len(buffer) < self._missing
        return True

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_HEAD_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_HEAD_BYTES:
                raise BadRequest("line too long")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_chunk(self) -> bool:
        match self._state:
            case _State.CHUNK_LINE:
                line = self._line()
                if line is None:
                    return False
                size = line.partition(b";")[0].strip()
                if len(line) > _MAX_CHUNK_LINE or not size or size.strip(b"0123456789abcdefABCDEF"):
                    raise BadRequest("malformed chunk size")
                self._missing = int(size, 16)
                if len(self._body) + self._missing > self.max_body_bytes:
                    raise BadRequest("request body too large", 413)
                self._state = _State.CHUNK_DATA if self._missing else _State.TRAILER
            case _State.CHUNK_DATA:
                if not self._buffer:
                    return False
                data = self._buffer[: self._missing]
                del self._buffer[: self._missing]
                self._body += data
                self._missing -= len(data)
                if not self._missing:
                    self._state = _State.CHUNK_END
            case _:
                if len(self._buffer) < len(b"\r\n"):
                    return False
                if self._buffer[:2] != b"\r\n":
                    raise BadRequest("chunk longer than announced")
                del self._buffer[:2]
                self._state = _State.CHUNK_LINE
        return True


def parse_head(head: bytes) -> Request:
    """Request line and headers, without the empty line that ends them."""
    lines = head.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not parts[0] or not _TOKEN.issuperset(parts[0]) or not parts[1]:  # noqa: PLR2004 (method, target, version)
        raise BadRequest("malformed request line")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadRequest("unsupported HTTP version", 505)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or not _TOKEN.issuperset(name) or b"\0" in value or b"\n" in value or b"\r" in value:
            raise BadRequest("malformed header")
        key = name.decode("ascii").lower()
        text = value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key == "content-length" and headers[key] != text:
                raise BadRequest("differing content-lengths")
            text = headers[key] if key == "content-length" else f"{headers[key]}, {text}"
        headers[key] = text
    path, _, query = target.decode("latin-1").partition("?")
    if not path.startswith("/") and path != "*":
        path = "/" + path.partition("://")[2].partition("/")[2]  # absolute form, as a proxy is asked
    http_1_0 = version == b"HTTP/1.0"
    connection = headers.get("connection", "").lower()
    keep_alive = "keep-alive" in connection if http_1_0 else "close" not in connection
    return Request(
        method=method.decode("ascii"), path=path, query=query, headers=headers, keep_alive=keep_alive, http_1_0=http_1_0
    )


def _content_length(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 18:  # noqa: PLR2004 (fits 64 bits)
        raise BadRequest("malformed content-length")
    return int(text)
