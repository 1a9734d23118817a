"""Pickers that count together through a real Redis, and what they do when it is slow, away, or not itself."""

import asyncio
import random
import subprocess
from collections import Counter

import pytest

from extproc import errors
from extproc.adapters.redis_limits import Stores, endpoint
from extproc.traffic.limits import rules
from extproc.traffic.limits.limiter import Limiter
from extproc.types import Api, InferenceRequest
from tests.director.stage import a_route
from tests.limits.server import running
from tests.local.waiting import eventually, eventually_async


class Picker:
    """One picker's limiter and its counters, as the director and the errands use them."""

    def __init__(self, name, address, *known, within_s=2.0, **rate_limit):
        self.stores = Stores([endpoint(url) for url in known], picker=name, within_s=within_s)
        self.limiter = Limiter(self.stores.tell)
        self.stores.told = self.limiter.told
        self.stores.heard = lambda *heard: self.limiter.heard(*heard, asyncio.get_running_loop().time())
        self.limits = rules.of_route(
            "ns/demo",
            a_route(
                rateLimit={"unit": "month", "global": {"redis": {"address": address}}, **rate_limit}
            ).spec.rate_limit,
        )
        self._name = name
        self._number = 0

    async def admit(self, tokens=1, tenant=""):
        """Return the request's ticket, or None if a limit refuses it."""
        ticket = f"{self._name}-{self._number + 1}"
        try:
            await self.headers(tokens, tenant)
        except errors.LimitReached:
            return None
        return ticket

    async def headers(self, tokens=1, tenant=""):
        """Return what a request that is admitted is told. Raises LimitReached."""
        self._number += 1
        ticket = f"{self._name}-{self._number}"
        request = a_request(tokens)
        charges = self.limiter.charges(self.limits, request, tenant=tenant, key="")
        now = asyncio.get_running_loop().time()
        take = self.limiter.ask(ticket, charges, self.limits, choices=1, now=now)
        try:
            taken = await self.stores.take(take)
        except errors.Busy:
            return self.limiter.alone(ticket, now)
        return self.limiter.answered(ticket, taken, now)

    def end(self, ticket, tokens):
        """Settle; `tokens` None: the client left before anybody served it."""
        now = asyncio.get_running_loop().time()
        if tokens is None:
            self.limiter.cancel(ticket, now)
            return
        reservation = self.limiter._open.pop(ticket)
        amounts = tuple(tokens if charge.limit.kind is rules.Kind.OUTPUT else 1 for charge in reservation.charges)
        self.limiter._spend(ticket, reservation, amounts, now)

    async def told(self):
        """Wait until Redis knows all that was spent."""
        await eventually(lambda: not any(store.unsettled for store in self.stores._stores.values()))


def a_request(max_tokens):
    return InferenceRequest(
        id="r",
        api=Api.CHAT,
        path="/v1/chat/completions",
        headers={},
        model="demo",
        stream=False,
        prefix=b"",
        prompt_tokens=1,
        max_tokens=max_tokens,
        wants_usage=False,
        cache_salt="",
        body=b"",
    )


async def used(picker, tenant=""):
    """What Redis has counted, in output tokens: the level that it tells of the first of the limits."""
    charges = picker.limiter.charges(picker.limits, a_request(0), tenant=tenant, key="")
    take = picker.limiter.ask("look", charges, picker.limits, choices=1, now=0.0)
    taken = None
    while taken is None:
        try:
            taken = await picker.stores.take(take)
        except errors.Busy:  # it has been away, and others are to tell what they spent
            await asyncio.sleep(0.05)
    del picker.limiter._open["look"]
    return round(taken.used[-1], 2)


async def test_two_pickers_together_never_admit_more_than_the_limit():
    async with running() as server:
        pickers = [Picker(name, server.address, requestsPerUnit=50) for name in "ab"]

        tickets = await asyncio.gather(*(picker.admit() for picker in pickers * 60))

        assert sum(ticket is not None for ticket in tickets) == 50
        for picker in pickers:
            await picker.stores.close()


async def test_a_thousand_requests_with_disconnects_and_restarts_are_charged_what_they_took():
    """Every tenant's count is what was served for it, though Redis, which keeps a log, dies twice on the way."""
    async with running("--appendonly", "yes", "--appendfsync", "always") as server:
        tenants = [{"outputTokensPerUnit": 400_000, "unit": "month"}]
        pickers = [Picker(name, server.address, tenants=tenants) for name in "ab"]
        served, draw = Counter(), random.Random(5)

        async def one(_number):
            picker, tenant = draw.choice(pickers), draw.choice("xyz")
            ticket = await picker.admit(draw.randint(1, 200), tenant)
            assert ticket is not None
            await asyncio.sleep(draw.random() / 20)
            tokens = None if draw.random() < 0.1 else draw.randint(0, 300)
            served[tenant] += tokens or 0
            picker.end(ticket, tokens)

        for batch in range(10):
            together = asyncio.gather(*(one(number) for number in range(100)))
            if batch in (3, 6):
                await asyncio.sleep(0.01)  # in the middle of it
                server.kill()
            await together
            if batch in (3, 6):
                server.start()
                await server.ready()
                for picker in pickers:
                    await picker.told()
        for picker in pickers:
            await picker.told()
        counted = {tenant: await used(pickers[0], tenant) for tenant in "xyz"}
        alone = sum(picker.limiter.counts.alone for picker in pickers)
        for picker in pickers:
            await picker.stores.close()

    assert alone > 0
    assert counted == pytest.approx(served, abs=10)  # drained meanwhile: one in six seconds


