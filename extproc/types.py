"""The values that travel between the picker's rooms. No behaviour, nothing mutable, nothing foreign.

`HttpRequest` is what the protocol hands over, `InferenceRequest` what `requests` makes of it, `Decision` what the
director answers, `Outcome` what Envoy's access log reports when all is over.

Named tuples, not dataclasses: each is made for every request, and a frozen dataclass of this size takes four times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from array import array


class Api(Enum):
    """The client's protocol, by path."""

    CHAT = "chat"  # /v1/chat/completions
    COMPLETIONS = "completions"  # /v1/completions
    EMBEDDINGS = "embeddings"  # /v1/embeddings
    RESPONSES = "responses"  # /v1/responses
    MESSAGES = "messages"  # /v1/messages (Anthropic)
    NATIVE = "native"  # the engine's own POST paths that name a model: /tokenize, /v1/rerank, /v1/score, ...


class Usage(Enum):
    """What is done about `usage` in a streamed answer; the wire words are in `matrixinfer.api.dataplane`."""

    AS_IS = ""  # nothing was added to the request
    HIDE_ALL = "hide-all"
    HIDE_RUNNING = "hide-running"


class HttpRequest(NamedTuple):
    """One HTTP request, complete. Header names are lower case; repeated headers are joined with a comma."""

    method: str
    path: str  # with the query
    headers: Mapping[str, str]
    body: bytes
    subset: tuple[str, ...] | None = None  # "ip:port" that the gateway allows; None: all
    ticket: str = ""  # what the gateway has been told already to call it; "": nothing
    tenant: str = ""  # as the gateway vouches for it; "": nobody known
    key: str = ""  # name of the API key, likewise
    allowed: frozenset[str] | None = None  # models that the caller may see listed; None: all


class InferenceRequest(NamedTuple):
    """One request for a model, decoded no further than placing it needs."""

    id: str  # x-request-id: the client's word, so never a key of ours
    api: Api
    path: str  # without the query
    headers: Mapping[str, str]
    model: str
    stream: bool
    prefix: bytes  # what precedes generation, in the order the engine sees it; conversations extend it at its end
    prompt_tokens: int  # estimate: characters / 4, rounded up; exact for token ids
    max_tokens: int | None  # output bound that the client set
    wants_usage: bool  # the client asked for usage in the stream
    cache_salt: str  # separates prefixes that must not share a cache; "" for none
    body: bytes
    explain: bool = False
    subset: tuple[str, ...] | None = None
    choices: int = 1  # answers that it asks for, to all of its prompts


class Prefix(NamedTuple):
    """What a prompt's cached beginning is looked up by: the hashes of its blocks, each covering all before it."""

    hashes: Sequence[int]
    block_tokens: int  # tokens in a block; about, where blocks are cut from text
    tokens: int | None = None  # of the whole prompt, counted; None: nobody counted them
    exact: bool = False  # blocks of token ids, as engines cut them
    lasting: int | None = None  # blocks that the conversation's next turn has, too; None: all
    words: array[int] | None = None  # the hashes once more, eight bytes each, where somebody has them so


class Unread(NamedTuple):
    """A prefix whose text has to be tokenized first, which takes long. One of the last two has to be called."""

    work: Callable[[], Any] | Call  # beside the loop, or an engine's
    read: Callable[[Any], Prefix]  # takes what came of it
    otherwise: Callable[[], Prefix]  # where there is no time for it


class Decision(NamedTuple):
    """Where a request goes, and what is changed on the way."""

    ticket: str  # unique in the life of this picker; settlement names it
    endpoints: tuple[str, ...]  # "ip:port", best first; Envoy walks the list on failure
    target: str  # ModelServer "namespace/name"
    body: bytes | None = None  # None: as it came
    usage: Usage = Usage.AS_IS
    explanation: str = ""  # compact JSON for a client that asked
    headers: tuple[tuple[str, str], ...] = ()  # set on the request beside the picker's own
    told: tuple[tuple[str, str], ...] = ()  # set on the answer: what limits leave
    provider: str = ""  # for an external provider: how it is spoken to, in the words of `providers.note`
    names: tuple[tuple[str, str], ...] = ()  # who else may get the body, and knows the model by another name


