"""Ten thousand requests of eight tenants over two gateways that count in one Redis, while everything breaks that may.

Clients leave, engines are killed, Redis is killed, stays away, hangs. Four accounts are joined: what the clients read, what
the engines wrote down of each request as it ended (`--account`), what each picker settled (`--decision-log`), and what
Redis holds of each tenant's limits. Months drain so slowly that Redis' levels are sums, to be read to the token.

Which equality holds of a request depends on how it ended:

    whole         what the picker settled is what the engine counted, prompt and answer
    engine died   in mid-stream: what the client read, no more and no less
    client left   a stream: what Envoy had seen, which is no less than the client read, and no more than the engine made,
                  but for the tokens made until the engine knew; the prompt as it was reserved if nothing had come yet
                  a plain answer: what the engine can have made in the time it had, at most what was reserved; nothing
                  if no engine had all of it

Whatever it was: charged once, so that Redis holds the sum of what was settled, exactly, for every tenant. For tenants whose
clients stay that is what the engines served. A limit is exceeded by no more than a few times what is on its way at once: by
the requests on their way when Redis is killed, and by those of each moment in which a picker that lacks the CPU misses it.
Figures: `pytest --log-cli-level=info`.
"""

import asyncio
import json
import logging
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median

import orjson
import pytest

from bench import load
from tests.e2e.stack import CHAT, COMPLETIONS, a_pod, a_route, a_server, running, samples, total
from tests.limits import server
from tests.local.waiting import eventually, eventually_async

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(400)]

LOG = logging.getLogger(__name__)
REQUESTS = 10_000
CLIENTS = 32
STEADY = ("steady-0", "steady-1", "steady-2", "steady-3")
LEAVING = ("leaving-0", "leaving-1", "leaving-2")
TIGHT = "tight"  # it may send this many
MOST = 600
TENANTS = (*STEADY, *LEAVING, TIGHT)
ENGINES = ("demo-0", "demo-1", "demo-2", "demo-3")
KINDS = ("requests", "input", "output")
LIMITS = {
    "requests": 5000,
    "input": 200_000,
    "output": 100_000,
}  # a month, so that five tokens drain in a minute at most
MONTH_S = 30 * 86_400
KILLED = 7  # engines, in `Outages`

SECRET = "apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {keys}\n"
POLICY = """\
apiVersion: networking.matrixinfer.ai/v1alpha1
kind: AccessPolicy
metadata: {name: tenants}
spec:
  targetRefs: [{kind: Gateway}]
  apiKeys: {secretRefs: [{name: keys}]}
"""
RATE_LIMIT = """\
  rateLimit:
    global: {{redis: {{address: 'redis.elsewhere:6379'}}}}
    tenants:
    - {{unit: month, requestsPerUnit: {requests}, inputTokensPerUnit: {input}, outputTokensPerUnit: {output}}}
    - {{name: tight, unit: month, requestsPerUnit: {most}}}
"""


@dataclass
class Case:
    """One request, and what its client saw."""

    id: str
    tenant: str
    gateway: int
    path: str
    body: dict
    leaves_s: float | None  # when the client goes; None: it stays
    status: int = 0  # negative: the answer was cut
    got: bytes = b""

    @property
    def left(self):
        """Whether the client went before the answer was over."""
        return self.leaves_s is not None and self.status <= 0

    @property
    def died(self):
        """Whether the answer broke off."""
        return not self.left and (self.status < 0 or b'"error"' in self.got) and abs(self.status) == 200

    @property
    def seen(self):
        """Tokens that the client read of a stream of one choice: each event holds one."""
        found = 0
        for line in self.got[: self.got.rfind(b"\n\n") + 2].split(b"\n"):
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or ()
                found += sum(bool(one.get("text") or one.get("delta", {}).get("content")) for one in choices)
        return found


class Mix:
    """Draws requests; the same every time."""

    def __init__(self):
        self._draw = random.Random(11)
        self._number = 0

    def case(self):
        draw = self._draw
        self._number += 1
        tenant = draw.choice(TENANTS)
        path = draw.choice((CHAT, COMPLETIONS))
        words = " ".join(draw.choices(("river", "stone", "cloud", "grass", "night"), k=draw.randint(1, 30)))
        body = {"model": "demo", "stream": draw.random() < 0.5, "max_tokens": draw.randint(1, 12)}
        body |= {"messages": [{"role": "user", "content": words}]} if path == CHAT else {"prompt": words}
        if not body["stream"] and draw.random() < 0.1:
            body["n"] = 2
        leaves_s = None
        if tenant in LEAVING and draw.random() < 0.3:
            leaves_s = draw.random() * 0.1
            body["max_tokens"] *= 4
        return Case(f"case-{self._number}", tenant, draw.randint(0, 1), path, body, leaves_s)


