"""Real vLLM engines as processes of a test's own, and a connection of theirs that tests can disturb.

VLLM_PYTHON is the Python that has vLLM, VLLM_CACHE the folder with the tiny model and its adapter: `make test-engines` sets
both.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import aiohttp

from tests.engines.run import free_ports

START_S = 400
_GREETING, _LONG, _COMMAND = 64, 2, 4  # ZMTP 3: bytes before the first frame, and bits of a frame's flags


@dataclass(slots=True)
class Vllm:
    """One engine, at the same ports in every life."""

    name: str
    folder: Path  # for its log
    block_tokens: int
    flags: tuple[str, ...] = ()
    port: int = 0
    events: int = 0
    replay: int = 0
    log: IO[bytes] | None = None
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.port, self.events, self.replay = free_ports(3)

    @property
    def address(self) -> str:
        """Where it answers, as the picker knows it."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Begin a life."""
        cache = Path(os.environ["VLLM_CACHE"])
        kv_events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
        }
        command = [
            *("nice", os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(cache / "tiny"), "--served-model-name", "tiny", "--max-model-len", "4096"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--block-size", str(self.block_tokens)),
            *("--enforce-eager", "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(kv_events)),
            *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"lora-a={cache / 'lora-a'}"),
            *self.flags,
        ]
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = (self.folder / f"{self.name}.log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=cache, env=environment, stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True
        )

    def kill(self) -> None:
        """End it at once, with the processes that it started: they are in one group of their own."""
        if self.process is not None and self.log is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.log.close()
            self.process = None

    async def ready(self, http: aiohttp.ClientSession) -> None:
        """Wait until it serves."""
        async with asyncio.timeout(START_S):
            while True:
                assert self.process is not None
                assert self.process.poll() is None, (self.folder / f"{self.name}.log").read_text()[-3000:]
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with http.get(f"{self.url}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.3)  # another process: it announces nothing


@dataclass(slots=True)
class Wire:
    """A TCP connection to an engine's port that can lose messages on their way, and break.

    Whole ZMTP frames are lost, so that either end sees a connection in order and only the numbers tell.
    """

    to: int
    port: int = 0
    losing: bool = False
    broken: bool = False
    lost: int = 0  # frames
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def open(self) -> None:
        """Listen, at a port of its own."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Break all connections, and let none be made."""
        self.broken = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections be made again, and lose nothing more."""
        self.broken = self.losing = False

    async def close(self) -> None:
        """Listen no more."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.broken:
                return
            theirs, ours = await asyncio.open_connection("127.0.0.1", self.to)
            self._writers.add(ours)
            ways = [asyncio.create_task(_pass_on(reader, ours)), asyncio.create_task(self._frames(theirs, writer))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._writers.discard(ours)
            ours.transport.abort()
        except OSError:
            pass  # the engine is down, and so is the connection
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what the engine sends, frame by frame."""
        greeted = 0
        while greeted < _GREETING:  # both sides wait for parts of the other's
            part = await reader.read(_GREETING - greeted)
            if not part:
                return
            greeted += len(part)
            writer.write(part)
        while True:
            head = await reader.readexactly(1)
            size = await reader.readexactly(8 if head[0] & _LONG else 1)
            body = await reader.readexactly(int.from_bytes(size, "big"))
            if self.losing and not head[0] & _COMMAND:
                self.lost += 1
                continue
            writer.write(head + size + body)
            await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
