"""A Kubernetes API server for measurements, and a client of it that does nothing but ask: what it takes is the server's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]
AT_ONCE = 16


def binary() -> Path | None:
    """Where `make kubetest` has put it, or KUBEBUILDER_ASSETS names it; None: nowhere."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or ROOT / ".build" / "kubernetes")
    return folder / "kubetest" if (folder / "kubetest").is_file() else None


@contextlib.contextmanager
def serving(program: Path) -> Iterator[tuple[Path, int]]:
    """Run it with our CRDs; give where its kubeconfig is, and its process id."""
    folder = Path(tempfile.mkdtemp(prefix="kubetest-"))
    crds = [f"--crds={path}" for path in sorted((ROOT / "crds").glob("*.yaml"))]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [program, f"--dir={folder}", "--stdin", *crds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - both are pipes
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"kubetest did not start: {(folder / 'log').read_text(errors='replace')[-2000:]}")
        yield Path(json.loads(line)["kubeconfig"]), process.pid
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Bare:
    """Requests and their answers as bytes, over a few connections that stay."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def ask(self, method: str, path: str, body: Any = None, content: str = "application/json") -> dict[str, Any]:
        """Return the answer, which has to be a good one."""
        data = None if body is None else orjson.dumps(body)
        async with self._http.request(method, path, data=data, headers={"Content-Type": content}) as answer:
            text = await answer.read()
            if not answer.ok:
                raise RuntimeError(f"{method} {path}: {answer.status}: {text[:500]!r}")
            found: dict[str, Any] = orjson.loads(text)
            return found

    async def all(self, asks: Iterable[Callable[[], Awaitable[Any]]]) -> None:
        """Do all of these, some at once."""
        waiting = iter(asks)

        async def lane() -> None:
            for ask in waiting:
                await ask()

        await asyncio.gather(*(lane() for _ in range(AT_ONCE)))

    async def watch(self, path: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yield type and object of what there is, and of every change."""
        query = "?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        async with self._http.get(path + query, read_bufsize=2**22) as answer:
            async for line in answer.content:
                event = orjson.loads(line)
                yield event["type"], event["object"]


@contextlib.asynccontextmanager
async def bare(config: dict[str, Any]) -> AsyncIterator[Bare]:
    """Give a client with the token that a kubeconfig has."""
    cluster = config["clusters"][0]["cluster"]
    token = next(user["user"]["token"] for user in config["users"] if "token" in user["user"])
    trust = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    async with aiohttp.ClientSession(
        cluster["server"],
        connector=aiohttp.TCPConnector(ssl=trust, limit=0),
        headers={"Authorization": f"Bearer {token}"},
        timeout=aiohttp.ClientTimeout(total=None, sock_read=None),
    ) as http:
        yield Bare(http)