async def test_a_redis_that_is_stopped_makes_nobody_wait_long_and_refuses_nobody():
    async with running() as server:
        picker = Picker("a", server.address, within_s=0.1, requestsPerUnit=1000)
        await picker.admit()
        server.halt()

        async with asyncio.timeout(5):
            tickets = [await picker.admit() for _ in range(50)]

        assert all(tickets)
        assert picker.stores.counts["slow"] in range(1, 7)  # one in a while finds out, the others do not ask
        server.go_on()
        picker.end(tickets[0], 1)
        await picker.told()
        await picker.stores.close()


async def test_without_redis_each_picker_admits_its_share_of_what_is_left():
    async with running() as server:
        pickers = [Picker(name, server.address, within_s=0.2, requestsPerUnit=100) for name in "ab"]
        for _ in range(20):
            for picker in pickers:
                await picker.admit()
        server.kill()

        admitted = [[await picker.admit() for _ in range(60)] for picker in pickers]

        assert sum(ticket is not None for tickets in admitted for ticket in tickets) in range(58, 62)
        for picker in pickers:
            await picker.stores.close()


async def test_what_others_have_used_is_heard_with_each_settlement():
    """So that a picker knows what is left, though it has asked for little lately."""
    async with running() as server:
        quiet, busy = (Picker(name, server.address, within_s=0.2, requestsPerUnit=100) for name in "ab")
        open_one = await quiet.admit()
        for _ in range(59):
            await busy.admit()
        quiet.end(open_one, 1)
        await quiet.told()
        server.kill()

        admitted = [await quiet.admit() for _ in range(60)]

        assert sum(ticket is not None for ticket in admitted) == 20
        for picker in (quiet, busy):
            await picker.stores.close()


async def test_clients_read_the_declared_limit_also_while_redis_is_away_and_what_is_left_of_this_pickers_part():
    async with running() as server:
        pickers = [Picker(name, server.address, within_s=0.2, requestsPerUnit=100) for name in "aba"]
        for picker in pickers:
            await picker.admit()
        server.kill()

        told, refusal = {}, None
        while refusal is None:
            try:
                told = dict(await pickers[2].headers())
            except errors.LimitReached as error:
                refusal = error

        assert told["x-ratelimit-limit-requests"] == "100"
        assert told["x-ratelimit-remaining-requests"] == "0"
        assert dict(refusal.headers)["x-ratelimit-limit-requests"] == "100"
        assert "the limit of 100 requests per month" in refusal.message
        for picker in pickers:
            await picker.stores.close()


async def test_a_redis_that_is_slow_is_asked_seldom_and_counts_again_when_it_is_not():
    delay_s = 0.5

    async def passed(reader, writer):
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", server.port)

        async def back():
            while data := await server_reader.read(65536):
                await asyncio.sleep(delay_s)
                writer.write(data)

        answers = asyncio.create_task(back())
        while data := await reader.read(65536):
            server_writer.write(data)
        server_writer.close()
        writer.close()
        await answers

    async with running() as server:
        proxy = await asyncio.start_server(passed, "127.0.0.1", 0)
        host, port = proxy.sockets[0].getsockname()
        picker = Picker("a", f"{host}:{port}", within_s=0.1, requestsPerUnit=1000)
        tickets = [await picker.admit() for _ in range(30)]

        assert all(tickets)
        assert picker.stores.counts["slow"] in range(1, 5)
        assert picker.limiter.counts.alone == 30
        delay_s = 0.0

        async def counts():
            await picker.admit()
            return picker.stores.counts["ok"] > 0

        await eventually_async(counts)
        await picker.stores.close()
        proxy.close()


async def test_what_was_admitted_without_redis_counts_before_redis_has_been_told():
    """Else each answer of a Redis that comes and goes would open the same share again."""
    async with running() as server:
        picker = Picker("a", server.address, within_s=0.2, requestsPerUnit=10)
        tickets = [await picker.admit() for _ in range(2)]
        server.halt()
        while (ticket := await picker.admit()) is not None:
            tickets.append(ticket)
        server.go_on()

        async def heard():
            before = picker.stores.counts["ok"]
            assert await picker.admit() is None
            return picker.stores.counts["ok"] > before

        await eventually_async(heard)
        for ticket in tickets:
            picker.end(ticket, 1)
        await picker.told()

        assert len(tickets) == 10
        assert await picker.admit() is None
        assert not picker.limiter._untold
        await picker.stores.close()


