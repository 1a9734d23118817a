"""How a prompt's KV cache travels from the engine that computes it to the engine that answers: the engines' wire fields.

A request served in two legs is two bodies made of one: `Legs.prefill` is sent to the prefill engine, `Legs.decode` to the
decode engine, with what the former answered. The picker uses it where the gateway performs the prefill leg, the proxy in
a decode pod where that does. Pure: bodies in, bodies out. Values keep their bytes; only keys at the top are changed.

A prefill leg makes one token, which is thrown away: `max_tokens` 1, and `min_tokens` 1 for vLLM, so that the leg ends for
its length and never at a stop: only such an end keeps the blocks for the other side. What a client sends in the
connectors' own fields never reaches an engine: it would choose whom the engine talks to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

Name = Literal["http", "lmcache", "nixl", "mooncake", "sglang"]

PREFILLER: Final = "x-prefiller-host-port"  # request header: "ip:port[,ip:port...]" of the prefill engines, best first
# Other headers of that protocol, which no client may set.
ENCODERS: Final = "x-encoder-hosts-ports"
DATA_PARALLEL: Final = "x-data-parallel-host-port"
CACHE_SOURCE: Final = "x-kv-cache-source-host-port"
HEADERS: Final = (PREFILLER, ENCODERS, DATA_PARALLEL, CACHE_SOURCE)
RANK: Final = "x-data-parallel-rank"  # to vLLM: which data-parallel engine behind the port is to take the request
BOOTSTRAP_PORT: Final = 8998  # Mooncake's in vLLM, and SGLang's

_PARAMS: Final = "kv_transfer_params"
_OWN: Final = (_PARAMS, "bootstrap_host", "bootstrap_port", "bootstrap_room")
_OF_STREAMS: Final = ("stream", "stream_options")
_ONE: Final = msgspec.Raw(b"1")
_FALSE: Final = msgspec.Raw(b"false")
_NULL: Final = b"null"
_ROOM_BITS: Final = 63

Fields = dict[str, msgspec.Raw]

_read: Final = msgspec.json.Decoder(Fields).decode
_encode: Final = msgspec.json.encode
_NIXL_PREFILL: Final = msgspec.Raw(
    _encode(
        {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
    )
)


class NotTransferable(Exception):
    """The request, or the prefill engine's answer, does not allow two legs; the message is one stable word."""


class _Answer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw()


class _Engine(msgspec.Struct):
    engine_id: str


_answer: Final = msgspec.json.Decoder(_Answer).decode
_engines: Final = msgspec.json.Decoder(dict[str, _Engine]).decode


@dataclass(frozen=True, slots=True)
class Engine:
    """A prefill engine as Mooncake's bootstrap server knows it."""

    id: str
    rank: int | None = None  # the data-parallel rank to ask for; None: there is one engine


@dataclass(frozen=True, slots=True)
class Leg:
    """One try with one prefill engine."""

    host: str  # of the prefill engine
    key: str  # names the transfer; no two tries have the same
    room: int = 0  # SGLang: 63 random bits
    bootstrap_port: int = BOOTSTRAP_PORT
    engine: Engine | None = None  # Mooncake

    @property
    def bootstrap(self) -> str:
        """URL of the prefill engine's bootstrap server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.bootstrap_port}"


def connector(engine: str, kind: str | None) -> Name:
    """Return the connector of a ModelServer: what `kvConnector` names; left out, SGLang's own or none at all."""
    if kind is None:
        return "sglang" if engine == "SGLang" else "http"
    if kind in ("lmcache", "nixl", "mooncake"):
        return kind  # type: ignore[return-value] # one of the literals, as the line above says
    return "http"


def concurrent(name: Name) -> bool:
    """Tell whether both legs run at once: the prefill engine waits for the decode engine to take the blocks."""
    return name == "sglang"


def asks_bootstrap(name: Name) -> bool:
    """Tell whether the prefill engine's bootstrap server is asked for its engine id first."""
    return name == "mooncake"


def engine(answer: bytes, key: int) -> Engine:
    """Return the engine to use, from a bootstrap server's answer; of several ranks the one that `key` falls on."""
    try:
        known = _engines(answer)
    except msgspec.DecodeError as error:
        raise NotTransferable("bad-bootstrap") from error
    if not known:
        raise NotTransferable("no-engine")
    ranks = sorted(known, key=lambda rank: (len(rank), rank))
    rank = ranks[key % len(ranks)]
    return Engine(known[rank].engine_id, int(rank) if len(ranks) > 1 and rank.isdigit() else None)


