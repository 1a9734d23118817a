"""The HTTPS server: what it answers, what it refuses, and that a new certificate breaks nothing off."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime, timedelta

import aiohttp
import orjson
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from controllers.webhooks.certificates import Terms, renewed
from controllers.webhooks.reconcile import Shown
from controllers.webhooks.server import Webhooks
from tests.webhooks.builders import a_review, a_server

NAMES = ["localhost", "127.0.0.1"]


def a_chest(age=timedelta()):
    return renewed(None, NAMES, datetime.now(UTC) - age, Terms())


def shown(chest):
    return Shown(chest.serving.certificate_pem, chest.serving.key_pem)


def trusting(*chests):
    context = ssl.create_default_context(cadata="".join(chest.bundle.decode() for chest in chests))
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


class Bench:
    def __init__(self):
        self.registry = CollectorRegistry()
        self.webhooks = Webhooks(self.registry)
        self.port = 0

    async def post(self, context, body=None, *, path="/validate", session=None, **options):
        raw = orjson.dumps(a_review(a_server())) if body is None else body
        headers = {"Content-Type": options.pop("content_type", "application/json")}
        async with contextlib.AsyncExitStack() as stack:
            session = session or await stack.enter_async_context(aiohttp.ClientSession())
            url = f"https://127.0.0.1:{self.port}{path}"
            async with session.post(url, data=raw, headers=headers, ssl=context) as answer:
                return answer.status, await answer.read()

    def metrics(self):
        return generate_latest(self.registry).decode()


@pytest.fixture
async def bench():
    bench = Bench()
    async with bench.webhooks.serve("127.0.0.1", 0) as bench.port:
        yield bench


async def test_a_review_is_answered_and_counted(bench):
    chest = a_chest()
    bench.webhooks.show(shown(chest))
    status, body = await bench.post(trusting(chest))
    refused = await bench.post(trusting(chest), orjson.dumps(a_review(a_server(workloadPort={"port": 0}))))

    assert (status, orjson.loads(body)["response"]) == (200, {"uid": "u-1", "allowed": True})
    assert not orjson.loads(refused[1])["response"]["allowed"]
    assert 'matrixinfer_admission_reviews_total{kind="ModelServer",outcome="refused"} 1.0' in bench.metrics()


async def test_a_large_review_is_answered(bench):
    chest = a_chest()
    bench.webhooks.show(shown(chest))
    large = a_server()
    large["metadata"]["annotations"] = {"example.com/x": "x" * 200_000}
    status, body = await bench.post(trusting(chest), orjson.dumps(a_review(large)))

    assert status == 200
    assert orjson.loads(body)["response"]["allowed"]


@pytest.mark.parametrize(
    ("body", "options", "expected"),
    [
        (b"{", {}, (400, b"is not JSON")),
        (b"", {}, (400, b"is not JSON")),
        (b"[" * 5000, {}, (400, b"is not JSON")),
        (b'{"kind":"Pod"}', {}, (400, b"must be an AdmissionReview")),
        (b"{}", {"content_type": "text/yaml"}, (415, b"must be application/json, not text/yaml")),
        (b" " * (8 * 1024 * 1024 + 1), {}, (413, b"larger than")),
        (None, {"path": "/mutate"}, (404, b"")),
    ],
    ids=["cut", "empty", "deep", "no-review", "yaml", "huge", "path"],
)
async def test_what_is_no_review_is_refused_with_the_reason(bench, body, options, expected):
    chest = a_chest()
    bench.webhooks.show(shown(chest))
    status, said = await bench.post(trusting(chest), body, **options)

    assert status == expected[0]
    assert expected[1] in said


async def test_a_client_without_tls_gets_nothing_and_disturbs_nobody(bench):
    chest = a_chest()
    bench.webhooks.show(shown(chest))
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    writer.write(b"POST /validate HTTP/1.1\r\nHost: x\r\n\r\n")
    plain = b""
    with contextlib.suppress(ConnectionError):
        plain = await reader.read()
    writer.close()

    assert b"HTTP" not in plain
    assert (await bench.post(trusting(chest)))[0] == 200


async def test_before_the_first_certificate_nobody_is_answered_and_it_says_so(bench):
    said = bench.webhooks.problem()
    with pytest.raises(aiohttp.ClientError):
        await bench.post(trusting(a_chest()))
    bench.webhooks.show(shown(a_chest()))

    assert said == "webhooks: there is no certificate yet"
    assert bench.webhooks.problem() == ""


async def test_an_expired_certificate_is_refused_by_its_clients_until_another_is_shown(bench):
    old, new = a_chest(timedelta(days=100)), a_chest()
    bench.webhooks.show(shown(old))
    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="expired"):
        await bench.post(trusting(old))
    bench.webhooks.show(shown(new))

    assert (await bench.post(trusting(new)))[0] == 200


async def test_a_new_certificate_breaks_no_connection_off(bench):
    old, new = a_chest(), a_chest()
    bench.webhooks.show(shown(old))
    connections = []
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(lambda *_: _note(connections))
    async with aiohttp.ClientSession(trace_configs=[trace]) as session:
        context = trusting(old)
        first = await bench.post(context, session=session)
        bench.webhooks.show(shown(new))
        second = await bench.post(context, session=session)
    fresh = await bench.post(trusting(new))
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await bench.post(trusting(old))

    assert [first[0], second[0], fresh[0]] == [200, 200, 200]
    assert len(connections) == 1


async def _note(connections):
    connections.append(True)


@pytest.mark.parametrize(
    "broken",
    [
        lambda chest: Shown(chest.serving.certificate_pem, chest.authority.key_pem),
        lambda chest: Shown(b"", chest.serving.key_pem),
        lambda chest: Shown(chest.serving.certificate_pem, b"garbage"),
    ],
)
async def test_a_certificate_that_cannot_be_used_leaves_the_last_one(bench, broken, caplog):
    chest = a_chest()
    bench.webhooks.show(shown(chest))
    bench.webhooks.show(broken(a_chest()))

    assert (await bench.post(trusting(chest)))[0] == 200
    assert "cannot be used" in caplog.text
