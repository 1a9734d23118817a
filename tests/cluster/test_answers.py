"""The API server's client before servers that are busy, odd or silent: each is a small HTTP server of the test."""

from __future__ import annotations

import asyncio
import contextlib
import time

import orjson
import pytest
from aiohttp import web

from matrixinfer.api import kinds
from matrixinfer.cluster.apiserver import ApiServer, Settings
from matrixinfer.cluster.credentials import Access, Bearer
from matrixinfer.cluster.lease import NotLeader
from matrixinfer.cluster.protocol import ClusterError, Conflict, Expired, Forbidden, Invalid, NotFound, Unavailable
from matrixinfer.cluster.ratelimit import Bucket, Rate
from matrixinfer.cluster.statuses import refusal

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "resourceVersion": "1"}}


@contextlib.asynccontextmanager
async def asking(handler, identity=None, address="http://{}", proxy="", **settings):
    """A client of a server that answers everything by `handler`; `{}` in the addresses stands for where it is."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    here = f"127.0.0.1:{runner.addresses[0][1]}"
    identity = identity or Bearer({"Authorization": "Bearer t"})
    access = Access(address.format(here), identity, proxy=proxy.format(here))
    try:
        async with ApiServer(access, Settings(**settings)) as server:
            yield server
    finally:
        await runner.cleanup()


async def test_a_busy_server_is_asked_again_when_it_says():
    asked = []

    async def busy_twice(_):
        asked.append(time.monotonic())
        if len(asked) < 3:
            return web.json_response({}, status=429, headers={"Retry-After": "0.2"})
        return web.json_response(POD)

    async with asking(busy_twice) as server:
        assert (await server.get(kinds.POD, "p", "default"))["metadata"]["name"] == "p"

    assert asked[-1] - asked[0] >= 0.4


async def test_a_server_that_stays_busy_is_unavailable():
    async def busy(_):
        return web.json_response({}, status=429, headers={"Retry-After": "0"})

    async with asking(busy) as server:
        with pytest.raises(Unavailable):
            await server.get(kinds.POD, "p", "default")


@pytest.mark.parametrize(
    ("addresses", "asked"),
    [
        ({"address": "http://{}/k8s/clusters/c"}, "/k8s/clusters/c/api/v1/namespaces/default/pods/p"),
        (
            {"address": "http://server.invalid/sub", "proxy": "http://{}"},
            "http://server.invalid/sub/api/v1/namespaces/default/pods/p",
        ),
    ],
)
async def test_a_server_may_be_behind_a_path_or_a_proxy(addresses, asked):
    targets = []

    async def handler(request):
        targets.append((request.raw_path, request.headers["Authorization"]))
        return web.json_response(POD)

    async with asking(handler, **addresses) as server:
        assert (await server.get(kinds.POD, "p", "default"))["metadata"]["name"] == "p"

    assert targets == [(asked, "Bearer t")]


async def test_a_redirect_is_not_followed():
    async def elsewhere(_):
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    async with asking(elsewhere) as server:
        with pytest.raises(ClusterError, match="302"):
            await server.get(kinds.POD, "p", "default")


@pytest.mark.parametrize("taken", [1, 1000])
async def test_a_watch_hands_over_what_piles_up_in_order_and_may_be_broken_off(taken):
    lines = [
        orjson.dumps({"type": "ADDED", "object": POD | {"metadata": {"name": f"p-{n}", "resourceVersion": str(n)}}})
        for n in range(2000)
    ]

    async def handler(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write(line + b"\n")
        await asyncio.sleep(60)

    async with asking(handler) as server:
        found = []
        async with (
            asyncio.timeout(10),
            contextlib.aclosing(server.watch(kinds.POD, since="1", bookmarks=False)) as events,
        ):
            async for event in events:
                found.append(event.object["metadata"]["name"])
                if len(found) == taken:
                    break
                if len(found) == 1:
                    await asyncio.sleep(0.2)  # by now more has come than may wait

    assert found == [f"p-{n}" for n in range(taken)]


async def test_a_server_that_says_nothing_is_unavailable_in_time():
    async def silent(_):
        await asyncio.sleep(30)

    async with asking(silent, answer_s=0.2) as server:
        with pytest.raises(Unavailable, match="timed out"):
            await server.get(kinds.POD, "p", "default")


async def test_what_is_no_api_server_is_told_with_what_it_said():
    async def proxy(request):
        if request.method == "GET":
            return web.Response(text="<html>log in</html>")
        return web.Response(text="teapot", status=418)

    async with asking(proxy) as server:
        with pytest.raises(Unavailable, match="no API server's answer"):
            await server.get(kinds.POD, "p", "default")
        with pytest.raises(ClusterError, match="418: teapot"):
            await server.create(kinds.POD, POD)


async def test_a_list_whose_snapshot_ran_out_between_chunks_is_asked_for_whole():
    async def forgetful(request):
        if "continue" in request.query:
            return web.json_response({"kind": "Status", "code": 410, "reason": "Expired"}, status=410)
        whole = "limit" not in request.query
        meta = {"resourceVersion": "7"} | ({} if whole else {"continue": "next"})
        return web.json_response(
            {"metadata": meta, "items": [{"metadata": {"name": n}} for n in ("ab" if whole else "a")]}
        )

    async with asking(forgetful) as server:
        found = await server.list(kinds.POD)

    assert [item["metadata"]["name"] for item in found.items] == ["a", "b"]
    assert found.items[0]["kind"] == "Pod"


async def test_a_watch_that_breaks_off_in_the_middle_of_an_event_is_unavailable():
    async def breaking(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"2"}}}\n{"type":"ADD')
        request.transport.abort()
        return response

    async with asking(breaking) as server:
        watch = server.watch(kinds.POD, since="1")
        seen = [await anext(watch), await anext(watch)]
        with pytest.raises(Unavailable):
            await anext(watch)

    versions = [(event.type.value, event.object["metadata"]["resourceVersion"]) for event in seen]
    assert versions == [("BOOKMARK", "1"), ("ADDED", "2")]


async def test_a_watch_left_by_its_reader_closes_its_connection():
    left = asyncio.Event()

    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110 - the other end
            await asyncio.sleep(0.01)
        left.set()
        return response

    async with asking(endless) as server:
        watch = server.watch(kinds.POD, since="1")
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        await watch.aclose()

        async with asyncio.timeout(10):
            await left.wait()


async def test_a_write_is_bounded_at_the_server_by_the_time_that_is_left():
    asked = []

    async def note(request):
        asked.append(request.query.get("timeout"))
        return web.json_response(POD)

    async with asking(note) as server:
        server._remaining = lambda: 4.0
        await server.create(kinds.POD, POD)
        server._remaining = lambda: 0.0
        with pytest.raises(NotLeader):
            await server.create(kinds.POD, POD)

    assert asked == ["3001ms"]


async def test_newer_credentials_are_shown_where_the_first_were_refused():
    class Rotating:
        token = "old"

        def present(self):
            return Bearer({"Authorization": f"Bearer {self.token}"}).present()

        def refused(self):
            self.token = "new"
            return True

    async def picky(request):
        good = request.headers["Authorization"] == "Bearer new"
        return web.json_response(POD if good else {}, status=200 if good else 401)

    async with asking(picky, Rotating()) as server:
        assert (await server.get(kinds.POD, "p", "default"))["kind"] == "Pod"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (404, {"reason": "NotFound"}, NotFound),
        (409, {"reason": "Conflict"}, Conflict),
        (410, {"reason": "Gone"}, Expired),
        (422, {"reason": "Invalid"}, Invalid),
        (400, {"reason": "BadRequest"}, Invalid),
        (403, {"reason": "Forbidden"}, Forbidden),
        (401, {"reason": "Unauthorized"}, Unavailable),
        (500, {"reason": "InternalError"}, Unavailable),
        (503, {}, Unavailable),
    ],
)
def test_refusals_are_errors_by_their_reason(code, status, error):
    body = b'{"kind": "Status", "message": "why", "reason": "%s", "code": %d}' % (
        status.get("reason", "").encode(),
        code,
    )

    found = refusal(code, body)

    assert type(found) is error
    assert str(found) == "why"


def test_a_write_that_the_leaders_policy_refuses_is_another_replicas():
    why = "ValidatingAdmissionPolicy 'matrixinfer-leader' with binding 'matrixinfer-leader' denied request"
    body = orjson.dumps({"kind": "Status", "message": f"pods p is forbidden: {why}", "reason": "Forbidden"})

    assert type(refusal(403, body)) is NotLeader


def test_requests_keep_to_the_rate_and_leases_do_not_wait():
    bucket = Bucket(Rate(per_s=10, burst=2), 0.0)

    assert [bucket.take(0.0) for _ in range(4)] == [0.0, 0.0, 0.1, 0.2]
    assert bucket.take(0.0, urgent=True) == 0.0
    assert bucket.take(0.0) == pytest.approx(0.4)
    assert bucket.take(10.0) == 0.0


def test_a_server_that_asks_for_a_pause_gets_it_but_for_leases():
    bucket = Bucket(Rate(per_s=10, burst=2), 0.0)
    bucket.pause(5.0)

    assert bucket.take(1.0) == 4.0
    assert bucket.take(1.0, urgent=True) == 0.0


@pytest.mark.parametrize("rate", [{"per_s": 0.0}, {"burst": 0}])
def test_a_rate_that_lets_nothing_through_is_refused(rate):
    with pytest.raises(ValueError, match="nothing through"):
        Rate(**rate)


async def test_a_watch_that_falls_silent_is_asked_for_anew_and_unavailable_where_nobody_answers():
    asked = []

    async def silent(request):
        asked.append(request.query["resourceVersion"])
        if len(asked) > 2:  # the server is gone, and the kernel still takes connections
            await asyncio.sleep(30)
        response = web.StreamResponse()
        await response.prepare(request)
        if len(asked) == 1:
            await response.write(b'{"type":"ADDED","object":{"metadata":{"name":"a","resourceVersion":"7"}}}\n')
        await asyncio.sleep(30)
        return response

    async with asking(silent, answer_s=0.3, silence_s=0.5) as server:
        watch = server.watch(kinds.POD, since="1")
        seen = [(await anext(watch)).object["metadata"]["resourceVersion"] for _ in range(3)]
        with pytest.raises(Unavailable, match="timed out"):
            await anext(watch)

    assert seen == ["1", "7", "7"]
    assert asked == ["1", "7", "7"]
