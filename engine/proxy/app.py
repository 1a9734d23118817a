"""Requests in, legs out, the decode engine's answer back.

One leg after the other: the prompt is computed first, then the engine gets the request with the prefill's answer. SGLang's
engines want both at once: the prefill waits until its blocks are taken. A prefill that fails leaves no decode waiting: its
request is given up, the next prefill engine is asked, and in the end the engine computes the prompt itself, if it may.
"""

import asyncio
import ipaddress
import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiohttp
import orjson
from aiohttp import web
from multidict import CIMultiDict

from matrixinfer.api import transfer

_log = logging.getLogger(__name__)
_SPLIT: Final = ("/v1/chat/completions", "/v1/completions")
_LARGEST: Final = 256 << 20
_CONNECT_S: Final = 2.0
_QUERY_S: Final = 5.0
_OK: Final = range(200, 300)
_ENGINES_FAULT: Final = 500
_CLIENTS_FAULT: Final = range(400, 500)
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_NOT_TO_ENGINES: Final = _HOP_BY_HOP | {"host", "content-length", "expect", *transfer.HEADERS}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Settings:
    """What the flags say."""

    engine: str  # URL
    connector: transfer.Name
    bootstrap_port: int = transfer.BOOTSTRAP_PORT
    timeout_s: float = 45.0
    tries: int = 2
    alone: bool = True  # the engine may compute prompts itself
    allowed: tuple[Network, ...] = ()


class _Failed(Exception):
    """A prefill leg did not do; the message is one stable word."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        """Name it; `final`: another prefill engine would say the same."""
        super().__init__(why)
        self.final = final


class Proxy:
    """Serves one engine."""

    def __init__(self, settings: Settings) -> None:
        self.counts: Counter[str] = Counter()  # of requests with the header, by what became of their prefill leg
        self._settings = settings
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections to engines."""
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),  # vLLM closes idle ones after 5 s
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        if self._client is not None:
            await self._client.close()

    def application(self) -> web.Application:
        """Return what serves all paths."""
        made = web.Application(client_max_size=_LARGEST)
        made.router.add_get("/proxy/state", self._state)
        made.router.add_route("*", "/{path:.*}", self._handle)
        return made

    async def _state(self, _request: web.Request) -> web.Response:
        return web.json_response({"prefill_legs": dict(self.counts)})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        prefillers = _prefillers(request)
        if not prefillers or request.method != "POST" or request.path not in _SPLIT:
            return await self._pass(request, body)
        try:
            legs = transfer.Legs(self._settings.connector, body, vllm=self._settings.connector != "sglang")
        except (transfer.NotTransferable, ValueError) as error:
            self.counts[str(error) if isinstance(error, transfer.NotTransferable) else "body"] += 1
            return await self._pass(request, body)
        refused = [address for address in prefillers if not self._allows(address)]
        if refused:
            return _error(403, f"{refused[0]} is no prefill engine that this proxy may ask (--prefillers)")
        return await self._split(request, legs, prefillers[: self._settings.tries])

    def _allows(self, address: str) -> bool:
        if not self._settings.allowed:
            return True
        try:
            host = ipaddress.ip_address(_host(address))
        except ValueError:
            return False
        return any(host in network for network in self._settings.allowed)

    async def _split(self, request: web.Request, legs: transfer.Legs, prefillers: list[str]) -> web.StreamResponse:
        until = time.monotonic() + self._settings.timeout_s
        why = "no-prefill"
        for address in prefillers:
            leg = transfer.Leg(
                host=_host(address),
                key=f"xfer-{secrets.token_hex(8)}",
                room=secrets.randbits(63),
                bootstrap_port=self._settings.bootstrap_port,
            )
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                    answer = await self._legs(request, legs, address, leg)
            except _Failed as error:
                why = str(error)
                if error.final:
                    break
            except TimeoutError:
                why = "timeout"
            except aiohttp.ClientConnectorError:
                why = "refused"
            except (aiohttp.ClientError, OSError):
                why = "broken"
            else:
                self.counts["ok"] += 1
                return await self._answer(request, answer, legs)
            _log.warning("the prefill leg at %s failed: %s", address, why)
        self.counts[why] += 1
        if not self._settings.alone:
            return _error(503, f"no prefill engine computed the prompt ({why}), and this engine computes none")
        return await self._pass(request, legs.alone())

    # ---- the legs

    async def _legs(self, request: web.Request, legs: transfer.Legs, address: str, leg: transfer.Leg) -> "_Begun":
        """Perform the prefill leg and begin the decode leg. Raises _Failed for the former."""
        if transfer.concurrent(self._settings.connector):
            return await self._both(request, legs, address, leg)
        if transfer.asks_bootstrap(self._settings.connector):
            leg = await self._with_engine(leg)
        try:
            body = legs.decode(leg, await self._prefill(request, legs, address, leg))
        except transfer.NotTransferable as error:
            raise _Failed(str(error)) from error
        return _Begun(body)

    async def _with_engine(self, leg: transfer.Leg) -> transfer.Leg:
        timeout = aiohttp.ClientTimeout(total=_QUERY_S)
        async with self._session.get(f"{leg.bootstrap}/query", timeout=timeout) as known:
            if known.status not in _OK:
                raise _Failed(f"bootstrap-{known.status}")
            try:
                engine = transfer.engine(await known.read(), leg.room)
            except transfer.NotTransferable as error:
                raise _Failed(str(error)) from error
        return transfer.Leg(leg.host, leg.key, leg.room, leg.bootstrap_port, engine)

    async def _prefill(self, request: web.Request, legs: transfer.Legs, address: str, leg: transfer.Leg) -> bytes:
        headers = _to_engine(request) | {"content-type": "application/json", **legs.headers(leg)}
        url = f"http://{address}{request.path_qs}"
        async with self._session.post(url, data=legs.prefill(leg), headers=headers) as answer:
            body = await answer.read()
            if answer.status not in _OK:
                raise _Failed(str(answer.status), final=answer.status in _CLIENTS_FAULT and answer.status != 429)  # noqa: PLR2004
            return body

    async def _both(self, request: web.Request, legs: transfer.Legs, address: str, leg: transfer.Leg) -> "_Begun":
        """Run both legs at once, until the answer's first bytes are there."""
        prefill = asyncio.create_task(self._prefill(request, legs, address, leg))
        decode = asyncio.create_task(self._first_bytes(request, legs.decode(leg, b"")))
        try:
            await asyncio.wait({prefill, decode}, return_when=asyncio.FIRST_COMPLETED)
            if prefill.done() and not decode.done():
                await prefill  # raises where it failed
            begun = await decode
        except BaseException:
            for task in (prefill, decode):
                task.cancel()
            await asyncio.gather(prefill, decode, return_exceptions=True)
            if decode.done() and not decode.cancelled() and decode.exception() is None:
                decode.result().close()
            raise
        begun.prefill = prefill
        return begun

    async def _first_bytes(self, request: web.Request, body: bytes) -> "_Begun":
        answer = await self._ask(request, body)
        try:
            first = await answer.content.readany()
        except BaseException:
            answer.close()
            raise
        if answer.status >= _ENGINES_FAULT:
            answer.close()
            raise _Failed(f"decode-{answer.status}")
        return _Begun(body, answer, first)

    # ---- the answer

    async def _answer(self, request: web.Request, begun: "_Begun", legs: transfer.Legs) -> web.StreamResponse:
        try:
            if begun.answer is not None:
                return await _passed_on(request, begun.answer, begun.first)
            answer = await self._ask(request, begun.body)
            if answer.status >= _ENGINES_FAULT and self._settings.alone:  # the blocks were gone when it asked for them
                answer.close()
                self.counts["decode-failed"] += 1
                answer = await self._ask(request, legs.alone())
            return await _passed_on(request, answer)
        except aiohttp.ClientError as error:
            return _unreachable(error)
        finally:
            begun.close()

    async def _pass(self, request: web.Request, body: bytes) -> web.StreamResponse:
        try:
            return await _passed_on(request, await self._ask(request, body))
        except aiohttp.ClientError as error:
            return _unreachable(error)

    async def _ask(self, request: web.Request, body: bytes) -> aiohttp.ClientResponse:
        return await self._session.request(
            request.method,
            f"{self._settings.engine}{request.path_qs}",
            data=body or None,
            headers=_to_engine(request),
            allow_redirects=False,
        )

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            raise RuntimeError("the proxy is not open")
        return self._client


