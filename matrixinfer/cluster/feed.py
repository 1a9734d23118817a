"""The cluster's read half for other processes of the machine, over a Unix socket, and the one word that they say to it.

`serve` answers, `Feed` asks; both speak lines of JSON. A request is one line, `{"verb": "list" | "watch", "apiVersion", "kind",
"namespace", "labels", "since"}`; the answer is a stream of the API server's watch events. A list ends with the bookmark that
Kubernetes ends initial events with; a watch goes on, with bookmarks as heartbeats, until either side closes. A refusal is an
`ERROR` event with a Status. `metadata.managedFields` is left out: nobody who only reads needs it.

With the verb `held` and `namespace`, `name` of a ModelServer a picker says that requests wait for an engine; a bookmark says that it was
heard. What becomes of it is `wakeup.py`'s business: whoever is at the socket has no other way to write.

A client that does not read holds up nobody: it has its own position in the cluster's history, and loses its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from matrixinfer.api import kinds as known
from matrixinfer.api import names
from matrixinfer.cluster.missing import LOOK_EVERY_S, Lenient
from matrixinfer.cluster.protocol import (
    AlreadyExists,
    ClusterError,
    Conflict,
    EventType,
    Expired,
    Invalid,
    NotFound,
    ObjectList,
    Unavailable,
    WatchEvent,
)
from matrixinfer.cluster.wakeup import WakeUp

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
    from pathlib import Path

    from matrixinfer.cluster.protocol import Cluster, Kind, Manifest
    from matrixinfer.cluster.store import Source

log = logging.getLogger(__name__)

# What pickers read; of that, what a cluster may not have: an objective is llm-d's.
MAY_BE_MISSING: Final = (known.INFERENCE_OBJECTIVE, known.OLD_INFERENCE_OBJECTIVE)
KINDS: Final = (
    known.POD,
    known.MODEL_SERVER,
    known.MODEL_ROUTE,
    known.EXTERNAL_MODEL_PROVIDER,
    *MAY_BE_MISSING,
)

_LIST_ENDS: Final = "k8s.io/initial-events-end"
_LONGEST_LINE: Final = 64 * 1024 * 1024
_LONGEST_REQUEST: Final = 64 * 1024
_VERBS: Final = ("list", "watch", "held")
_ERRORS: Final = {
    error.reason: error for error in (NotFound, AlreadyExists, Conflict, Invalid, Expired, Unavailable, ClusterError)
}


@contextlib.asynccontextmanager
async def serve(  # noqa: PLR0913 - what is served, and its times
    cluster: Cluster,
    path: Path,
    kinds: Iterable[Kind],
    *,
    heartbeat_s: float = 5.0,
    patience_s: float = 30.0,
    look_every_s: float = LOOK_EVERY_S,
) -> AsyncIterator[None]:
    """Answer readers of these kinds at the socket `path` until the context is left.

    A watch gets a line at least every `heartbeat_s`; a client that takes nothing for `patience_s` is cut off. Kinds that may be
    missing, and are, are looked for every `look_every_s`.
    """
    served = {(kind.api_version, kind.kind): kind for kind in kinds}
    wakeup = WakeUp(cluster, clock=lambda: datetime.now(UTC))
    source = Lenient(cluster, MAY_BE_MISSING, look_every_s=look_every_s)
    server = _Server(source, served, wakeup, heartbeat_s=heartbeat_s, patience_s=patience_s)
    listener = await asyncio.start_unix_server(server.answer, sock=_listen(path), limit=_LONGEST_REQUEST)
    try:
        yield
    finally:
        listener.close()
        await server.stop()
        await wakeup.stop()
        _unlink(path)


def _listen(path: Path) -> socket.socket:
    """Bind the socket, in the place of one that a dead server left; only the same user may connect."""
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"{error.strerror or error}: choose a shorter path or another directory", str(path)
        ) from error
    return listener


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


class _Server:
    def __init__(
        self,
        cluster: Source,
        kinds: Mapping[tuple[str, str], Kind],
        wakeup: WakeUp,
        *,
        heartbeat_s: float,
        patience_s: float,
    ) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._wakeup = wakeup
        self._heartbeat_s = heartbeat_s
        self._patience_s = patience_s
        self._answering: set[asyncio.Task[None]] = set()

    async def stop(self) -> None:
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(reader, writer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                request = await reader.readline()
            watching = asyncio.ensure_future(self._respond(request, writer))
            gone = asyncio.ensure_future(reader.read(1))  # clients say nothing more: this ends when they leave
            try:
                await asyncio.wait((watching, gone), return_when=asyncio.FIRST_COMPLETED)
                if watching.done():
                    watching.result()
            finally:
                watching.cancel()
                gone.cancel()
                await asyncio.gather(watching, gone, return_exceptions=True)
        except (ConnectionError, TimeoutError, ValueError):
            log.debug("a reader of the feed was lost")
        except Exception:
            log.exception("a reader of the feed could not be answered")
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _respond(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            request, kind = self._understand(line)
            if request["verb"] == "list":
                await self._list(kind, request, writer)
            elif request["verb"] == "held":
                self._hear(kind, request)
                await self._send(writer, EventType.BOOKMARK.value, _bookmark(kind, {}))
            else:
                await self._watch(kind, request, writer)
        except ClusterError as error:
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(error)}
            await self._send(writer, "ERROR", status | {"reason": error.reason, "code": error.status})

    def _understand(self, line: bytes) -> tuple[dict[str, Any], Kind]:
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise Invalid("the request is not a line of JSON") from None
        if not isinstance(request, dict) or request.get("verb") not in _VERBS:
            raise Invalid("verb: must be list, watch or held")
        name = str(request.get("apiVersion")), str(request.get("kind"))
        if name not in self._kinds:
            known = ", ".join(sorted({kind for _, kind in self._kinds}))
            raise NotFound(f"{name[1]} of {name[0]} is not served here, only: {known}")
        return request, self._kinds[name]

    def _hear(self, kind: Kind, request: dict[str, Any]) -> None:
        if kind != known.MODEL_SERVER:
            raise Invalid(f"kind: requests wait for a ModelServer, not for a {kind.kind}")
        namespace, name = str(request.get("namespace")), str(request.get("name"))
        for field, problem in (("namespace", names.dns_label(namespace)), ("name", names.dns_subdomain(name))):
            if problem:
                raise Invalid(f"{field}: {problem}")
        self._wakeup.held(namespace, name)

    async def _list(self, kind: Kind, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        found = await self._cluster.list(kind, namespace=request.get("namespace"), labels=request.get("labels"))
        for item in found.items:
            await self._send(writer, EventType.ADDED.value, item)
        meta = {"resourceVersion": found.resource_version, "annotations": {_LIST_ENDS: "true"}}
        await self._send(writer, EventType.BOOKMARK.value, _bookmark(kind, meta))

    async def _watch(self, kind: Kind, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        seen = str(request.get("since"))
        events = aiter(self._cluster.watch(kind, since=seen, namespace=request.get("namespace")))
        upcoming = asyncio.ensure_future(anext(events))
        silence_s = 0.0  # the first sign of life comes at once
        try:
            while True:
                done, _ = await asyncio.wait((upcoming,), timeout=silence_s)
                silence_s = self._heartbeat_s
                if not done:
                    await self._send(writer, EventType.BOOKMARK.value, _bookmark(kind, {"resourceVersion": seen}))
                    continue
                event = upcoming.result()
                seen = event.object["metadata"]["resourceVersion"]
                await self._send(writer, event.type.value, event.object)
                upcoming = asyncio.ensure_future(anext(events))
        except StopAsyncIteration:
            return
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, event: str, manifest: Manifest) -> None:
        manifest.get("metadata", {}).pop("managedFields", None)
        writer.write(orjson.dumps({"type": event, "object": manifest}, option=orjson.OPT_APPEND_NEWLINE))
        async with asyncio.timeout(self._patience_s):
            await writer.drain()


def _bookmark(kind: Kind, meta: Manifest) -> Manifest:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}


class Feed:
    """The read half of `protocol.Cluster`, answered by `serve` in another process; `held` says something itself.

    Raises Unavailable when nobody answers, the connection breaks, or nothing (not even a heartbeat) comes for `silence_s`;
    a `Store` then tries again.
    """

    def __init__(self, path: Path, *, silence_s: float = 30.0) -> None:
        self._path = path
        self._silence_s = silence_s

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None
    ) -> ObjectList:
        """Return the objects of all namespaces (None) or one, whose labels include `labels`."""
        items: list[Manifest] = []
        request = {"verb": "list", "namespace": namespace, "labels": dict(labels or {})}
        async with contextlib.aclosing(self._ask(kind, request)) as events:
            async for event in events:
                if event.type is EventType.BOOKMARK:
                    return ObjectList(tuple(items), event.object["metadata"]["resourceVersion"])
                items.append(event.object)
        raise Unavailable(f"{self._path}: the list broke off")

    async def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True
    ) -> AsyncIterator[WatchEvent]:
        """Yield every change after resource version `since`. Raises Expired if that is too old, Unavailable at the end."""
        request = {"verb": "watch", "namespace": namespace, "since": since}
        async with contextlib.aclosing(self._ask(kind, request)) as events:
            async for event in events:
                if bookmarks or event.type is not EventType.BOOKMARK:
                    yield event
        raise Unavailable(f"{self._path}: the watch broke off")

    async def held(self, namespace: str, name: str) -> None:
        """Say that requests wait for an engine of ModelServer `namespace/name`. Raises Unavailable, Invalid."""
        request = {"verb": "held", "namespace": namespace, "name": name}
        async with contextlib.aclosing(self._ask(known.MODEL_SERVER, request)) as events:
            async for _heard in events:
                return
        raise Unavailable(f"{self._path}: nobody said that it was heard")

    async def _ask(self, kind: Kind, request: Manifest) -> AsyncGenerator[WatchEvent, None]:
        asked = request | {"apiVersion": kind.api_version, "kind": kind.kind}
        try:
            reader, writer = await asyncio.open_unix_connection(self._path, limit=_LONGEST_LINE)
        except OSError as error:
            raise Unavailable(f"{self._path}: {error.strerror or error}") from error
        try:
            writer.write(orjson.dumps(asked, option=orjson.OPT_APPEND_NEWLINE))
            while line := await self._line(reader):
                yield _event(line)
        except (OSError, TimeoutError, ValueError) as error:
            raise Unavailable(f"{self._path}: the connection broke: {error or type(error).__name__}") from error
        finally:
            writer.close()

    async def _line(self, reader: asyncio.StreamReader) -> bytes:
        # unlike wait_for, a timeout loses no cancellation to a line that has just come
        async with asyncio.timeout(self._silence_s):
            return await reader.readline()


def _event(line: bytes) -> WatchEvent:
    event = orjson.loads(line)
    if event["type"] == "ERROR":
        status = event["object"]
        raise _ERRORS.get(status.get("reason"), ClusterError)(status.get("message", ""))
    return WatchEvent(EventType(event["type"]), event["object"])