class Reply(NamedTuple):
    """An answer that the picker gives itself: `/v1/models`, a rejection."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    details: str = ""  # response code details in Envoy's log


class Aside(NamedTuple):
    """Work that takes long and touches no state of ours: it is done beside the loop."""

    work: Callable[[], Any]  # its value or its exception comes back into the story


class Called(NamedTuple):
    """What came of a call."""

    status: int = 0  # HTTP status; 0: no answer
    body: bytes = b""
    fault: str = ""  # why there is no (whole) answer, as a stable word


class Call(NamedTuple):
    """One HTTP exchange with an engine, before the request is sent on; comes back as `Called`."""

    method: str
    url: str
    timeout_s: float
    headers: Mapping[str, str] = {}
    body: bytes = b""
    # Set: the story goes on as soon as the call is sent (`Called` without status), and this is told how it ended; what it
    # returns is called then. The call is not withdrawn with its story.
    ended: Callable[[Called], Call | None] | None = None
    again_s: tuple[float, ...] = ()  # for such a following call: it is repeated after each of these pauses


class Asked(NamedTuple):
    """One limit, as it is asked of a shared counter."""

    key: str
    amount: int  # that the request takes
    limit: int
    rate: float  # per second
    shadow: bool
    level: float  # what is used, for a counter that has lost its memory
    untold: int = 0  # of what is used, which the counter has not been told yet


class Take(NamedTuple):
    """Limits to be charged where several pickers count together; comes back as `Taken`, or is answered with Busy."""

    store: str  # address of the counter
    route: str
    ticket: str
    limits: tuple[Asked, ...]


class Taken(NamedTuple):
    """What became of it."""

    admitted: bool
    pickers: int  # that count there
    over: tuple[bool, ...]
    used: tuple[float, ...]


class Spent(NamedTuple):
    """What a request really took of shared limits; told when it is over, and not waited for."""

    store: str
    route: str
    ticket: str
    amounts: tuple[tuple[str, int, float, int], ...]  # key, amount, rate, what the counter is known to have reserved
    alone: bool = False  # it was admitted without the counter


class Turn(NamedTuple):
    """A place in a queue: `then` calls what it is given once the wait is over, with None, or with the refusal."""

    then: Callable[[Callable[[Exception | None], None]], None]


Errand = Aside | Call | Take | Turn
# One request's story: it yields an errand where it needs the world, and goes on with what came of it. An errand that
# cannot be run now is answered with `errors.Busy`; closing the story withdraws it.
Story = Generator[Errand, Any, Decision | Reply]


class Outcome(NamedTuple):
    """The end of one request as Envoy saw it: one per request, whatever broke. Times in seconds."""

    ticket: str  # "" if the picker never decided it
    request_id: str
    model: str  # as the engine reports it; "" if unknown
    endpoint: str  # "ip:port" that answered, "" if none
    status: int  # HTTP status sent to the client; 0 if none was
    flags: tuple[str, ...]  # Envoy's response flags, short form: "DC", "UC", "UF", ...
    details: str  # Envoy's response code details
    attempts: int
    started_at: float  # seconds since the epoch
    duration_s: float
    first_token_s: float | None  # from the request's start to the first chunk of the body
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    request_bytes: int = 0
    response_bytes: int = 0
    placed: bool = True  # False: the decision, if there was one, did not reach Envoy
    sent_s: float | None = None  # from the request's start until the endpoint had all of it; None: it never had

    @property
    def complete(self) -> bool:
        """True if the client got the whole answer and it was a success."""
        return 200 <= self.status < 300 and not self.flags  # noqa: PLR2004 - HTTP's success class
