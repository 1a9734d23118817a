"""A picker's process with a cluster, engines' pages and an Envoy's view of it, all on free addresses of this machine."""

import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path

import aiohttp
import grpc.aio
from envoy.data.accesslog.v3 import accesslog_pb2
from envoy.service.accesslog.v3 import als_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from extproc.adapters.transport import access_log, ext_proc
from matrixinfer.api import kinds
from matrixinfer.cluster import feed
from matrixinfer.cluster.memory import MemoryCluster

PAGE = (
    '# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{engine="0",model_name="m"}} {running}\n'
    'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
    'vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} {usage}\n'
)


class Engine:
    """Answers /metrics and /v1/models on an address of its own."""

    def __init__(self):
        self.running, self.waiting, self.usage, self.models = 0, 0, 0.0, ["demo"]
        self.adapters, self.more = [], ""  # names of adapters; lines at the end of the metrics page
        self.asked = 0
        self.address = ""
        self._open = set()

    async def start(self):
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def stop(self):
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _answer(self, reader, writer):
        self._open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.asked += 1
                if b"/metrics" in head:
                    body = PAGE.format(running=self.running, waiting=self.waiting, usage=self.usage)
                    body = (body + self.more).encode()
                else:
                    listed = [{"id": model, "parent": None} for model in self.models]
                    listed += [{"id": adapter, "parent": self.models[0]} for adapter in self.adapters]
                    body = json.dumps({"data": listed}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        self._open.discard(writer)
        writer.close()


def a_pod(engine, name, *, ready=True, app="demo"):
    host, _, port = engine.address.rpartition(":")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "ns",
            "name": name,
            "labels": {"app": app},
            "annotations": {"networking.matrixinfer.ai/port": port},
        },
        "spec": {"containers": [{"name": "engine", "image": "engine"}]},
        "status": {
            "phase": "Running",
            "podIP": host,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def a_server(name="engines", model=None, app="demo"):
    spec = {
        "inferenceEngine": "vLLM",
        "workloadSelector": {"matchLabels": {"app": app}},
        "workloadPort": {"port": 8000},
    }
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelServer",
        "metadata": {"namespace": "ns", "name": name},
        "spec": spec | ({"model": model} if model else {}),
    }


def a_route(name="demo", model="demo", server="engines"):
    return {
        "apiVersion": "networking.matrixinfer.ai/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"namespace": "ns", "name": name},
        "spec": {"modelName": model, "rules": [{"targetModels": [{"modelServerName": server}]}]},
    }


class Running:
    """The process, and what a test asks of it."""

    def __init__(self, folder, cluster, engines):
        self.folder, self.cluster, self.engines = folder, cluster, engines
        self.process = None
        self.ports = {}
        self.logs = []

    async def start(self, *flags):
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "extproc", "--socket", str(self.folder / "p.sock")),
            *("--cluster-socket", str(self.folder / "c.sock"), "--admin-port", "0", "--metrics-port", "0"),
            *("--metrics-host", "127.0.0.1", *flags),
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.create_task(self._read_logs())
        return self

    async def _read_logs(self):
        async for line in self.process.stderr:
            entry = json.loads(line)
            self.logs.append(entry)
            if entry["message"] == "listening":
                self.ports[entry["what"]] = entry["address"][1]

    async def logged(self, message):
        return await eventually(lambda: next((each for each in self.logs if each["message"] == message), None))

    async def get(self, path, what="admin"):
        await eventually(lambda: what in self.ports)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.ports[what]}{path}") as response,
        ):
            text = await response.text()
            return response.status, json.loads(text) if "json" in response.headers["content-type"] else text

    async def page(self, path):
        status, document = await self.get(path)
        assert status == 200, document
        return document

    async def serving(self):
        await self.logged("serving")
        self.channel = grpc.aio.insecure_channel(
            f"unix:{self.folder / 'p.sock'}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        return self

    async def ask(self, body, path="/v1/chat/completions", method="POST", **headers):
        """Send a request as our Envoy does; returns the answer that decides it."""
        call = self.channel.stream_stream(
            ext_proc.METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ProcessingResponse.FromString,
        )()
        head = pb.ProcessingRequest(protocol_config={"request_body_mode": "BUFFERED"})
        named = {":method": method, ":path": path, "content-type": "application/json", **headers}
        for name, value in named.items():
            head.request_headers.headers.headers.add(key=name.replace("_", "-"), raw_value=value.encode())
        head.request_headers.end_of_stream = body is None
        await call.write(head)
        answer = await call.read()
        if body is not None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            await call.write(pb.ProcessingRequest(request_body={"body": raw, "end_of_stream": True}))
            answer = await call.read()
            while answer.HasField("override_message_timeout"):  # it waits for its turn
                answer = await call.read()
        await call.done_writing()
        return answer

    async def settle(self, answer, endpoint=None, status=200, **usage):
        """Send the access log record of a decided request."""
        entry = accesslog_pb2.HTTPAccessLogEntry()
        metadata = entry.common_properties.metadata.filter_metadata
        metadata["matrixinfer"].update({"ticket": ticket(answer)})
        metadata["matrixinfer.served"].update({"host": endpoint or endpoints(answer)[0]})
        metadata["matrixinfer.usage"].update(usage or {"prompt_tokens": 10, "completion_tokens": 5})
        entry.response.response_code.value = status
        entry.common_properties.upstream_request_attempt_count = 1
        entry.common_properties.duration.FromMilliseconds(100)
        call = self.channel.stream_unary(
            access_log.METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=als_pb2.StreamAccessLogsResponse.FromString,
        )()
        await call.write(als_pb2.StreamAccessLogsMessage(http_logs={"log_entry": [entry]}))
        await call.done_writing()
        await call

    async def stop(self):
        if hasattr(self, "channel"):
            await self.channel.close()
        if self.process.returncode is None:
            self.process.terminate()
        code = await asyncio.wait_for(self.process.wait(), 20)
        await self._reading
        return code


def endpoints(answer):
    named = {
        option.header.key: option.header.raw_value.decode()
        for option in answer.request_body.response.header_mutation.set_headers
    }
    return tuple(named["x-gateway-destination-endpoint"].split(","))


def ticket(answer):
    return answer.dynamic_metadata["matrixinfer"]["ticket"]


async def eventually(condition):
    """Wait until `condition` gives something true, and return that."""
    async with asyncio.timeout(20.0):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def a_picker(*, engines=2, flags=(), start=True):
    """Run a picker before `engines` engines of one ModelServer behind one ModelRoute."""
    with tempfile.TemporaryDirectory(prefix="picker") as folder:
        path = Path(folder)
        cluster = MemoryCluster()
        made = [await Engine().start() for _ in range(engines)]
        for number, engine in enumerate(made):
            await put(cluster, a_pod(engine, f"pod-{number}"))
        await put(cluster, a_server())
        await put(cluster, a_route())
        async with feed.serve(cluster, path / "c.sock", feed.KINDS):
            running = Running(path, cluster, made)
            if start:
                await (await running.start(*flags)).serving()
            try:
                yield running
            finally:
                if running.process is not None:
                    await running.stop()
                for engine in made:
                    engine.stop()


async def put(cluster, manifest):
    """Create or replace, status included."""
    kind = kinds.KINDS[manifest["apiVersion"], manifest["kind"]]
    with contextlib.suppress(Exception):
        await cluster.create(kind, manifest)
    await cluster.update(kind, manifest)
    if kind.status and "status" in manifest:
        await cluster.update_status(kind, manifest)
