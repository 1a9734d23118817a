"""What the data-path tests stand on: a real Envoy fed by our ADS, a picker that does as told, and raw engines.

The picker here is a stub of the protocol, written with grpcio's generic handlers: what Envoy is told to do with a
picker's answers is tested, not how answers are found.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from envoy.config.core.v3 import base_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from google.protobuf import json_format
from google.protobuf.wrappers_pb2 import BytesValue

from controllers import ir
from controllers.xds.publisher import Publisher
from matrixinfer.api import dataplane

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable


ROOT = Path(__file__).resolve().parents[2]
ENVOY = Path(sys.executable).with_name("envoy")
MODULES = Path(sys.prefix) / "lib" / "matrixinfer"  # `make test` builds what is in envoy/modules


@dataclass
class Pick:
    """A picker's decision."""

    endpoints: str
    target: str = "default/demo"
    ticket: str = "t-1"
    metadata: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    handling: str = ""
    names: dict[str, str] = field(default_factory=dict)


@dataclass
class Immediate:
    """A picker's own answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    details: str = "picker_unknown-model"


class Picker:
    """Answers every request with `answer(headers, body)`; keeps what the access log says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[dict[str, str], bytes], Pick | Immediate | None] = lambda _h, _b: None
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.told: list[dict[str, Any]] = []  # the metadata that came with each of them
        self.log: list[dict[str, Any]] = []
        self._logged = asyncio.Event()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server(options=(("grpc.max_receive_message_length", 64 << 20),))
        process = grpc.stream_stream_rpc_method_handler(
            self._process, ext_proc.ProcessingRequest.FromString, ext_proc.ProcessingResponse.SerializeToString
        )
        logs = grpc.stream_unary_rpc_method_handler(
            self._logs,
            als_pb2.StreamAccessLogsMessage.FromString,
            als_pb2.StreamAccessLogsResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "envoy.service.ext_proc.v3.ExternalProcessor", {"Process": process}
                ),
                grpc.method_handlers_generic_handler(
                    "envoy.service.accesslog.v3.AccessLogService", {"StreamAccessLogs": logs}
                ),
            )
        )
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    @contextlib.asynccontextmanager
    async def frozen(self) -> AsyncIterator[None]:
        """Take requests and answer none."""
        self._thawed.clear()
        yield
        self._thawed.set()

    async def entry(self, ticket: str | None = None, **match: str) -> dict[str, Any]:
        """Wait for the access log entry of `ticket`, or whose fields are equal to `match`."""
        async with asyncio.timeout(10):
            while True:
                for entry in self.log:
                    if ticket is not None and metadata(entry, dataplane.METADATA).get("ticket") != ticket:
                        continue
                    if all(entry["request"].get(key) == value for key, value in match.items()):
                        return entry
                self._logged.clear()
                await self._logged.wait()

    async def _process(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        headers: dict[str, str] = {}
        async for message in requests:
            await self._thawed.wait()
            if message.HasField("request_headers"):
                headers = {
                    h.key: (h.raw_value or h.value.encode()).decode() for h in message.request_headers.headers.headers
                }
                along = message.metadata_context.typed_filter_metadata
                if dataplane.BODY_METADATA in along:
                    body = BytesValue.FromString(along[dataplane.BODY_METADATA].value).value
                elif not message.request_headers.end_of_stream:
                    yield ext_proc.ProcessingResponse(request_headers=ext_proc.HeadersResponse())
                    continue
                else:
                    body = b""
            elif message.HasField("request_body"):
                body = message.request_body.body
            else:
                continue
            self.seen.append((headers, body))
            told = json_format.MessageToDict(message.metadata_context)
            self.told.append(told.get("filterMetadata", {}))
            answer = self.answer(headers, body)
            if answer is None:
                await context.abort(grpc.StatusCode.INTERNAL, "no answer was set")
            in_headers = message.HasField("request_headers")
            yield respond(answer, in_headers=in_headers, along=in_headers and dataplane.BODY_METADATA in along)
            return

    async def _logs(self, requests: Any, context: Any) -> Any:
        async for message in requests:
            for entry in message.http_logs.log_entry:
                self.log.append(json_format.MessageToDict(entry, preserving_proto_field_name=True))
            self._logged.set()
        return als_pb2.StreamAccessLogsResponse()


def metadata(entry: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Dynamic metadata of an access log entry."""
    return entry["common_properties"].get("metadata", {}).get("filter_metadata", {}).get(namespace, {})


def respond(answer: Pick | Immediate, *, in_headers: bool, along: bool) -> Any:
    if isinstance(answer, Immediate):
        return ext_proc.ProcessingResponse(
            immediate_response=ext_proc.ImmediateResponse(
                status={"code": answer.status},
                headers=_set_headers(dict(answer.headers)),
                body=answer.body,
                details=answer.details,
            )
        )
    headers = {dataplane.ENDPOINT: answer.endpoints, dataplane.TARGET: answer.target}
    if answer.handling:
        headers[dataplane.HANDLING] = answer.handling
    common = ext_proc.CommonResponse(clear_route_cache=True)
    if along:
        common.status = common.CONTINUE_AND_REPLACE
    if answer.body is not None:
        headers[dataplane.LENGTH if along else "content-length"] = str(len(answer.body))
        common.body_mutation.body = answer.body
    common.header_mutation.CopyFrom(_set_headers(headers))
    response = ext_proc.ProcessingResponse()
    if in_headers:
        response.request_headers.response.CopyFrom(common)
    else:
        response.request_body.response.CopyFrom(common)
    response.dynamic_metadata.update(
        {
            dataplane.ENDPOINT_METADATA: {dataplane.ENDPOINT: answer.endpoints},
            dataplane.METADATA: {dataplane.TICKET: answer.ticket, **answer.metadata},
            dataplane.NAMES_METADATA: answer.names,
        }
    )
    return response


def _set_headers(headers: dict[str, str]) -> Any:
    return ext_proc.HeaderMutation(
        set_headers=[
            base_pb2.HeaderValueOption(
                header=base_pb2.HeaderValue(key=key, raw_value=value.encode()),
                append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
            )
            for key, value in headers.items()
        ]
    )


@dataclass
class Request:
    """What an engine got."""

    line: str
    headers: dict[str, str]
    body: bytes


class Engine:
    """A raw HTTP/1.1 server: `behave(request, writer)` writes the bytes of the answer."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.behave: Callable[[Request, asyncio.StreamWriter], Awaitable[None]] = answer_json
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on; the port stays free for a restart."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *fields = head.rstrip("\r\n").split("\r\n")
                headers = dict(one.lower().split(": ", 1) if ": " in one else (one, "") for one in fields)
                body = await _read_body(reader, headers)
                request = Request(line, headers, body)
                if line.startswith("GET /health "):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                    continue
                self.requests.append(request)
                await self.behave(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


async def answer_json(
    _request: Request, writer: asyncio.StreamWriter, body: bytes = b'{"ok":true}', status: str = "200 OK"
) -> None:
    writer.write(
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )


def stream(*chunks: bytes, close: bool = False, end: bool = True) -> Any:
    """Behave as an SSE stream of exactly these chunks, each flushed on its own."""

    async def behave(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in chunks:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.transport.abort()
        elif end:
            writer.write(b"0\r\n\r\n")

    return behave


@dataclass
class Answer:
    """What a client got; `cut` if the connection ended before the answer did."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Envoy:
    """A real Envoy and the ADS that feeds it."""

    def __init__(self, folder: Path, name: str = "first", publisher: Publisher | None = None) -> None:
        self.folder = folder
        self.name = name
        self.port = 0
        self.shared = publisher
        self.publisher = publisher or Publisher(self._on_change)
        self._changed = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None

    def _on_change(self) -> None:
        self._changed.set()

    async def start(self, config: ir.IR | None, *, ping: str = "30s") -> None:
        """Start Envoy; without a configuration, somebody else serves it. `ping`: how often it asks after ADS."""
        if config is not None:
            if self.shared is None:
                await self.publisher.start(f"unix:{self.folder}/xds.sock")
            self.publisher.publish(config)
        self.port = 0
        text = (ROOT / "envoy" / "bootstrap.yaml").read_text().replace("interval: 30s", f"interval: {ping}")
        for name, value in {
            "NODE_ID": self.name,
            "XDS_DISCOVERY": "STATIC",
            "XDS_ADDRESS": json.dumps({"pipe": {"path": f"{self.folder}/xds.sock"}}),
            "ADMIN_ADDRESS": json.dumps({"pipe": {"path": f"{self.folder}/{self.name}.sock"}}),
            "MAX_CONNECTIONS": "1000",
        }.items():
            text = text.replace(f"${{{name}}}", value)
        bootstrap = self.folder / f"{self.name}.yaml"
        bootstrap.write_text(text)
        self._process = await asyncio.create_subprocess_exec(
            ENVOY,
            "-c",
            bootstrap,
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--log-path",
            self.folder / f"{self.name}.log",
            env=os.environ | {"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(MODULES)},
        )
        async with asyncio.timeout(20):
            while not self.port:
                with contextlib.suppress(OSError, KeyError, ValueError, IndexError):
                    listeners = json.loads(await self.admin("/listeners?format=json"))
                    self.port = listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
                if self._process.returncode is not None:
                    raise RuntimeError((self.folder / f"{self.name}.log").read_text())
                await asyncio.sleep(0.02)
            while (await self.admin("/ready")).strip() != b"LIVE":  # noqa: ASYNC110 - Envoy can only be asked
                await asyncio.sleep(0.02)

    async def apply(self, config: ir.IR) -> ir.Delivery:
        """Publish, and wait until Envoy has taken or refused everything."""
        self.publisher.publish(config)
        async with asyncio.timeout(10):
            while not (delivery := self.publisher.delivery()).settled:
                self._changed.clear()
                await self._changed.wait()
        return delivery

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        await self.kill()
        await self.publisher.stop()

    async def admin(self, path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(f"{self.folder}/{self.name}.sock")
        writer.write(f"GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n".encode())
        answer = await read_answer(reader)
        writer.close()
        return answer.body

    async def request(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        body: bytes = b'{"model":"demo"}',
        **headers: str,
    ) -> Answer:
        """Ask on a connection of its own."""
        lines = [f"{method} {path} HTTP/1.1", "host: gateway", "connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if method != "GET":
            lines += ["content-type: application/json", f"content-length: {len(body)}"]
        else:
            body = b""
        return await self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    async def raw(self, data: bytes) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            return await asyncio.wait_for(read_answer(reader), 20)
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *fields = head.rstrip("\r\n").split("\r\n")
        status = int(line.split()[1])
        if status != 100:
            break
    headers = {
        name.lower(): value
        for name, value in (one.split(": ", 1) if ": " in one else (one.rstrip(":"), "") for one in fields)
    }
    body = b""
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline() or b"x", 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except (asyncio.IncompleteReadError, ValueError, ConnectionError):
        return Answer(status, headers, body, cut=True)
    return Answer(status, headers, body)


@dataclass
class Stack:
    """Envoy, picker and three engines, one ModelServer over them, one model."""

    envoy: Envoy
    picker: Picker
    engines: list[Engine]
    config: ir.IR

    @property
    def module(self) -> bool:
        """Whether our module watches answers, instead of Lua."""
        return self.config.gateway.module

    def pick(self, *engines: int, **more: Any) -> None:
        """Let the picker answer these engines, best first."""
        chosen = ",".join(self.engines[number].address for number in engines)
        self.picker.answer = lambda _headers, _body: Pick(chosen, **more)

    def renew(self) -> None:
        """Let the engines forget what they were asked and told to do."""
        for engine in self.engines:
            engine.requests.clear()
            engine.behave = answer_json

    async def apply(self, **changes: Any) -> ir.Delivery:
        self.config = replace(self.config, **changes)
        return await self.envoy.apply(self.config)


def demo(engines: list[Engine], **more: Any) -> ir.Backend:
    return ir.Backend("default", "demo", tuple(ir.Endpoint("127.0.0.1", one.port) for one in engines), **more)


@contextlib.asynccontextmanager
async def running(*, fail_open: bool = True, served: bool = True, **gateway: Any) -> AsyncIterator[Stack]:
    """Start everything on free ports; stop it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="mi-"))
    engines = [Engine(), Engine(), Engine()]
    picker = Picker(folder / "picker.sock")
    envoy = Envoy(folder)
    try:
        for engine in engines:
            await engine.start()
        await picker.start()
        config = ir.IR(
            ir.Gateway(
                (ir.Listener("gateway", "127.0.0.1", 0),),
                ir.Picker(ir.Address(path=str(picker.path)), fail_open=fail_open, timeout_s=0.5),
                **gateway,
            ),
            (demo(engines),),
            models=(ir.Model("demo", (ir.Rule((ir.Share("default", "demo", 100),)),)),),
        )
        if served:
            await envoy.start(config)
        yield Stack(envoy, picker, engines, config)
    finally:
        await envoy.stop()
        await picker.stop()
        for engine in engines:
            await engine.stop()
        shutil.rmtree(folder, ignore_errors=True)