async def test_a_redis_that_lost_its_memory_is_told_what_its_pickers_know():
    async with running() as server:
        picker = Picker("a", server.address, outputTokensPerUnit=1000)
        await picker.admit(600)
        server.kill()
        server.start()
        await server.ready()

        for _ in range(3):
            assert await picker.admit(600) is None
        await picker.stores.close()


async def test_a_redis_that_was_never_there_refuses_nobody():
    picker = Picker("a", "127.0.0.1:1", requestsPerUnit=10)

    assert await picker.admit() is not None
    assert picker.limiter.counts.alone == 1
    await picker.stores.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"+OK\r\n",
        b"*1\r\n$3\r\nabc\r\n",
        b"-ERR no\r\n",
        b"HTTP/1.1 400\r\n\r\n",
        b"*3\r\n",
        b"*4\r\n:0\r\n:1\r\n:0\r\n$1\r\n0\r\n",
    ],
)
async def test_whatever_a_server_answers_that_is_no_redis_the_picker_goes_on_alone(answer):
    async def nonsense(reader, writer):
        while await reader.read(4096):
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    picker = Picker("a", f"{host}:{port}", within_s=0.5, requestsPerUnit=10)

    assert await picker.admit() is not None
    assert picker.limiter.counts.alone == 1
    await picker.stores.close()
    server.close()


def a_certificate(key, cert):
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )


async def test_acl_users_and_tls(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    a_certificate(key, cert)
    acl = (
        "limits on >s3cret: ~matrixinfer:* -@all +eval +evalsha +time +@string +@hash +@sortedset +exists +del +expire"
    )
    async with running("--user", *acl.split(), "--user", "default", "off") as server:
        url = f"redis://limits:s3cret%3A@{server.address}"
        picker = Picker("a", server.address, url, requestsPerUnit=1)
        stranger = Picker("b", server.address, requestsPerUnit=1)

        assert [await picker.admit() is not None, await picker.admit() is not None] == [True, False]
        assert await stranger.admit() is not None
        assert stranger.limiter.counts.alone == 1
        await picker.stores.close()
        await stranger.stores.close()
    options = ["--tls-auth-clients", "no", "--tls-cert-file", str(cert), "--tls-key-file", str(key)]
    async with running(*options, tls=True) as server:
        picker = Picker("a", server.address, f"rediss://{server.address}?ca_file={cert}", requestsPerUnit=1)
        wary = Picker("b", server.address, f"rediss://{server.address}", requestsPerUnit=1)

        assert [await picker.admit() is not None, await picker.admit() is not None] == [True, False]
        assert await wary.admit() is not None
        assert wary.limiter.counts.alone == 1
        await picker.stores.close()
        await wary.stores.close()


async def test_a_cluster():
    async with running("--cluster-enabled", "yes") as server:
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            await eventually(lambda: "cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")))
        picker = Picker(
            "a", server.address, f"redis+cluster://{server.address}", requestsPerUnit=1, outputTokensPerUnit=100
        )

        assert [await picker.admit() is not None, await picker.admit() is not None] == [True, False]
        assert picker.limiter.counts.alone == 0
        await picker.stores.close()


async def test_sentinel(tmp_path):
    conf = tmp_path / "sentinel.conf"
    async with running() as server:
        conf.write_text(f"sentinel monitor limits 127.0.0.1 {server.port} 1\n")
        async with running(sentinel=conf) as sentinel:
            picker = Picker("a", sentinel.address, f"redis+sentinel://{sentinel.address}/limits", requestsPerUnit=1)

            assert [await picker.admit() is not None, await picker.admit() is not None] == [True, False]
            assert picker.limiter.counts.alone == 0
            await picker.stores.close()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://host", "begins with one of"),
        ("redis://", "begins with one of"),
        ("redis://host:port", "no host:port"),
        ("redis://host/db", "no number"),
        ("redis+sentinel://host", "name the service"),
        ("rediss://host?cert=x", "there is ca_file"),
    ],
)
def test_an_address_that_cannot_be_read_says_why(url, problem):
    with pytest.raises(errors.ConfigError, match=problem):
        endpoint(url)


def test_an_address_with_everything():
    found = endpoint("rediss+cluster://me:p%40ss@one,[::1]:7000?ca_file=/etc/ca.pem")

    assert (found.kind, found.tls, found.hosts) == ("cluster", True, (("one", 6379), ("::1", 7000)))
    assert (found.username, found.password, found.ca_file) == ("me", "p@ss", "/etc/ca.pem")
    assert found.answers_to("[::1]:7000")
    assert not found.answers_to("two:6379")
