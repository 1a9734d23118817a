"""A Kubernetes API server as a `Cluster`, through pykube-ng.

pykube-ng is synchronous, so calls run in a few threads and every watch in one of its own, which sleeps in the kernel until
the server says something: an idle client costs nothing, and decoding happens outside the event loop. What pykube-ng lacks is
here: server-side apply, chunked lists, watches that resume, bookmarks, 410, preconditions, 429, rates and deadlines.
Credentials are `credentials.py`'s business, refusals `statuses.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import orjson
import urllib3

from matrixinfer.api import kinds
from matrixinfer.cluster import apiserver_calls as calls
from matrixinfer.cluster import apiserver_connections as connections
from matrixinfer.cluster.apiserver_calls import Answer, Call
from matrixinfer.cluster.apiserver_watch import Stream
from matrixinfer.cluster.apiserver_wire import Wire
from matrixinfer.cluster.clock import ServerClock, boottime
from matrixinfer.cluster.credentials import AccessError
from matrixinfer.cluster.lease import NotLeader
from matrixinfer.cluster.protocol import (
    Conflict,
    EventType,
    Expired,
    Invalid,
    ObjectList,
    Unavailable,
    WatchEvent,
)
from matrixinfer.cluster.ratelimit import Bucket, Rate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from matrixinfer.cluster.credentials import Access
    from matrixinfer.cluster.protocol import Kind, Manifest

_UNAUTHORIZED: Final = 401
_TOO_MANY: Final = 429
_TRIES: Final = 5  # of what the server refuses without doing it, and of a write that others keep overtaking
_WATCHES_AT_MOST: Final = 256


@dataclass(frozen=True, slots=True)
class Settings:
    """How the client behaves. `silence_s` is how long a watch may say nothing before it is asked for anew."""

    manager: str = "matrixinfer"  # whom fields belong to that are written by anything but apply
    rate: Rate = field(default_factory=Rate)
    threads: int = 16  # as many writes as a loop sends together
    connect_s: float = 5.0
    answer_s: float = 30.0
    lease_answer_s: float = 4.0
    chunk: int = 500
    silence_s: float = 90.0
    watch_s: float = 300.0  # at the least; up to twice as long by chance, so that watches do not all start anew at once
    user_agent: str = "matrixinfer"


class ApiServer:
    """Implements `protocol.Cluster`. Use as `async with`, or call `close`.

    `remaining` says for how many seconds this process may still write; it is asked right before a write leaves, which is not
    sent if they are over, and which the server is told to give up by then. Leases are written all the same. `report` is told of
    every request: verb, kind, HTTP status (0: none), seconds.
    """

    def __init__(
        self,
        access: Access,
        settings: Settings | None = None,
        *,
        remaining: Callable[[], float] | None = None,
        report: Callable[[str, str, int, float], None] | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._remaining = remaining
        self._report = report
        self._access = access
        self._wire = Wire(access, user_agent=self._settings.user_agent, pool=self._settings.threads * 4)
        self.clock = ServerClock()
        self._bucket = Bucket(self._settings.rate, time.monotonic())
        self._threads = ThreadPoolExecutor(self._settings.threads, "apiserver")
        self._lease_threads = ThreadPoolExecutor(2, "apiserver-lease")
        self._watch_threads = ThreadPoolExecutor(_WATCHES_AT_MOST, "apiserver-watch")
        self._following: set[Stream] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break off watches and let go of connections and threads."""
        for stream in list(self._following):
            stream.stop()
        for pool in (self._threads, self._lease_threads, self._watch_threads):
            pool.shutdown(wait=False, cancel_futures=True)
        self._wire.close()

    # Reading

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Manifest:
        """Return the object. Raises NotFound."""
        return await self._call(Call("get", kind, calls.namespace_of(kind, namespace), name))

    async def list(
        self, kind: Kind, *, namespace: str | None = None, labels: Mapping[str, str] | None = None, name: str = ""
    ) -> ObjectList:
        """Return the objects of all namespaces (None) or one, whose labels include `labels`, without managedFields."""
        query = calls.of_name(name)
        if labels:
            query["labelSelector"] = ",".join(f"{name}={value}" for name, value in sorted(labels.items()))
        call = Call("list", kind, namespace if kind.namespaced else None, query=query)
        with contextlib.suppress(Expired):  # the server's snapshot ran out between two chunks
            return await self._pages(call, {"limit": str(self._settings.chunk)})
        return await self._pages(call, {})

    async def _pages(self, call: Call, page: dict[str, str]) -> ObjectList:
        items: list[Manifest] = []
        while True:
            found = await self._call(replace(call, query={**call.query, **page}))
            for item in found.get("items") or ():
                item |= {"apiVersion": call.kind.api_version, "kind": call.kind.kind}  # built-in kinds leave it out
                items.append(calls.lean(item))
            if not found["metadata"].get("continue"):
                return ObjectList(tuple(items), found["metadata"]["resourceVersion"])
            page = page | {"continue": found["metadata"]["continue"]}

    async def watch(
        self, kind: Kind, *, since: str, namespace: str | None = None, bookmarks: bool = True, name: str = ""
    ) -> AsyncGenerator[WatchEvent, None]:
        """Yield every change after `since`, without managedFields. Raises Expired if that is too old, Unavailable when it breaks.

        A watch that the server ends in order, or that falls silent, goes on from where it was: who is there answers, and who is not is
        Unavailable. Once connected, a bookmark is the first sign of life.
        """
        while True:
            began = time.monotonic()
            query = {"watch": "true", "resourceVersion": since, "allowWatchBookmarks": "true", **calls.of_name(name)}
            query["timeoutSeconds"] = str(int(self._settings.watch_s * (1 + random.random())))  # noqa: S311 - no secret
            call = Call("watch", kind, namespace if kind.namespaced else None, query=query)
            stream = Stream(
                self.exchange,
                call,
                answer_s=self._settings.answer_s,
                silence_s=self._settings.silence_s,
                threads=self._watch_threads,
            )
            self._following.add(stream)
            try:
                async for event in stream.events():
                    since = event.object["metadata"]["resourceVersion"]
                    if bookmarks or event.type is not EventType.BOOKMARK:
                        yield event
            finally:
                self._following.discard(stream)
                stream.stop()
            if time.monotonic() - began < 1 and not stream.silent:
                raise Unavailable(f"{self._access.server}: the server ends the watch of {kind.plural} at once")

    # Writing

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Create; `metadata.generateName` is honoured. Raises AlreadyExists, Invalid; that, too, for fields that are not known."""
        call = _on(kind, manifest, "create", query={"fieldValidation": "Strict"})  # as every apply
        return await self._write(replace(call, name="", body=calls.named(kind, manifest)))

    async def update(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace all but status; a `resourceVersion` in it must match. Raises NotFound, Conflict, Invalid."""
        call = _on(kind, manifest, "update", body=calls.named(kind, manifest))
        if manifest["metadata"].get("resourceVersion"):
            return await self._write(call)
        for left in reversed(range(_TRIES)):  # custom resources are replaced by version only
            stands = await self.get(kind, call.name, call.namespace or "")
            version = {"resourceVersion": stands["metadata"]["resourceVersion"]}
            try:
                return await self._write(replace(call, body=call.body | {"metadata": manifest["metadata"] | version}))
            except Conflict:
                if not left:
                    raise
        raise AssertionError  # the last try returns or raises

    async def update_status(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Replace status alone. Raises NotFound, Conflict."""
        body = calls.status_patch(manifest)
        try:
            return await self._write(_on(kind, manifest, "patch", part="status", body=body, content=calls.PATCH))
        except Invalid as error:
            if body[0]["op"] == "test" and "/metadata/uid" in str(error):
                raise Conflict(f"metadata.uid: another object has this name now: {error}") from error
            raise

    async def apply(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply: merge as `manager`, dropping fields it owned and no longer names. Raises Conflict."""
        return await self._apply(_on(kind, manifest, "apply"), manifest, manager, force=force)

    async def apply_status(self, kind: Kind, manifest: Manifest, *, manager: str, force: bool = False) -> Manifest:
        """Server-side apply of the status subresource. Raises NotFound, Conflict."""
        given = ("name", "namespace", "uid", "resourceVersion")
        meta = {name: manifest["metadata"][name] for name in given if name in manifest["metadata"]}
        applied = {"metadata": meta, "status": manifest.get("status", {})}
        return await self._apply(_on(kind, manifest, "apply", part="status"), applied, manager, force=force)

    async def _apply(self, call: Call, manifest: Manifest, manager: str, *, force: bool) -> Manifest:
        body = calls.named(call.kind, manifest)
        body["metadata"] = {name: value for name, value in body["metadata"].items() if name != "managedFields"}
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self._write(replace(call, query=query, body=body, content=calls.APPLY))

    async def scale(self, kind: Kind, name: str, namespace: str, replicas: int) -> Manifest:
        """Set replicas through the scale subresource; returns the Scale. Raises NotFound, Invalid."""
        call = Call("patch", kind, calls.namespace_of(kind, namespace), name, "scale", content=calls.MERGE)
        return await self._write(replace(call, body={"spec": {"replicas": replicas}}))

    async def bind(self, pod: str, namespace: str, node: str) -> None:
        """Give a pod its node, as a scheduler does. Raises NotFound, Conflict if it has one or is being deleted."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target}
        call = Call("create", kinds.POD, calls.namespace_of(kinds.POD, namespace), pod, "binding", body=body)
        await self._write(call)

    async def delete(  # noqa: PLR0913 - the preconditions of the API
        self,
        kind: Kind,
        name: str,
        namespace: str = "",
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
        grace_period_s: int | None = None,
    ) -> None:
        """Delete, or mark for deletion while finalizers stand. Raises NotFound, Conflict."""
        given = {"uid": uid, "resourceVersion": resource_version}
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if preconditions := {member: value for member, value in given.items() if value is not None}:
            body["preconditions"] = preconditions
        if grace_period_s is not None:
            body["gracePeriodSeconds"] = grace_period_s
        await self._call(Call("delete", kind, calls.namespace_of(kind, namespace), name, body=body))

    # Asking

    async def _write(self, call: Call) -> Manifest:
        return await self._call(replace(call, query={"fieldManager": self._settings.manager, **call.query}))

    async def _call(self, call: Call) -> Manifest:
        """Ask, in a thread, once the rate allows it; what the server refuses for now, without doing it, is asked again."""
        urgent = call.kind == kinds.LEASE
        pool = self._lease_threads if urgent else self._threads
        for left in reversed(range(_TRIES)):
            if (delay_s := self._bucket.take(time.monotonic(), urgent=urgent)) > 0:
                await asyncio.sleep(delay_s)
            answer = await asyncio.get_running_loop().run_in_executor(pool, self._ask, call)
            if answer.code != _TOO_MANY or not left:
                break
            self._bucket.pause(time.monotonic() + answer.retry_after_s)
            if urgent:
                await asyncio.sleep(answer.retry_after_s)
        return answer.object()

    def _ask(self, call: Call) -> Answer:
        """One request and its answer; runs in a thread."""
        patience_s = self._settings.lease_answer_s if call.kind == kinds.LEASE else self._settings.answer_s
        with self.exchange(call, patience_s) as response:
            body = response.data
            if calls.good(response.status):
                return Answer(response.status, orjson.loads(body))
            after_s = calls.retry_after_s(response.headers.get("Retry-After"))
            return Answer(response.status, None, body, after_s)

    @contextlib.contextmanager
    def exchange(self, call: Call, patience_s: float) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a call and give its answer, unread; what breaks is Unavailable. Runs in a thread."""
        began, code = time.monotonic(), 0
        try:
            response = self._send(call, patience_s)
            if response.status == _UNAUTHORIZED and self._access.identity.refused():
                response.close()
                response = self._send(call, patience_s)
            code = response.status
            self.clock.heard(response.headers.get("Date"), time.monotonic() - began)
            with contextlib.closing(response):
                yield response
        except (urllib3.exceptions.HTTPError, OSError, AccessError) as error:
            raise Unavailable(f"{self._access.server}: {_cause(error)}") from error
        except orjson.JSONDecodeError as error:
            raise Unavailable(f"{self._access.server}: this is no API server's answer: {error}") from error
        finally:
            if self._report is not None:
                self._report(call.verb, call.kind.plural, code, time.monotonic() - began)

    def _send(self, call: Call, patience_s: float) -> urllib3.BaseHTTPResponse:
        presented = self._access.identity.present()
        query = dict(call.query)
        connections.sending.before = connections.sending.over = float("inf")
        if call.writes:
            if self._remaining is not None and call.kind != kinds.LEASE:
                left_s = self._remaining()
                if left_s <= 0:
                    raise NotLeader("the lease is over: nothing may be written until it is held again")
                connect_s = left_s / 4  # a part for opening a connection, the rest for the server
                connections.sending.before = boottime() + connect_s
                connections.sending.over = boottime() + left_s
                patience_s = min(patience_s, left_s - connect_s)
            query["timeout"] = f"{int(patience_s * 1000) + 1}ms"  # the server gives up by then, too
        return self._wire.send(
            call.method,
            self._wire.path(call.kind.api_version, call.namespace, call.path),
            query=query,
            headers={**presented.headers, "Content-Type": call.content},
            body=None if call.body is None else orjson.dumps(call.body),
            timeout=(self._settings.connect_s, patience_s),
            certificate=presented.certificate,
        )


def _on(kind: Kind, manifest: Manifest, verb: str, **more: Any) -> Call:
    meta = manifest.get("metadata") or {}
    return Call(verb, kind, calls.namespace_of(kind, meta.get("namespace", "")), meta.get("name", ""), **more)


def _cause(error: BaseException) -> str:
    """Return what the innermost error says: the outer ones only repeat it."""
    while isinstance(error, urllib3.exceptions.HTTPError):
        inner = getattr(error, "reason", None) or error.__cause__ or error.__context__
        if not isinstance(inner, BaseException):
            break
        error = inner
    return str(error) or type(error).__name__
