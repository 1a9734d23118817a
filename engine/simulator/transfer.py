"""KV transfer between simulated engines, in the fields and with the failures of the real ones.

`Transfers` stands on both sides. An engine that prefills keeps a finished prompt's blocks until the other side has taken
them or their lease runs out; an engine that decodes asks for them over the side channel before its request enters the
batch. The side channel is HTTP on a port of its own: vLLM's NIXL port (5600), or the bootstrap port (8998) of Mooncake and
SGLang. What travels is how many tokens are computed; the memory is emulated in `batch`.

NIXL: the prefill's answer says where the blocks are. Mooncake: the caller names the transfer, and the bootstrap server
(`/query`) tells the engine's id. SGLang: both requests carry a room, the prefill answers when the blocks are taken.
Blocks that are gone fail the request, or are computed anew, as `kv_load_failure_policy` says (vLLM's default: fail).
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import orjson

from engine.simulator import batch, bodies, errors, http1, kvcache, server
from engine.simulator.bodies import Body

Kind = Literal["NixlConnector", "MooncakeConnector", "LMCacheConnectorV1", "SGLang"]
_NIXL_PORT, _BOOTSTRAP_PORT = 5600, 8998
_WAIT_S = 300.0  # for a prefill that is yet to come


class BadConfig(ValueError):
    """A transfer configuration that the engine would refuse."""


class Gone(Exception):
    """The blocks cannot be had."""


@dataclass(frozen=True, slots=True)
class Config:
    """What `--kv-transfer-config` or `--disaggregation-mode` says."""

    kind: Kind
    role: str = "kv_both"
    recompute: bool = False
    lease_s: float = 30.0
    port: int = _NIXL_PORT
    tokens_per_s: float = 1_000_000.0

    @property
    def prefills(self) -> bool:
        """Whether others take blocks from this engine."""
        return self.kind != "LMCacheConnectorV1" and self.role in ("kv_both", "kv_producer")


def from_json(text: str, *, port: int | None, tokens_per_s: float) -> Config:
    """Read vLLM's flag. Raises BadConfig."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadConfig(f"no JSON: {error}") from error
    kinds: dict[str, Kind] = {
        "NixlConnector": "NixlConnector",
        "MooncakeConnector": "MooncakeConnector",
        "LMCacheConnectorV1": "LMCacheConnectorV1",
    }
    kind = kinds.get(str(given.get("kv_connector"))) if isinstance(given, dict) else None
    if kind is None:
        raise BadConfig(f"kv_connector must be one of {', '.join(kinds)}")
    role, policy = given.get("kv_role"), given.get("kv_load_failure_policy", "fail")
    if role not in ("kv_both", "kv_producer", "kv_consumer"):
        raise BadConfig("kv_role must be kv_both, kv_producer or kv_consumer")
    if policy not in ("fail", "recompute"):
        raise BadConfig("kv_load_failure_policy must be fail or recompute")
    extra = given.get("kv_connector_extra_config") or {}
    default = _NIXL_PORT if kind == "NixlConnector" else _BOOTSTRAP_PORT
    return Config(
        kind=kind,
        role=role,
        recompute=policy == "recompute",
        lease_s=float(extra.get("kv_lease_duration", 30)),
        port=default if port is None else port,
        tokens_per_s=tokens_per_s,
    )


def for_sglang(mode: str, *, port: int | None, tokens_per_s: float) -> Config:
    """Give what SGLang's flags mean."""
    role = "kv_producer" if mode == "prefill" else "kv_consumer"
    return Config("SGLang", role, port=_BOOTSTRAP_PORT if port is None else port, tokens_per_s=tokens_per_s)


@dataclass(slots=True)
class Offer:
    """A finished prompt whose blocks wait to be taken."""

    tokens: int
    sequence: batch.Sequence
    expiry: asyncio.TimerHandle | None = None
    taken: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Want:
    """What a request says of transfers: to offer its blocks under `key`, to take those of `source`, or neither."""

    key: str | None = None
    source: str | None = None  # URL that gives the blocks
    cached: int | None = None  # what the prefill engine reported as cached
    rid: str | None = None