class _Begun:
    """A decode leg: its body, and its answer if that has begun."""

    def __init__(self, body: bytes, answer: aiohttp.ClientResponse | None = None, first: bytes = b"") -> None:
        self.body = body
        self.answer = answer
        self.first = first
        self.prefill: asyncio.Task[bytes] | None = None

    def close(self) -> None:
        """Let go of what is left."""
        if self.answer is not None:
            self.answer.close()
        if self.prefill is not None:
            self.prefill.add_done_callback(_heard)
            self.prefill.cancel()


def _heard(task: asyncio.Task[bytes]) -> None:
    """Take a task's exception, which matters to nobody any more."""
    if not task.cancelled():
        task.exception()


async def _passed_on(request: web.Request, answer: aiohttp.ClientResponse, first: bytes = b"") -> web.StreamResponse:
    """Copy an answer, bytes as they come; one that breaks off breaks off here, too."""
    headers = CIMultiDict((name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP)
    passed = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    try:
        await passed.prepare(request)
        if first:
            await passed.write(first)
        async for part in answer.content.iter_any():
            await passed.write(part)
        await passed.write_eof()
    except (aiohttp.ClientPayloadError, aiohttp.ClientConnectionError) as error:
        _log.warning("the engine broke off: %s", error)
        if request.transport is not None:
            request.transport.abort()
    except asyncio.CancelledError:
        answer.close()
        raise
    finally:
        answer.close() if not answer.content.at_eof() else answer.release()
    return passed


def _to_engine(request: web.Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name.lower() not in _NOT_TO_ENGINES}


def _prefillers(request: web.Request) -> list[str]:
    """Addresses of the header, in order, each once; none if it is empty."""
    listed = ",".join(request.headers.getall(transfer.PREFILLER, ()))
    return list(dict.fromkeys(one.strip() for one in listed.split(",") if one.strip()))


def _host(address: str) -> str:
    host, _, port = address.rpartition(":")
    return (host if port.isdigit() and host else address).strip("[]")


def _unreachable(error: Exception) -> web.Response:
    _log.warning("the engine cannot be reached: %s", error)
    return _error(503, "the engine beside this proxy cannot be reached")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    kind = "service_unavailable" if status >= _ENGINES_FAULT else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": None}}
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)