class Load:
    """Clients at work. What breaks, and when, is told by how many requests have been sent."""

    def __init__(self, gateways):
        self.cases = []
        self.open = 0  # requests of the tight tenant
        self.most_open = 0
        self._mix = Mix()
        self._pools = [load.Pool(one.url, keep_body=True) for one in gateways]
        self._hosts = [one.url for one in gateways]

    async def run(self):
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))
        for pool in self._pools:
            pool.close()

    async def sent(self, number):
        """Wait until so many have been sent."""
        await eventually(lambda: len(self.cases) >= number, 300)

    async def _client(self):
        while len(self.cases) < REQUESTS:
            case = self._mix.case()
            self.cases.append(case)
            self.open += case.tenant == TIGHT
            self.most_open = max(self.most_open, self.open)
            headers = (("x-request-id", case.id), ("x-api-key", f"sk-{case.tenant}"))
            request = load.post("gateway", case.path, orjson.dumps(case.body), headers)
            if case.leaves_s is None:
                sample = await self._pools[case.gateway].exchange(0, request)
            else:
                client = await load.connect(self._hosts[case.gateway], keep_body=True)
                answer = client.send(0, request)
                await asyncio.wait([answer], timeout=case.leaves_s)
                client.close()
                sample = await answer
            case.status, case.got = sample.status, sample.body
            self.open -= case.tenant == TIGHT