NOTHING = Want()


class Transfers:
    """One engine's transfers. On the loop only."""

    def __init__(self, config: Config, blocks: kvcache.Blocks, host: str) -> None:
        self.config = config
        self.engine_id = secrets.token_hex(16)
        self.counts = {"offered": 0, "taken": 0, "expired": 0, "received": 0, "failed": 0}
        self._blocks = blocks
        self._host = host
        self._offers: dict[str, Offer] = {}
        self._awaited: dict[str, list[server.Reply]] = {}
        self._tasks: dict[asyncio.Task[None], tuple[str | None, Callable[[int | None], None]]] = {}
        self._server: server.Server | None = None

    async def listen(self) -> None:
        """Open the side channel, where others take blocks from this engine."""
        if self.config.prefills:
            self._server = server.Server(self._side, lambda _: None, max_body_bytes=1 << 16, keep_alive_s=0)
            await self._server.listen(self._host, self.config.port)

    async def close(self) -> None:
        """Close it."""
        for task in list(self._tasks):
            task.cancel()
        if self._server is not None:
            await self._server.drain(0)

    @property
    def port(self) -> int:
        """Of the side channel."""
        return self.config.port if self._server is None else self._server.port

    def state(self) -> dict[str, int]:
        """Give what has been counted, and where the side channel is."""
        return {**self.counts, "kept": len(self._offers), "port": self.port}

    # ---- what a request asks for

    def wanted(self, body: Body, request_id: str) -> Want:
        """Read a request's fields. ApiError where the engine would refuse them."""
        if self.config.kind == "SGLang":
            return self._wanted_by_room(body)
        params = body.get("kv_transfer_params")
        if params is None:
            return NOTHING
        if not isinstance(params, dict):
            raise errors.invalid("dict_type", "body.kv_transfer_params", "Input should be a valid dictionary", params)
        if params.get("do_remote_decode") and self.config.prefills:
            key = f"{request_id}-0-{secrets.token_hex(4)}"
            return Want(key=key if self.config.kind == "NixlConnector" else params.get("transfer_id"))
        if params.get("do_remote_prefill"):
            return self._wanted_from(params)
        return NOTHING

    def _wanted_from(self, params: dict[str, Any]) -> Want:
        cached = params.get("remote_prefill_cached_tokens")
        try:
            if self.config.kind == "NixlConnector":
                if not params["remote_block_ids"]:
                    return NOTHING
                base = f"http://{params['remote_host']}:{params['remote_port']}"
                query = {"key": params["remote_request_id"], "engine": params["remote_engine_id"]}
            elif self.config.kind == "MooncakeConnector":
                base = str(params["remote_bootstrap_addr"])
                query = {"key": params["transfer_id"], "engine": params["remote_engine_id"], "wait": "1"}
            else:
                return NOTHING
        except KeyError:
            return NOTHING  # as the engines: a warning, and the prompt is computed here
        return Want(source=f"{base}/blocks?{urlencode(query)}", cached=cached if type(cached) is int else None)

    def _wanted_by_room(self, body: Body) -> Want:
        room, rid = bodies.integer(body, "bootstrap_room"), bodies.text(body, "rid")
        if room is None:
            raise errors.ApiError(400, "Disaggregated request received without bootstrap room id.")
        if self.config.prefills:
            return Want(key=str(room), rid=rid)
        host, port = bodies.text(body, "bootstrap_host"), bodies.integer(body, "bootstrap_port") or _BOOTSTRAP_PORT
        if not host:
            raise errors.ApiError(400, "Disaggregated request received without bootstrap host.")
        shown = f"[{host}]" if ":" in host else host
        return Want(source=f"http://{shown}:{port}/blocks?{urlencode({'key': room, 'wait': '1'})}", rid=rid)

    # ---- the prefill side

    def offer(
        self, want: Want, sequence: batch.Sequence, taken: Callable[[], None] | None = None
    ) -> dict[str, Any] | None:
        """Keep a finished prompt's blocks for the other side; what the answer says of it."""
        if want.key is None:
            return None
        offer = Offer(sequence.prompt_tokens, sequence, taken=taken)
        blocks = list(sequence.blocks)
        self._offers[want.key] = offer
        offer.expiry = asyncio.get_running_loop().call_later(self.config.lease_s, self._expire, want.key)
        self.counts["offered"] += 1
        for reply in self._awaited.pop(want.key, ()):
            self._give(reply, want.key)
        if self.config.kind != "NixlConnector":
            return None
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [blocks],
            "remote_engine_id": self.engine_id,
            "remote_request_id": want.key,
            "remote_host": self._host,
            "remote_port": self.port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": sequence.prompt_tokens,
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached_tokens,
        }

    def _side(self, request: http1.Request, reply: server.Reply) -> None:
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        if request.path == "/query":
            entry = {"engine_id": self.engine_id, "worker_addr": {"0": {"0": f"tcp://{self._host}:{self.port}"}}}
            reply.send(200, orjson.dumps({"0": entry}))
        elif request.path != "/blocks" or "key" not in query:
            reply.send(404, b"{}")
        elif query.get("engine", self.engine_id) != self.engine_id:
            reply.send(404, b'{"error":"another engine"}')
        elif query["key"] in self._offers:
            self._give(reply, query["key"])
        elif "wait" in query:
            self._awaited.setdefault(query["key"], []).append(reply)
            reply.gone = lambda: self._forget(query["key"], reply)
        else:
            reply.send(404, b'{"error":"no such blocks"}')

    def _forget(self, key: str, reply: server.Reply) -> None:
        waiting = self._awaited.get(key, [])
        if reply in waiting:
            waiting.remove(reply)
        if not waiting:
            self._awaited.pop(key, None)

    def _give(self, reply: server.Reply, key: str) -> None:
        offer = self._offers.get(key)
        if offer is None:
            reply.send(404, b"{}")
            return
        self._release(key)
        self.counts["taken"] += 1
        reply.send(200, orjson.dumps({"tokens": offer.tokens}))
        if offer.taken is not None:
            offer.taken()

    def _expire(self, key: str) -> None:
        self.counts["expired"] += 1
        self._release(key)

    def _release(self, key: str) -> None:
        offer = self._offers.pop(key)
        if offer.expiry is not None:
            offer.expiry.cancel()
        self._blocks.release(offer.sequence.blocks)
        offer.sequence.blocks = []

    # ---- the decode side

    def receive(self, want: Want, then: Callable[[int | None], None]) -> Callable[[], None]:
        """Fetch the blocks, then tell how many tokens came, None if the request fails; returns what gives it up."""
        task = asyncio.ensure_future(self._receive(want, then))
        self._tasks[task] = want.rid, then
        task.add_done_callback(lambda done: self._tasks.pop(done, None))

        def give_up() -> None:
            task.cancel()

        return give_up

    def abort(self, rid: str) -> bool:
        """End the requests of this name that wait for blocks."""
        found = [(task, then) for task, (name, then) in self._tasks.items() if name == rid]
        for task, then in found:
            del self._tasks[task]
            if task.cancel():  # one that has not begun would not notice
                self.counts["failed"] += 1
                then(None)
        return bool(found)

    async def _receive(self, want: Want, then: Callable[[int | None], None]) -> None:
        try:
            async with asyncio.timeout(_WAIT_S):
                tokens = await _fetched(want.source or "")
                await asyncio.sleep(tokens / self.config.tokens_per_s)
        except (Gone, OSError, TimeoutError, ValueError):
            self.counts["failed"] += 1
            then(0 if self.config.recompute else None)
        else:
            self.counts["received"] += 1
            then(tokens)


async def _fetched(url: str) -> int:
    """Ask for blocks; how many tokens they hold. Raises Gone, OSError."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET {parts.path}?{parts.query} HTTP/1.0\r\nhost: {parts.netloc}\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise Gone
    return int(orjson.loads(body)["tokens"])