class Legs:
    """The bodies of one request's legs."""

    def __init__(self, name: Name, body: bytes, *, vllm: bool = True) -> None:
        """Take the client's body, a JSON object. Raises NotTransferable for a request that only one engine can serve."""
        self._name = name
        self._vllm = vllm
        self._fields = _read(body)
        _check(self._fields)

    def prefill(self, leg: Leg) -> bytes:
        """Return the body for the prefill engine."""
        fields = {key: value for key, value in self._fields.items() if key not in _OWN and key not in _OF_STREAMS}
        fields["stream"] = _FALSE
        fields["max_tokens"] = _ONE
        if "max_completion_tokens" in fields:
            fields["max_completion_tokens"] = _ONE
        if self._vllm or "min_tokens" in fields:
            fields["min_tokens"] = _ONE
        if self._name == "nixl":
            fields[_PARAMS] = _NIXL_PREFILL
        elif self._name == "mooncake":
            fields[_PARAMS] = _raw({"do_remote_decode": True, "do_remote_prefill": False, "transfer_id": leg.key})
        elif self._name == "sglang":
            fields |= _room(leg)
        return _encode(fields)

    def headers(self, leg: Leg) -> dict[str, str]:
        """Return what the prefill leg's headers hold beside the client's."""
        rank = leg.engine.rank if leg.engine is not None else None
        return {} if rank is None else {RANK: str(rank)}

    def decode(self, leg: Leg, answer: bytes) -> bytes:
        """Return the body for the decode engine; `answer` is the prefill engine's (none with concurrent legs).

        Raises NotTransferable where the answer does not say what the decode engine has to know.
        """
        fields = self._mine()
        if self._name == "nixl":
            fields[_PARAMS] = _params(answer)
        elif self._name == "mooncake":
            if leg.engine is None:
                raise NotTransferable("no-engine")
            fields[_PARAMS] = _raw(
                {
                    "do_remote_decode": False,
                    "do_remote_prefill": True,
                    "transfer_id": leg.key,
                    "remote_bootstrap_addr": leg.bootstrap,
                    "remote_engine_id": leg.engine.id,
                }
            )
        elif self._name == "sglang":
            fields |= _room(leg)
            fields["rid"] = _raw(leg.key)  # by which the request can be ended if its prefill fails
        return _encode(fields)

    def alone(self) -> bytes:
        """Return the body for an engine that computes all of it."""
        return _encode(self._mine())

    def _mine(self) -> Fields:
        return {key: value for key, value in self._fields.items() if key not in _OWN}


def stripped(body: bytes) -> bytes | None:
    """Return the body without the connectors' fields; None where there are none."""
    if not any(name.encode() in body for name in ("kv_transfer_params", "bootstrap_")):
        return None
    fields = _read(body)
    kept = {key: value for key, value in fields.items() if key not in _OWN}
    return None if len(kept) == len(fields) else _encode(kept)


def _check(fields: Mapping[str, msgspec.Raw]) -> None:
    """Refuse what one transfer of one prompt's blocks cannot serve."""
    for key in ("n", "best_of"):
        if key in fields and bytes(fields[key]) not in (_NULL, b"1"):
            raise NotTransferable("several-answers")
    if _given(fields, "use_beam_search"):
        raise NotTransferable("several-answers")
    prompt = bytes(fields.get("prompt", b""))
    if prompt[:1] == b"[" and prompt[1:].lstrip()[:1] in (b'"', b"["):
        raise NotTransferable("several-prompts")
    if _given(fields, "prompt_embeds"):
        raise NotTransferable("no-tokens")
    if _given(fields, "prompt_logprobs") or _given(fields, "echo"):
        raise NotTransferable("prompt-logprobs")  # each needs the prompt computed where the answer is made


def _given(fields: Mapping[str, msgspec.Raw], key: str) -> bool:
    return bytes(fields.get(key, _NULL)) not in (_NULL, b"false")


def _params(answer: bytes) -> msgspec.Raw:
    try:
        params = _answer(answer).kv_transfer_params
    except msgspec.DecodeError as error:
        raise NotTransferable("bad-answer") from error
    if bytes(params)[:1] != b"{":
        raise NotTransferable("no-transfer")  # the engine runs without the connector
    return params


def _room(leg: Leg) -> Fields:
    return {
        "bootstrap_host": _raw(leg.host),
        "bootstrap_port": _raw(leg.bootstrap_port),
        "bootstrap_room": _raw(leg.room % (1 << _ROOM_BITS)),
    }


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(_encode(value))