class Outages:
    """What breaks while the load runs, by the share of it that has been sent."""

    def __init__(self, world, redis, clients):
        self._world, self._redis, self._load = world, redis, clients

    async def run(self):
        redis = self._redis
        for percent, happens in (
            (10, lambda: self._kill("demo-0")),
            (20, lambda: self._kill("demo-1")),
            (30, redis.kill),
            (30, redis.start),
            (40, lambda: self._kill("demo-2")),
            (44, redis.kill),  # of the tight tenant's limit is something left
            (50, lambda: self._kill("demo-3")),
            (58, lambda: self._kill("demo-0")),
            (65, redis.start),
            (72, redis.halt),
            (80, redis.go_on),
            (85, lambda: self._kill("demo-1")),
            (92, lambda: self._kill("demo-2")),
        ):
            await self._load.sent(REQUESTS * percent // 100)
            waiting = happens()
            if waiting is not None:
                await waiting

    async def _kill(self, pod):
        """SIGKILL, and wait until the engine is back."""
        pid = self._world.kill(pod)
        await eventually(lambda: self._world.stack.pids().get(f"default/{pod}/engine", pid) != pid, 60)


@dataclass
class Account:
    """One request in all accounts. `decision` and `end` are None where the picker sent it nowhere."""

    case: Case
    decision: dict | None
    end: dict | None
    tries: list  # the engines' entries

    @property
    def served(self):
        """What the engines counted: prompt, answer."""
        return tuple(sum(one[name] for one in self.tries) for name in ("prompt_tokens", "generated_tokens"))

    @property
    def written(self):
        """Whether an engine wrote down what it served: not if it was killed between its last byte and that."""
        return bool(self.tries) or self.case.died or self.case.left or self.case.status != 200

    @property
    def told(self):
        """What Envoy told the picker: prompt, answer."""
        return self.end["prompt_tokens"], self.end["completion_tokens"]

    @property
    def bound(self):
        """Generated tokens that were reserved."""
        return self.case.body["max_tokens"] * self.case.body.get("n", 1)

    @property
    def inferred(self):
        """What was charged for an answer of which nobody told the length; the reservation while nothing was learned."""
        charged = self.end["charged"]
        assert charged["by"] == "estimate" or charged["output_tokens"] == self.bound, self
        return charged["output_tokens"]

    @property
    def charged(self):
        """Requests, prompt and answer that the limits were charged, by the rules of docs/limits.md."""
        if self.end is None or not (self.end["served"] or self.end["failed"]):
            return (0, 0, 0)
        prompt, answer = self.told
        requests = int(self.end["status"] < 500)
        if prompt is None and answer is None:
            if self.end["status"] not in (0, 200):
                return (requests, 0, 0)
            if self.end["end"] == "client-gone" and self.end["sent_s"] is None:
                return (0, 0, 0)
            if self.case.body["stream"] and self.end["first_token_s"] is None:
                return (requests, self.decision["prompt_tokens"], 0)
            return (requests, self.decision["prompt_tokens"], self.inferred)
        return (requests, prompt or 0, answer or 0)


# ---- the accounts


def by_engines(files):
    found = defaultdict(list)
    for file in files:
        for line in file.read_bytes().splitlines():
            entry = orjson.loads(line)
            found[entry["client_request_id"]].append(entry)
    return found


def by_pickers(files):
    """Decisions by request id, ends by ticket."""
    decisions, ends = defaultdict(list), defaultdict(list)
    for file in files:
        for line in file.read_bytes().splitlines():
            entry = orjson.loads(line)
            if "decision" in entry:
                decisions[entry["decision"]["request_id"]].append(entry["decision"])
            elif "end" in entry:
                ends[entry["end"]["ticket"]].append(entry["end"])
            assert "dropped" not in entry
    return decisions, ends


def by_redis(client, began):
    """Levels by tenant and kind, with what has drained since `began` put back."""
    cmsgpack = "return tostring(cmsgpack.unpack(redis.call('GET', KEYS[1]))[1])"
    at = "return tostring(cmsgpack.unpack(redis.call('GET', KEYS[1]))[2])"
    found = {}
    for key in client.keys("matrixinfer:{default/demo}/tenant/*"):
        kind, tenant = re.fullmatch(r"matrixinfer:\{default/demo\}/tenant/(\w+)/(.*)", key).groups()
        limit = MOST if tenant == TIGHT else LIMITS[kind]
        drained = (float(client.eval(at, 1, key)) - began) * limit / MONTH_S
        found[tenant, kind] = float(client.eval(cmsgpack, 1, key)) + drained
    return found


async def quiet(world):
    """Wait until both pickers have settled everything and Redis has taken it; return their metrics."""
    pages = []

    async def settled():
        pages.clear()
        for one in world.stack.gateways:
            async with world.http.get(one.metrics_url) as answer:
                pages.append(samples(await answer.text()))
        return all(page["matrixinfer_ledger_open"] + page["matrixinfer_limits_unsettled"] == 0 for page in pages)

    await eventually_async(settled, 60)
    return pages


# ---- the test


async def test_every_tenant_is_charged_what_was_served_for_it_whatever_breaks(tmp_path):
    keys = {tenant: f"sk-{tenant}" for tenant in TENANTS}
    documents = [a_pod(name, "--account", str(tmp_path / f"{name}.jsonl")) for name in ENGINES]
    documents += [SECRET.format(keys=json.dumps(keys)), POLICY, a_server()]
    documents += [a_route() + RATE_LIMIT.format(most=MOST, **LIMITS)]
    log = tmp_path / "decisions.jsonl"
    async with (
        server.running("--appendonly", "yes", "--appendfsync", "no") as redis,
        running(
            tmp_path / "manifests",
            *documents,
            gateways=2,
            redis=f"redis://{redis.address}",
            decision_log=log,
            fail_open=False,
        ) as world,
    ):
        clients = Load(world.stack.gateways)
        outages = Outages(world, redis, clients)
        began = time.time()
        await asyncio.gather(clients.run(), outages.run())
        LOG.info("%d requests in %.1f s", len(clients.cases), time.time() - began)
        pages = await quiet(world)
        levels = by_redis(redis.client(), began)
        most_open = clients.most_open
    # The stack is gone, and all logs are written.
    engines = by_engines(tmp_path.glob("demo-*.jsonl"))
    decisions, ends = by_pickers(tmp_path.glob("decisions*.jsonl"))
    accounts = []
    for case in clients.cases:
        found = decisions.get(case.id, [])
        assert len(found) <= 1, found
        ended = ends.get(found[0]["ticket"], []) if found else []
        assert len(ended) == len(found), (found, ended)
        accounts.append(Account(case, *(found or [None]), *(ended or [None]), engines.get(case.id, [])))

    tell(accounts, pages, levels)
    check_answers(accounts)
    check_once_each(pages, accounts)
    check_served(accounts)
    check_tenants(accounts, levels)
    admitted = sum(one.charged[0] for one in accounts if one.case.tenant == TIGHT)
    LOG.info("%d of %d admitted, %d on their way at once", admitted, MOST, most_open)
    assert MOST <= admitted <= MOST + 3 * most_open


# ---- the checks


def check_answers(accounts):
    """Clients that stay are served, or know why not; and the ten thousand are what they are said to be."""
    stayed = Counter(one.case.status for one in accounts if one.case.leaves_s is None and not one.case.died)
    assert set(stayed) <= {200, 429, 503}, stayed
    assert stayed[503] <= REQUESTS // 100  # no answer of a picker within a second, on a machine that is very busy
    assert {one.case.tenant for one in accounts if one.case.status == 429} == {TIGHT}
    assert sum(one.case.left and one.end is not None for one in accounts) >= 100
    assert sum(one.case.died for one in accounts) >= 1


def check_once_each(pages, accounts):
    """One settlement for each decision; nothing expired, nothing told twice, nothing lost on the way to Redis."""
    for page in pages:
        assert page["matrixinfer_ledger_total{event=opened}"] == page["matrixinfer_ledger_total{event=settled}"]
        assert page["matrixinfer_ledger_total{event=expired}"] == 0
        assert page["matrixinfer_ledger_total{event=duplicate}"] == 0
        assert total(page, "matrixinfer_limits_alone_total") > 0
        assert total(page, "matrixinfer_limits_store_calls_total", "result=ok") > 0
        assert total(page, "matrixinfer_limits_store_calls_total", "result=lost") == 0
    decided = sum(one.decision is not None for one in accounts)
    assert sum(page["matrixinfer_ledger_total{event=opened}"] for page in pages) == decided


def check_served(accounts):
    """What was charged of each request is what the engines served."""
    for one in accounts:
        case, (_, prompt, answer) = one.case, one.charged
        if case.died:
            assert answer == case.seen, one
            assert prompt == one.decision["prompt_tokens"] or one.told[0] is not None, one
        elif not case.left and one.written:
            assert (prompt, answer) == one.served, one
        elif case.body["stream"]:
            assert case.seen <= answer, one
            assert answer <= one.served[1] or not one.tries, one  # an engine that was killed has not written it down
        elif one.end is not None and one.end["served"]:
            assert answer <= one.bound, one
    on_the_way = [
        one.served[1] - one.charged[2] for one in accounts if one.case.left and one.case.body["stream"] and one.tries
    ]
    LOG.info("tokens on their way when a client left a stream: %s", sorted(on_the_way)[-10:])
    plain = [
        one for one in accounts if one.case.left and not one.case.body["stream"] and one.end is not None and one.tries
    ]
    LOG.info(
        "%d plain answers were left: charged %d, made %d, reserved %d; %s",
        len(plain),
        *(sum(column) for column in zip(*((one.charged[2], one.served[1], one.bound) for one in plain), strict=True)),
        Counter(one.end["charged"]["by"] for one in plain),
    )
    assert median(on_the_way) <= 2


def check_tenants(accounts, levels):
    """Redis holds each tenant's sum, to the token; of those whose clients stay it is what was served."""
    for tenant in TENANTS:
        own = [one for one in accounts if one.case.tenant == tenant]
        charged = [sum(column) for column in zip(*(one.charged for one in own), strict=True)]
        for kind, amount in zip(KINDS, charged, strict=True):
            if tenant != TIGHT or kind == "requests":
                assert levels[tenant, kind] == pytest.approx(amount, abs=0.5), (tenant, kind)
        if tenant not in LEAVING:
            served = sum(one.case.seen if one.case.died else one.served[1] for one in own if one.written)
            assert charged[2] - served == sum(one.charged[2] for one in own if not one.written), tenant
    assert sum(not one.written for one in accounts) <= KILLED


def tell(accounts, pages, levels):
    LOG.info("statuses: %s", dict(Counter(one.case.status for one in accounts)))
    LOG.info("ends: %s", dict(Counter(one.end["end"] if one.end else "-" for one in accounts)))
    for page in pages:
        LOG.info("%s", {key: value for key, value in page.items() if "_limits_" in key and "_created" not in key})
    for tenant in TENANTS:
        own = [one for one in accounts if one.case.tenant == tenant]
        LOG.info(
            "%s: redis %s, charged %s, served %s",
            tenant,
            [round(levels.get((tenant, kind), 0), 2) for kind in KINDS],
            [sum(column) for column in zip(*(one.charged for one in own), strict=True)],
            [sum(column) for column in zip(*(one.served for one in own), strict=True)],
        )
